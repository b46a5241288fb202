"""Sending again: what is, how often, how long it waits, and who waits along.  No network, and no real pauses."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from orlop.errors import Cancelled, DeadlineExceeded, Unavailable
from orlop.observe import Call, CancelToken, NullObserver, Tally
from orlop.registry.faults import NetworkFault
from orlop.registry.finding.hosts import Endpoint, origin_of
from orlop.registry.messages import Outgoing, Request, Response
from orlop.registry.net.retry import Backoff
from orlop.registry.net.sockets import Pace, Stalled, connect
from orlop.registry.net.transport import Retrying

ENDPOINT = Endpoint(registry="r.example", origin=origin_of("https://r.example", "test"))
GET = Request(method="GET", url="https://r.example/v2/a", endpoint=ENDPOINT, attempted="test")
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
NO_WAIT = Backoff(base=0.0)


class Server:
    """A sender that gives prepared answers, the last one again and again.  A number is a status."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def __call__(self, request, call):
        self.asked.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(request.body, Outgoing):
            b"".join(request.body)
        if isinstance(answer, Exception):
            raise answer
        status, headers = answer if isinstance(answer, tuple) else (answer, {})
        return Response(status=status, reason="", url=request.url, headers=headers)


def retrying(server, *, retries=3, backoff=NO_WAIT, **options):
    return Retrying(server, retries=retries, backoff=backoff, now=lambda: NOW, **options)


def fault(retry=True):
    return NetworkFault("test", "r.example cut the connection", retry=retry)


@pytest.mark.hostile(38)
@pytest.mark.distribution("errors.too-many-requests")
@pytest.mark.parametrize(
    ("answers", "status", "asked"),
    [
        ([200], 200, 1),
        ([404], 404, 1),
        ([503, 200], 200, 2),
        ([408, 429, 200], 200, 3),
        ([500], 500, 4),
        ([(429, {"retry-after": "0"}), 200], 200, 2),
        ([(429, {"retry-after": "3600"}), 200], 429, 1),
        ([(429, {"ratelimit-remaining": "0;w=21600"}), 200], 429, 1),
        ([(503, {"retry-after": "Thu, 01 Jan 2026 14:00:00 GMT"}), 200], 503, 1),
        ([(503, {"retry-after": "Thu, 01 Jan 2026 11:00:00 GMT"}), 200], 200, 2),
        ([(403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "0"}), 200], 200, 2),
        ([(403, {"x-ratelimit-remaining": "3", "x-ratelimit-reset": "0"}), 200], 403, 1),
        ([fault(), 200], 200, 2),
    ],
)
def test_what_may_pass_is_tried_again(answers, status, asked):
    server = Server(*answers)
    response = retrying(server)(GET, Call())
    assert (response.status, response.tries, len(server.asked)) == (status, asked, asked)


@pytest.mark.parametrize(
    ("faults", "retries", "words"),
    [(fault(), 3, r"\(4 tries\)"), (fault(retry=False), 3, "connection$"), (fault(), 0, "connection$")],
)
def test_a_network_fault_that_lasts_is_told_with_the_number_of_tries(faults, retries, words):
    with pytest.raises(NetworkFault, match=words):
        retrying(Server(faults), retries=retries)(GET, Call())


def outgoing(chunks):
    return Outgoing(iter(chunks), size=None, call=Call(), attempted="test")


def test_a_stream_of_which_something_has_left_is_not_sent_again():
    assert (
        retrying(Server(503, 201))(replace(GET, method="PUT", body=outgoing([b"one"])), Call()).status == 503
    )
    with pytest.raises(NetworkFault):
        retrying(Server(fault(), 201))(replace(GET, method="PUT", body=outgoing([b"one"])), Call())
    assert retrying(Server(503, 201))(replace(GET, method="PUT", body=outgoing([])), Call()).status == 201


class Paused(CancelToken):
    """A token on which waits are counted, and take no time; it is cancelled after the given number."""

    __slots__ = ("most", "waits")

    def __init__(self, most=1_000):
        super().__init__()
        self.waits, self.most = [], most

    def wait(self, seconds):
        self.waits.append(seconds)
        if len(self.waits) >= self.most:
            self.cancel()
        return self.cancelled


def test_waits_grow_and_a_cancelled_call_ends_in_one():
    cancel = Paused(most=3)
    with pytest.raises(Cancelled):
        retrying(Server(503), retries=9, backoff=Backoff(base=1.0, jitter=lambda: 1.0))(
            GET, Call(cancel=cancel)
        )
    assert cancel.waits == [1.0, 2.0, 4.0]


