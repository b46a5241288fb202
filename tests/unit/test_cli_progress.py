"""Progress as people, pipes and programs see it; what is said is true, and terminals of all sorts can show it."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import struct
import termios
import threading

import pytest

from orlop.cli import main
from orlop.cli.board import Board, Meter
from orlop.cli.progress import JsonLines, Lines, Live, Silent, choose
from orlop.cli.progresslines import Look, cells, clipped, pair, span
from orlop.cli.resuming import left_by
from orlop.errors import Cancelled
from orlop.observe import Call, NullObserver, Progress, Rate
from support.screens import Screen, screen

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def event(item=A, phase="fetching", done=0, total=0, rate=0.0, note=""):
    return Progress(item=item, phase=phase, done=done, total=total, rate=rate, note=note)


class Watched:
    """A terminal on which time passes with each event."""

    def __init__(self, rows=24, columns=100, **look):
        self.clock, self.stream, self.size = Clock(), Terminal(), [columns, rows]
        size = lambda: os.terminal_size(self.size)  # noqa: E731 - asked anew for each drawing
        self.observer = Live(self.stream, clock=self.clock, size=size, **look)

    def tell(self, *args, seconds=1.0, **fields):
        self.clock.now += seconds
        self.observer.progress(event(*args, **fields))

    @property
    def text(self):
        return self.stream.getvalue()

    def lines(self, *args, **fields):
        """What is there after one event more."""
        if args or fields:
            self.tell(*args, **fields)
        return screen(self.text, columns=self.size[0], rows=self.size[1])


def live(**look):
    watched = Watched(**look)
    return watched, watched.observer, watched.stream


# A terminal


def test_a_line_has_share_bytes_rate_and_time_left():
    seen, _, _ = live()
    seen.tell(total=100_000, done=0)
    seen.tell(total=100_000, done=25_000)
    (line,) = seen.lines(total=100_000, done=50_000)
    assert re.fullmatch(r"a{12} fetching  ━{14}╌{14}  50%  50.0 of 100.0 kB  25.0 kB/s    0:02 left", line)


def test_a_layer_that_is_indexed_while_it_is_fetched_shows_both():
    seen, _, _ = live(columns=130)
    seen.tell(total=100, done=10)
    (line,) = seen.lines(phase="indexing", done=2_000)
    assert line.split()[1:2] == ["fetching"]
    assert line.endswith("2.0 kB indexed")
    seen.tell(total=100, done=100)
    (line,) = seen.lines(phase="indexing", done=3_000)
    assert line.split()[1:4] == ["indexing", "3.0", "kB"]
    assert seen.lines(phase="done", done=100, total=100)[0].split() == ["a" * 12, "done", "100", "B"]


def test_what_was_on_the_disk_is_in_the_share_but_not_in_the_rate():
    seen, _, _ = live()
    seen.tell(phase="waiting", total=10_000_000)
    seen.tell(done=9_000_000, total=10_000_000)
    (line,) = seen.lines(done=9_100_000, total=10_000_000)
    assert " 91% " in line
    assert " 100.0 kB/s " in line
    assert line.endswith("0:09 left")


def test_the_sum_is_of_all_layers_and_says_how_many_are_there():
    seen, _, _ = live()
    for item in (A, B, C):
        seen.tell(item, phase="waiting", total=1_000_000, seconds=0)
    seen.tell(A, done=0, total=1_000_000)
    seen.tell(A, done=500_000, total=1_000_000)
    seen.tell(A, phase="done", done=1_000_000, total=1_000_000)
    *_, total = seen.lines(B, done=0, total=1_000_000)
    assert total.split()[:4] == ["total", "1", "of", "3"]
    assert " 33% " in total
    assert "1.0 of 3.0 MB" in total
    assert total.endswith("left")


def test_a_sum_with_an_unknown_total_says_bytes_only():
    seen, _, _ = live()
    seen.tell(A, phase="pushing", done=10, total=100)
    *_, total = seen.lines(B, phase="pushing", done=70)
    assert total.split() == ["total", "0", "of", "2", "80", "B", *total.split()[6:]]
    assert "%" not in total
    assert "left" not in total


def test_what_is_done_scrolls_up_and_stays():
    seen, observer, stream = live()
    seen.tell(A)
    seen.tell(B)
    seen.tell(A, phase="done", done=5)
    lines = seen.lines(B, phase="reading")
    assert [line.split()[:2] for line in lines] == [
        ["a" * 12, "done"],
        ["b" * 12, "reading"],
        ["total", "1"],
    ]
    observer.close()
    assert [line.split()[:2] for line in screen(stream.getvalue())] == [["a" * 12, "done"]]


def test_a_name_that_resolves_gives_way_to_its_layers_and_sums_them_up():
    seen, _, _ = live()
    assert seen.lines("reg/app:1", phase="resolving")[0].split() == ["reg/app:1", "resolving"]
    seen.tell(A, phase="exists", done=7, total=7)
    lines = seen.lines(B, done=0, total=2_000_000)
    assert [line.split()[0] for line in lines] == ["a" * 12, "b" * 12]
    seen.tell(B, phase="done", done=2_000_000, total=2_000_000)
    last = seen.lines("reg/app:1", phase="done")[-1]
    assert re.fullmatch(r"reg/app:1 +done +2\.0 MB in 0:04 \(1 of 2 were there\)", last)


def test_why_something_waits_is_said_until_it_goes_on():
    seen, _, _ = live()
    seen.tell(A, done=5, total=10)
    (line,) = seen.lines(A, phase="retrying", note="waiting 3 s: reg.example answered 429")
    assert line.split(None, 2)[2] == "waiting 3 s: reg.example answered 429"
    (line,) = seen.lines(A, done=6, total=10)
    assert "429" not in line
    lines = seen.lines(
        "resolve reg.example/app", phase="retrying", note="waiting 9 s: reg.example answered 503"
    )
    assert lines[-1] == "waiting 9 s: reg.example answered 503"
    assert "503" not in "".join(seen.lines(A, done=7, total=10))


@pytest.mark.parametrize("rows", [3, 6, 24])
def test_sixty_layers_fit_any_terminal(rows):
    seen, _, stream = live(rows=rows)
    for number in range(60):
        seen.tell(f"sha256:{number:064x}", phase="waiting", total=100, seconds=0)
    for number in range(40):
        seen.tell(f"sha256:{number:064x}", done=50, total=100)
    terminal = Screen(rows=rows)
    terminal.feed(stream.getvalue())
    assert terminal.lines() == terminal.shown()[: len(terminal.lines())], "nothing has scrolled off"
    assert terminal.lines()[-1].split()[:4] == ["total", "0", "of", "60"]
    if rows == 24:
        assert terminal.lines()[-2] == "… 20 more, 20 waiting"


@pytest.mark.parametrize("columns", [1, 8, 20, 30, 50, 64, 80, 100, 132, 300])
def test_no_line_is_wider_than_the_terminal(columns):
    seen, _, stream = live(columns=columns, colour=True)
    for item in (A, "層" * 30, "x" * 500, "\x1b]0;evil\x07\x9b2J", "name\udc9b\udcff"):
        seen.tell(item, done=1_000_000, total=3_000_000_000)
        seen.tell(item, done=900_000_000, total=3_000_000_000)
        seen.tell(item, phase="retrying", note="層" * 200)
        seen.tell(item, done=900_000_000, total=3_000_000_000)
        seen.tell(item, phase="done", done=3_000_000_000)
    plain = re.sub(r"\x1b\[\d*[AJKm]", "", stream.getvalue())
    assert all(cells(line) < max(columns, 2) for line in re.split(r"[\r\n]", plain))
    assert not set(plain) & {"\x1b", "\x07", "\x9b", "\udc9b"}


def test_more_is_shown_where_there_is_room():
    look = [Look(columns=columns) for columns in range(20, 120)]
    board = Board()
    board.take(event(done=0, total=5_000_000), 0.0)
    item = board.take(event(done=1_000_000, total=5_000_000), 2.0)
    widths = [len(one.item(item, 2.0).split("  ")) for one in look]
    assert all(cells(one.item(item, 2.0)) <= one.columns for one in look)
    assert widths[0] < widths[-1]
    assert look[59].item(item, 2.0).endswith("left"), "all but a long bar fits 80 columns"
    assert "━" in look[59].item(item, 2.0)


def test_a_terminal_that_becomes_narrower_keeps_nothing_of_what_was_drawn():
    seen, _observer, stream = live(columns=100)
    seen.tell(A, done=50, total=100)
    seen.tell(B, done=50, total=100)
    before = len(stream.getvalue())
    seen.size[0] = 40
    seen.tell(A, done=60, total=100)
    # Two lines, and the sum of them, of which each takes two rows where lines are wrapped anew.
    assert stream.getvalue()[before:].startswith("\x1b[6A\r")


def test_without_a_utf_8_locale_bars_and_dots_are_ascii():
    seen, observer, stream = live(rows=5, ascii_only=True)
    for number in range(9):
        seen.tell(f"sha256:{number:064x}", done=50, total=100)
    observer.close()
    assert stream.getvalue().isascii()
    assert "##" in stream.getvalue()
    assert "... 8 more" in stream.getvalue()


def test_a_name_that_the_streams_encoding_has_not_is_shown_all_the_same():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    observer = Lines(stream)
    observer.progress(event("größe:1", phase="resolving"))
    observer.progress(event(A, phase="done", done=1))
    assert raw.getvalue().decode().splitlines() == [
        r"orlop: gr\xf6\xdfe:1  resolving",
        f"orlop: {'a' * 12}  done  1 B",
    ]


def test_an_interrupted_drawing_goes_away_and_nothing_is_drawn_after():
    reader, writer = os.openpty()
    try:
        with open(writer, "w", encoding="utf-8", closefd=False) as stream:
            observer = Live(stream, clock=Clock(), size=lambda: os.terminal_size((80, 24)))
            observer.progress(event(A, done=5, total=10))
            os.write(writer, b"^C")  # the terminal's echo
            assert observer.interrupted()
            os.write(writer, b"orlop: stopping\n")
            observer.progress(event(A, done=6, total=10))
            observer.close()
        seen = Screen()
        written = b""
        while b"stopping\r\n" not in written:  # a tty hands on what was written bit by bit
            written += os.read(reader, 100_000)
        seen.feed(written.decode(), raw=True)
        assert seen.lines() == ["orlop: stopping"]
    finally:
        os.close(reader)
        os.close(writer)


def test_a_handler_that_meets_another_threads_drawing_lets_it_end():
    seen, observer, stream = live()
    seen.tell(A, done=5, total=10)
    drawing, met = threading.Event(), threading.Event()
    write = stream.write

    def slow(text):
        drawing.set()
        assert met.wait(60)
        return write(text)

    reader, writer = os.pipe()
    thread = threading.Thread(target=lambda: seen.tell(B, done=6, total=10))
    try:
        stream.write, stream.fileno = slow, lambda: writer
        thread.start()
        assert drawing.wait(60)
        observer._lock = _Met(observer._lock, met)
        assert observer.interrupted()
        assert os.read(reader, 100) == b"\x1b[3A\r\x1b[J", "two lines and their sum"
    finally:
        met.set()
        thread.join(60)
        os.close(reader)
        os.close(writer)


class _Met:
    """A lock that says when somebody begins to wait for it, who then has all the time."""

    def __init__(self, lock, met):
        self._lock, self._met = lock, met
        self.release = lock.release

    def acquire(self, *, timeout):
        assert timeout > 0
        self._met.set()
        return self._lock.acquire(timeout=60)


def test_the_size_is_that_of_the_terminal_that_is_drawn_on():
    reader, writer = os.openpty()
    try:
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("4H", 30, 47, 0, 0))
        with open(writer, "w", encoding="utf-8", closefd=False) as stream:
            assert choose("auto", stream, {"TERM": "xterm"})._size() == (47, 30)
            fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("4H", 0, 0, 0, 0))
            assert choose("auto", stream, {"TERM": "xterm"})._size() == (80, 24), "it does not know"
    finally:
        os.close(reader)
        os.close(writer)


def test_a_handler_that_interrupts_a_drawing_does_not_wait_for_it():
    _, observer, _ = live()
    with observer._lock:  # as held by the frame that the signal came in
        assert observer.interrupted() is False


def test_colour_changes_no_column_and_is_left_out_without():
    plain, painted = live(), live(colour=True)
    for seen, _, _ in (plain, painted):
        seen.tell(A, done=10, total=100)
        seen.tell(B, phase="waiting", total=100)
        seen.tell(C, phase="done", done=3)
    assert not re.search(r"\x1b\[\d*m", plain[2].getvalue())
    assert re.search(r"\x1b\[\d*m", painted[2].getvalue())
    assert screen(plain[2].getvalue()) == screen(painted[2].getvalue())


# Pipes and programs


def lines_of(stream):
    return [line.removeprefix("orlop: ") for line in stream.getvalue().splitlines()]


def test_a_pipe_gets_first_and_last_lines_and_one_every_few_seconds():
    clock, stream = Clock(), io.StringIO()
    observer = Lines(stream, clock=clock)
    observer.progress(event("reg/app:1", phase="resolving"))
    for item in (A, B):
        observer.progress(event(item, phase="waiting", total=2_000_000))
    for second in range(12):
        clock.now = 100.0 + second
        observer.progress(event(done=second * 100_000, total=2_000_000))
        observer.progress(event(phase="indexing", done=second * 300_000))
    observer.progress(event(phase="done", done=2_000_000, total=2_000_000))
    observer.progress(event(B, phase="done", done=2_000_000, total=2_000_000))
    observer.progress(event("reg/app:1", phase="done"))
    assert lines_of(stream) == [
        "reg/app:1  resolving",
        "aaaaaaaaaaaa  fetching  2.0 MB",
        (
            "total  12%  0.5 of 4.0 MB  100.0 kB/s  0:35 left  0 of 2 done; "
            "aaaaaaaaaaaa  fetching  25%  0.5 of 2.0 MB  100.0 kB/s  0:15 left"
        ),
        (
            "total  25%  1.0 of 4.0 MB  100.0 kB/s  0:30 left  0 of 2 done; "
            "aaaaaaaaaaaa  fetching  50%  1.0 of 2.0 MB  100.0 kB/s  0:10 left"
        ),
        "aaaaaaaaaaaa  done  2.0 MB",
        "bbbbbbbbbbbb  done  2.0 MB",
        "reg/app:1  done  4.0 MB in 0:11",
    ]
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()


def test_a_pipe_is_told_once_why_something_waits():
    stream = io.StringIO()
    observer = Lines(stream, clock=Clock())
    for _ in range(3):
        observer.progress(event(phase="retrying", note="waiting 3 s: the registry answered 429"))
    assert lines_of(stream) == ["aaaaaaaaaaaa  retrying  waiting 3 s: the registry answered 429"]


def test_json_lines_are_the_events():
    stream = io.StringIO()
    observer = JsonLines(stream)
    observer.progress(event(done=1, total=2, rate=3.4))
    observer.progress(event(phase="retrying", note="why\x1b"))
    observer.warning("w")
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
        {"item": A, "phase": "fetching", "done": 1, "total": 2, "rate": 3},
        {"item": A, "phase": "retrying", "done": 0, "total": 0, "rate": 0, "note": "why\x1b"},
        {"warning": "w"},
    ]


@pytest.mark.parametrize(
    ("mode", "stream", "environ", "expected"),
    [
        ("auto", Terminal(), {"TERM": "xterm"}, Live),
        ("auto", Terminal(), {"TERM": "dumb"}, Lines),
        ("auto", Terminal(), {}, Lines),
        ("auto", io.StringIO(), {"TERM": "xterm"}, Lines),
        ("plain", Terminal(), {"TERM": "xterm"}, Lines),
        ("json", Terminal(), {"TERM": "xterm"}, JsonLines),
        ("none", Terminal(), {"TERM": "xterm"}, Silent),
    ],
)
def test_the_observer_suits_the_stream(mode, stream, environ, expected):
    assert type(choose(mode, stream, environ)) is expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"LANG": "de_DE.UTF-8"}, False),
        ({"LANG": "C", "LC_CTYPE": "C.utf8"}, False),
        ({"LANG": "de_DE.UTF-8", "LC_ALL": "C"}, True),
        ({"LC_ALL": "de_DE.ISO-8859-1"}, True),
        ({}, True),
    ],
)
def test_a_bar_is_ascii_where_the_locale_is_not_utf_8(environ, expected):
    assert choose("auto", Terminal(), {"TERM": "xterm", **environ})._ascii is expected


@pytest.mark.parametrize("kind", [Silent, Lines, JsonLines, Live])
def test_an_observer_never_raises_when_nobody_reads(kind):
    stream = io.StringIO()
    stream.close()
    observer = kind(stream)
    observer.progress(event())
    observer.warning("x")
    observer.interrupted()
    observer.close()


# Figures


def test_a_rate_is_the_mean_of_the_last_seconds_and_falls_to_nothing():
    meter = Meter()
    for second in range(20):
        meter.note(float(second), second * 1000)
    assert meter.rate(19.0, 19_000) == pytest.approx(1000)
    assert 0 < meter.rate(22.0, 19_000) < 1000
    assert meter.rate(60.0, 19_000) == 0.0
    meter.note(61.0, 0)
    assert meter.rate(61.0, 0) == 0.0, "it begins anew"


def test_no_rate_is_told_before_there_is_one():
    meter = Meter()
    meter.note(0.0, 10**9)
    assert meter.rate(0.0, 10**9) == meter.rate(0.4, 2 * 10**9) == 0.0


def test_an_items_bytes_are_in_the_sum_once_and_never_go_back():
    board, now, seen = Board(), 0.0, []
    steps = [
        (A, "waiting", 0),
        (B, "waiting", 0),
        (C, "waiting", 0),
        (A, "fetching", 40),
        (B, "following", 70),
    ]
    steps += [(A, "fetching", 100), (A, "indexing", 900), (B, "fetching", 70), (A, "indexing", 2000)]
    steps += [(A, "done", 100), (C, "exists", 100), (B, "fetching", 90)]
    for item, phase, done in steps:
        now += 1
        board.take(event(item, phase=phase, done=done, total=0 if phase == "indexing" else 100), now)
        whole = board.sum(now)
        seen.append(whole.done if whole else 0)
    assert seen == sorted(seen)
    assert (whole.done, whole.total, whole.finished, whole.number) == (290, 300, 2, 3)
    assert board.kept() == (290, 300)
    assert board.moved == 80, "60 of A and 20 of B came while one looked"


def test_what_follows_a_whole_is_counted_anew():
    board = Board()
    for name, item in (("reg/a", A), ("reg/b", B)):
        board.take(event(item, done=1, total=10), 1.0)
        board.take(event(item, phase="done", done=10, total=10), 2.0)
        assert board.number == 1
        board.take(event(name, phase="done"), 3.0)
        board.settle()
        assert (board.number, board.moved) == (0, 0)


def test_the_rate_of_events_is_smooth_and_falls():
    clock = Clock()
    rate = Rate(clock)
    told = []
    for _ in range(40):  # bursts: two megabytes every other tenth of a second
        clock.now += 0.1
        rate.add(2_000_000)
        clock.now += 0.1
        rate.add(0)
        told.append(rate.rate)
    assert told[0] == 0.0
    assert all(7e6 < one < 14e6 for one in told[3:])
    for _ in range(20):
        clock.now += 1.0
        rate.add(0)
    assert rate.rate < 100


def test_a_pause_that_people_notice_is_reported_with_its_reason():
    told = []

    class Log(NullObserver):
        def progress(self, event):
            told.append(event)
            call.cancel.cancel()

    call = Call(observer=Log())
    call.pause(0.001, f"fetch layer {A}", why="too short to tell")
    call.pause(0.001, "anything")
    with pytest.raises(Exception, match="cancelled"):
        call.pause(30.0, f"fetch layer {A}", why="reg.example answered 429")
    assert told == [event(phase="retrying", note="waiting 30 s: reg.example answered 429")]


# Words


@pytest.mark.parametrize(
    ("text", "columns", "shown"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("漢字漢", 5, "漢字…"),
        ("漢字", 2, "…"),
        ("ab", 0, ""),
        ("e\u0301x", 2, "e\u0301x"),
    ],
)
def test_a_text_is_cut_between_cells(text, columns, shown):
    assert clipped(text, columns) == shown


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [
        (0, 999, "0 of 999 B"),
        (999, 1000, "1.0 of 1.0 kB"),
        (1, 5 * 10**9, "0.0 of 5.0 GB"),
        (10**12, 10**12, "1.0 of 1.0 TB"),
    ],
)
def test_bytes_are_in_the_unit_of_all_of_them(done, total, text):
    assert pair(done, total) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.1, "0:01"), (59.5, "1:00"), (3600, "1:00:00")])
def test_a_span_is_rounded_up(seconds, text):
    assert span(seconds) == text


# Verbs

LONG = [
    "pull",
    "push",
    "fetch-blobs",
    "copy",
    "artifact push",
    "artifact pull",
    "import",
    "export",
    "prepare",
    "run",
    "bundle",
    "commit",
    "fork",
    "checkpoint create",
    "checkpoint rollback",
    "cleanup",
    "check",
    "gc",
    "backup",
    "restore",
    "share renew",
]


@pytest.mark.parametrize("verb", LONG)
def test_each_verb_that_may_take_long_has_the_options_for_progress(verb, capsys):
    assert main([*verb.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--progress [auto|plain|json|none]" in shown
    assert re.search(r"-q, --quiet +Show no progress", shown)


# What an interruption leaves


def interrupted(words, *events, **details):
    board = Board()
    for at, one in enumerate(events):
        board.take(one, float(at))
    return left_by(words, Cancelled("pull x", "cancelled", details=details), board)


@pytest.mark.parametrize(
    ("words", "events", "details", "text"),
    [
        ((), (), {}, "pull x: cancelled"),
        (("nothing-known",), (), {}, "pull x: cancelled"),
        (("pull", "a"), (), {}, "nothing came this time, `orlop pull a` tries again"),
        (
            ("pull", "a", "b c"),
            (event(done=1, total=9),),
            {"kept": "212400000", "wanted": "655000000"},
            "212.4 MB of 655.0 MB are kept, `orlop pull a 'b c'` goes on from there",
        ),
        (
            ("pull", "a"),
            (event(done=5_000, total=9_000), event(B, phase="waiting", total=1_000)),
            {},
            "5.0 kB of 10.0 kB are kept, `orlop pull a` goes on from there",
        ),
        (("prepare",), (), {}, "no root was made"),
        (
            ("push",),
            (
                event(phase="waiting", total=10),
                event(B, phase="waiting", total=20),
                event(C, phase="exists", done=7, total=7),
                event(B, phase="mounted", done=20, total=20),
                event(done=9, total=10, phase="pushing"),
            ),
            {},
            "2 of 3 blobs (27 B) are at the registry, the same command sends the rest",
        ),
        (
            ("push",),
            (event(done=9, total=10, phase="pushing"),),
            {},
            "no blob was sent whole, the same command tries again",
        ),
        (("run",), (), {}, "nothing ran"),
        (
            ("run",),
            (event(done=1, total=9),),
            {"kept": "5000", "wanted": "9000"},
            "nothing ran; 5.0 kB of 9.0 kB of the image are kept, the same command goes on from there",
        ),
        (
            ("import",),
            (event(phase="done", done=10, total=10), event(B, phase="waiting", total=5)),
            {},
            "no image was made; 1 of 2 layers are in the store, the same command goes on with the rest",
        ),
        (("export", "a.tar"), (), {}, "nothing is left of it at a.tar"),
        (("export",), (), {}, "what was written is not whole"),
        (("commit", "/a{0}"), (), {}, "no image was made, and /a{0} is as it was"),
        (("gc",), (), {}, "what is deleted stays deleted, the same command goes on with the rest"),
    ],
)
def test_what_is_left_is_said_with_figures(words, events, details, text):
    assert interrupted(words, *events, **details) == text
