"""Going from place to place: when the next is asked, and when one that failed is asked again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orlop.errors import Cancelled, DataLoss, NotFound, Unavailable
from orlop.observe import Call, CancelToken
from orlop.registry.asking import Asker, needed
from orlop.registry.faults import NetworkFault
from orlop.registry.finding.fallback import BAN, REST, Fallback
from orlop.registry.finding.locate import Locator
from orlop.registry.finding.places import Places
from orlop.registry.messages import Response
from orlop.spec.reference import Reference

REF = Reference.parse("r.example/a:1")
DIGEST = "sha256:" + "0" * 64
FILE = 'server = "https://r.example"\n[host."https://m.example"]\n[host."https://n.example"]\n'


class World:
    """Servers that answer as they are told: a status, or an error to raise; and a clock."""

    def __init__(self, tmp_path):
        folder = tmp_path / "r.example"
        folder.mkdir()
        (folder / "hosts.toml").write_text(FILE)
        self.answers = {"m.example": 200, "n.example": 200, "r.example": 200}
        self.headers = {}
        self.asked = []
        self.now = 1000.0
        self.warnings = []
        self.locate = Locator(self.send, self.send, places=Places(hosts_dirs=(str(tmp_path),)))
        self.asker = Asker(self.send, self.locate)
        self.fallback = Fallback(self.send, self.locate, clock=lambda: self.now)
        self.call = Call(observer=self)

    def progress(self, event):
        pass

    def warning(self, text):
        self.warnings.append(text)

    def send(self, request, call):
        host = request.endpoint.host
        self.asked.append(host)
        answer = self.answers[host]
        if isinstance(answer, Exception):
            raise answer
        return Response(
            status=answer, reason="", url=request.url, headers=self.headers, source=self.answers.get("body")
        )

    def request(self, path="manifests/1", **options):
        return self.asker.request(REF, "GET", path, "test", self.call, **options)

    def ask(self, check=None):
        """The hosts that were asked for one request, and the answer."""
        self.asked.clear()
        _, response = self.fallback.exchange(self.request(), self.call, check=check)
        return list(self.asked), response


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.mark.parametrize(
    ("path", "need"),
    [
        ("manifests/latest", "resolve"),
        (f"manifests/{DIGEST}", "pull"),
        (f"blobs/{DIGEST}", "pull"),
        ("tags/list?n=5", "resolve"),
        (f"referrers/{DIGEST}?artifactType=a", "referrers"),
    ],
)
def test_what_is_asked_needs_its_capability(path, need):
    assert needed(path) == need


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 429, 500, 503, 307])
def test_whatever_is_no_success_leads_to_the_next(world, status):
    world.answers["m.example"] = status
    hosts, response = world.ask()
    assert hosts == ["m.example", "n.example"]
    assert response.endpoint.host == "n.example"


def test_a_range_beyond_the_end_is_an_answer(world):
    world.answers["m.example"] = 416
    assert world.ask()[0] == ["m.example"]


def test_one_in_trouble_rests_and_one_that_lacks_something_does_not(world):
    world.answers |= {"m.example": NetworkFault("test", "m.example is silent"), "n.example": 404}
    assert world.ask()[0] == ["m.example", "n.example", "r.example"]
    assert world.ask()[0] == ["n.example", "r.example"]
    assert len(world.warnings) == 2  # each is told once
    world.now += REST + 1
    world.answers["m.example"] = 200
    assert world.ask()[0] == ["m.example"]


def test_one_that_asks_to_wait_rests_for_as_long(world):
    world.answers["m.example"] = 429
    world.headers = {"retry-after": "100"}
    assert world.ask()[0] == ["m.example", "n.example"]
    world.now += 99
    assert world.ask()[0] == ["n.example"]
    world.now += 2
    assert world.ask()[0] == ["m.example", "n.example"]


@pytest.mark.hostile(19)
def test_one_that_lies_is_not_asked_for_long_and_the_registry_is_the_last_word(world):
    def check(response):
        raise DataLoss("test", "other bytes")

    hosts, response = world.ask(check)
    assert hosts == ["m.example", "n.example", "r.example"]
    assert response.status == 200
    assert "other bytes" in response.before
    world.now += BAN - 1
    assert world.ask()[0] == ["r.example"]
    assert not world.asker.distrust(response.endpoint, world.call, "x", sure=True)


def test_the_last_error_is_the_registrys_with_what_was_said_before(world):
    world.answers |= {
        "m.example": NotFound("test", "m.example has it not"),
        "n.example": 404,
        "r.example": Unavailable("test", "r.example is down"),
    }
    with pytest.raises(Unavailable) as caught:
        world.ask()
    first, _, before = caught.value.reason.partition(" (asked before: ")
    assert first == "r.example is down"
    assert "m.example" in before
    assert "n.example" in before


def test_a_cancelled_call_asks_nobody_else(world):
    token = CancelToken()
    world.call = replace(world.call, cancel=token)
    world.answers["m.example"] = Cancelled("test", "cancelled")
    with pytest.raises(Cancelled):
        world.ask()
    assert world.asked == ["m.example"]


def test_a_body_that_breaks_off_makes_its_place_rest(world):
    class Body:
        def chunks(self, call, attempted):
            yield b"a"
            raise NetworkFault("test", "m.example cut the connection")

        def close(self):
            pass

    world.answers["body"] = Body()
    chunks = world.ask()[1].source.chunks(world.call, "test")
    assert next(chunks) == b"a"
    with pytest.raises(NetworkFault):
        next(chunks)
    assert world.ask()[0] == ["n.example"]


def test_a_request_that_has_left_its_route_is_sent_as_it_is(world):
    request = world.request("tags/list?n=1")
    assert request.url == "https://m.example/v2/a/tags/list?n=1&ns=r.example"
    world.fallback(replace(request, url="https://m.example/v2/a/tags/list?n=1&last=b"), world.call)
    assert world.asked == ["m.example"]
    world.answers["m.example"] = 404
    response = world.fallback(replace(request, url="https://m.example/v2/a/tags/list?last=c"), world.call)
    assert (world.asked, response.status) == (["m.example", "m.example"], 404)


def test_writes_and_what_prepares_them_have_no_other_place(world):
    request = world.request(push=True)
    assert request.route is None
    assert request.scopes == ("repository:a:pull,push",)
    assert world.request().scopes == ("repository:a:pull",)


@pytest.mark.hostile(24)
def test_a_server_of_tls_in_trouble_is_not_remembered_as_one_in_the_clear():
    answers = {"https": NetworkFault("test", "127.0.0.1:5000 cut the connection"), "http": 400}

    def send(request, call):
        answer = answers[request.endpoint.origin.scheme]
        if isinstance(answer, Exception):
            raise answer
        return Response(status=answer, reason="", url=request.url, headers={})

    locate = Locator(send, send, places=Places())
    with pytest.raises(NetworkFault, match="cut the connection"):
        locate("127.0.0.1:5000", "test", Call())
    answers["https"] = 401
    assert locate("127.0.0.1:5000", "test", Call()).origin.scheme == "https"
    answers["https"] = NetworkFault("test", "in trouble again")
    assert locate("127.0.0.1:5000", "test", Call()).origin.scheme == "https"