@pytest.mark.hostile(38)
@pytest.mark.distribution("errors.too-many-requests")
def test_a_429_makes_every_request_to_that_server_wait_and_none_to_others():
    now = [0.0]
    server = Server((429, {"retry-after": "30"}), 200)
    send = retrying(server, backoff=Backoff(base=1.0, jitter=lambda: 0.0), clock=lambda: now[0], retries=1)
    first, second, other = Paused(), Paused(), Paused()
    assert send(GET, Call(cancel=first)).status == 200
    assert first.waits[0] == 30.5  # what was asked for, and a little
    assert send(replace(GET, url="https://r.example/v2/b"), Call(cancel=second)).status == 200
    assert second.waits == [30.5]
    assert send(replace(GET, url="https://r.example:8443/v2/b"), Call(cancel=other)).status == 200
    assert other.waits == []
    with pytest.raises(Unavailable, match="left alone for 30 s"):  # where another place may answer at once
        send(replace(GET, retries=0), Call(cancel=other))
    asked = len(server.asked)
    hasty = retrying(server, clock=lambda: now[0], budget=29.0)
    hasty._pauses = send._pauses
    with pytest.raises(Unavailable, match="left alone for 30 s"):  # nor is a pause of others' waited for
        hasty(GET, Call(cancel=other))
    assert (other.waits, len(server.asked)) == ([], asked)
    now[0] = 31.0
    late = Paused()
    assert send(GET, Call(cancel=late)).status == 200
    assert late.waits == []


def test_a_503_without_retry_after_holds_nobody_else():
    send = retrying(Server(503, 200, 200), backoff=Backoff(base=1.0))
    first, second = Paused(), Paused()
    send(GET, Call(cancel=first))
    send(GET, Call(cancel=second))
    assert (len(first.waits), second.waits) == (1, [])


def test_one_call_spends_only_so_long_between_tries_whatever_it_asks_for():
    server = Server(503)
    send = retrying(server, retries=100, backoff=Backoff(base=10.0, cap=10.0, jitter=lambda: 1.0), budget=9.0)
    response = send(GET, Call(cancel=Paused()))
    assert (response.status, response.tries) == (503, 1)
    tally = Tally()
    with tally.pausing(), tally.pausing():
        assert tally.paused >= 0.0
    assert tally.paused < 60.0
    calls = Call()
    assert calls.child().tally is calls.tally


def test_a_deadline_is_not_overslept():
    with pytest.raises(DeadlineExceeded):
        retrying(Server((429, {"retry-after": "100"})))(GET, Call(deadline=time.monotonic() + 0.01))


class Words(NullObserver):
    def __init__(self):
        self.said = []

    def warning(self, text):
        self.said.append(text)


@pytest.mark.hostile(25)
@pytest.mark.distribution("warning.header", "warning.once", "warning.no-action")
def test_warnings_are_said_once_a_call_and_change_nothing():
    warned = {
        "warning": '299 - "Going away, see https://u:s3cret@r.example/x?token=s3cret.", 299 - "Old\x1b[2J."'
    }
    words = Words()
    call = Call(observer=words)
    server = Server((200, warned), (404, warned))
    send = retrying(server)
    assert [send(GET, call).status, send(GET, call).status] == [200, 404]
    assert len(words.said) == 2
    assert words.said[0].startswith("r.example warns: Going away, see https://r.example/x?…")
    assert "s3cret" not in "".join(words.said)
    assert all(text.isprintable() for text in words.said)
    send(GET, Call(observer=words))
    assert len(words.said) == 4  # another call is another user's


@pytest.mark.hostile(25)
def test_a_warning_does_not_repeat_what_went_along():
    words = Words()
    send = retrying(Server((200, {"warning": '299 - "Hello me, s3cret phrase"'})))
    send(replace(GET, secrets=("s3cret phrase",)), Call(observer=words))
    assert words.said == ["r.example warns: Hello me, *****"]


def test_a_flood_of_different_warnings_ends():
    words = Words()
    call = Call(observer=words)
    for number in range(10_000):
        call.warn_once(f"{number}")
    assert len(words.said) == 100


# Bytes per interval, and addresses


@pytest.mark.hostile(38)
@pytest.mark.parametrize(
    ("steps", "stalls"),
    [
        ([(0.5, 50)] * 100, False),
        ([(0.5, 49)] * 100, True),
        ([(0.4, 0), (0.4, 0), (0.3, 200)], False),  # judged at the interval's end
        ([(0.4, 0), (0.4, 0), (0.3, 9)], True),
        ([(0.0, 0)] * 1000, False),  # nobody waited
    ],
)
def test_bytes_that_trickle_are_a_stall(steps, stalls):
    pace = Pace(seconds=1.0, rate=100.0)
    with pytest.raises(Stalled, match="trickles: ") if stalls else contextlib.nullcontext():
        for waited, moved in steps:
            pace.add(waited, moved, "trickles")


def test_a_wait_in_vain_counts_as_soon_as_something_moves():
    pace = Pace(seconds=1.0, rate=100.0)
    for _ in range(5):
        pace.note(0.21)
    with pytest.raises(Stalled, match="trickles: 1 bytes"):
        pace.add(0.0, 1, "trickles")


def test_a_dead_address_does_not_hide_a_live_one():
    with socket.create_server(("127.0.0.1", 0)) as live, socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        infos = [(socket.AF_INET6, ("::1", dead.getsockname()[1])), (socket.AF_INET, dead.getsockname())]
        with pytest.raises(ConnectionRefusedError):
            connect(infos, seconds=60.0, check=lambda: None)
        with connect(
            [*infos, (socket.AF_INET, live.getsockname())], seconds=60.0, check=lambda: None
        ) as sock:
            assert sock.getpeername() == live.getsockname()
