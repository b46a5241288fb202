"""The log of events: written with what it tells, read from any place on, bounded, and never silent on a loss."""

import itertools
import os
import re
import sqlite3
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import orlop
from orlop.images.events import (
    EVENT_KINDS,
    Event,
    EventQuery,
    EventStream,
    Position,
    check_query,
    cursor_of,
    seq_of,
)
from orlop.images.store import LocalStore
from orlop.metadata import events, images
from orlop.metadata.db import Database
from orlop.metadata.images import ImageRow
from orlop.observe import Call, CancelToken
from orlop.spec.digest import Digest
from orlop.testing.fake import FakeStore
from support.eventlog import check_log

NS = "default"
A, B = Digest.of(b"a"), Digest.of(b"b")


@pytest.fixture
def store(tmp_path):
    with orlop.open(tmp_path / "root", tmp_path / "run", settings=orlop.Settings(durable=False)) as found:
        yield found


def db_of(store):
    return store.verbs._core.db


def tell(store, *kinds, subject="a"):
    """Have events of these kinds, in one transaction."""

    def body(tx):
        for kind in kinds:
            events.add(tx, NS, kind, subject)

    db_of(store).write(body)


def seqs(found):
    return [event.seq for event in found]


# ------------------------------------------------------------------ with what it tells


def put(tx, name, config=A, manifest=None):
    images.put_image(tx, NS, name, config=config, manifest=manifest)


def test_an_event_is_there_if_and_only_if_its_change_is(store):
    def spoilt(tx):
        put(tx, "b")
        raise KeyError

    db_of(store).write(lambda tx: put(tx, "a"))
    with pytest.raises(KeyError):
        db_of(store).write(spoilt)
    db_of(store).write(lambda tx: images.delete_image(tx, NS, "a"))
    assert [(event.kind, event.subject) for event in store.events()] == [
        ("image.created", "a"),
        ("image.removed", "a"),
    ]


def test_of_writers_that_share_a_transaction_only_the_one_that_fails_tells_nothing(store):
    held, go = threading.Event(), threading.Event()

    def first(tx):  # the others queue meanwhile, and share the next one
        held.set()
        assert go.wait(60)

    def writes(number):
        def body(tx):
            put(tx, f"n{number}")
            if number == 3:
                raise KeyError

        try:
            db_of(store).write(body)
        except KeyError:
            assert number == 3

    leader = threading.Thread(target=db_of(store).write, args=(first,))
    leader.start()
    assert held.wait(60)
    crew = [threading.Thread(target=writes, args=(number,)) for number in range(8)]
    for one in crew:
        one.start()
    go.set()
    for one in (leader, *crew):
        one.join(60)
    found = list(store.events())
    assert seqs(found) == list(range(1, 8))
    assert {event.subject for event in found} == {f"n{number}" for number in range(8) if number != 3}


@pytest.mark.parametrize(
    ("config", "manifest", "kinds"),
    [
        (A, None, ["image.created"]),  # the same again is nothing new
        (A, B, ["image.created", "image.updated"]),
        (B, None, ["image.created", "image.updated"]),
    ],
)
def test_a_name_that_means_the_same_again_has_no_event(store, config, manifest, kinds):
    db_of(store).write(lambda tx: put(tx, "a"))
    db_of(store).write(lambda tx: put(tx, "a", config, manifest))
    found = list(store.events())
    assert [event.kind for event in found] == kinds
    if config == B:
        assert found[-1].attributes == {"id": B, "was": A}


def test_the_rows_and_the_log_agree_whatever_is_done_to_names(store):
    step = st.tuples(st.sampled_from("abc"), st.sampled_from([A, B, None]), st.sampled_from([None, A]))

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
    @given(st.lists(step, max_size=12))
    def check(steps):
        def body(tx):
            for name, config, manifest in steps:
                if config is None:
                    images.delete_image(tx, NS, name)
                else:
                    put(tx, name, config, manifest)

        db_of(store).write(body)
        rows = db_of(store).read(lambda tx: images.list_images(tx, NS))
        told = {}
        for event in store.events(kinds="image"):
            told.pop(event.subject, None)
            if event.kind != "image.removed":
                told[event.subject] = event.attributes["id"]
        assert told == {row.name: row.config for row in rows if isinstance(row, ImageRow)}

    check()


def test_times_are_in_nanoseconds_and_shown_in_rfc_3339():
    about = {"cursor": "", "seq": 1, "kind": "", "namespace": "", "subject": "", "attributes": {}}
    event = Event(time_ns=1_767_323_045_000_006_789, **about)
    assert event.time == "2026-01-02T03:04:05.000006Z"
    assert datetime.fromisoformat(event.time) == datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)


# ------------------------------------------------------------------ from a place on


def test_whoever_stops_anywhere_and_goes_on_sees_each_event_once(store):
    tell(store, *itertools.islice(itertools.cycle(EVENT_KINDS), 600))
    families = sorted({kind.partition(".")[0] for kind in EVENT_KINDS})
    every = list(store.events())

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
    @given(st.lists(st.integers(0, 300), max_size=5), st.sets(st.sampled_from([*families, *EVENT_KINDS])))
    def check(stops, kinds):
        found, cursor = [], "oldest"
        for stop in [*stops, None]:
            with store.events(cursor, kinds=tuple(kinds)) as stream:
                found += itertools.islice(stream, stop)
                cursor = stream.cursor
        wanted = [e for e in every if not kinds or {e.kind, e.kind.partition(".")[0]} & kinds]
        assert found == wanted
        assert cursor == every[-1].cursor  # also past those that were not asked for

    check()


def test_without_a_beginning_all_is_told_and_who_follows_is_told_what_comes(store):
    tell(store, "image.created", "image.removed")
    assert seqs(store.events()) == seqs(store.events("oldest")) == [1, 2]
    with store.events(follow=True) as stream:
        assert stream.cursor.endswith("-2")
        tell(store, "root.prepared")
        assert next(stream).seq == 3
    with store.events("oldest", follow=True) as stream:
        assert seqs(itertools.islice(stream, 3)) == [1, 2, 3]


def test_what_happens_after_a_stream_was_made_is_not_missed(store):
    stream = store.events(follow=True)
    tell(store, "image.created")
    assert next(stream).seq == 1
    stream.close()


def test_an_end_is_the_end_there_was_at_the_beginning(store):
    tell(store, "image.created")
    stream = store.events()
    tell(store, "image.created")
    assert seqs(stream) == [1]


def test_a_time_is_a_beginning(store):
    tell(store, "image.created")
    between = time.time_ns() + 1
    while time.time_ns() <= between:
        pass
    tell(store, "image.removed")
    assert seqs(store.events(datetime.fromtimestamp(0, UTC))) == [1, 2]
    query = EventQuery(since_ns=between)
    found = [step for step in store.verbs.watch_events(query, call=Call()) if isinstance(step, Event)]
    assert seqs(found) == [2]
    assert list(store.events(time.time() + 1000)) == []


def test_another_process_is_followed(store, tmp_path):
    # Another connection of SQLite's is to it what another process is; one is tried in integration/test_events.
    other = Database.open(tmp_path / "root/meta.db", tmp_path / "root/locks/write")
    with store.events(follow=True, kinds="image.pulled") as stream:
        other.write(lambda tx: events.add(tx, NS, "image.created", "a"))
        other.write(lambda tx: events.add(tx, NS, "image.pulled", "a"))
        assert next(stream).seq == 2
    other.close()


def test_the_version_changes_when_another_writes_and_not_when_nobody_does(store, tmp_path):
    db = db_of(store)
    before = db.version()
    assert db.version() == before
    assert db.read(events.log_of).last == 0
    assert db.version() == before
    tell(store, "image.created")
    between = db.version()
    assert between != before
    with sqlite3.connect(tmp_path / "root/meta.db") as stranger:
        stranger.execute("UPDATE events SET subject = 'b'")
    assert db.version() != between


@pytest.mark.parametrize("late", [True, False], ids=["deadline", "cancel"])
def test_who_follows_ends_with_the_call(store, late):
    token = CancelToken()
    call = Call(cancel=token, deadline=time.monotonic() + 0.05 if late else None)
    stream = store.events(follow=True, call=call)
    if not late:
        threading.Timer(0.05, token.cancel).start()
    with pytest.raises(orlop.DeadlineExceeded if late else orlop.Cancelled):
        next(stream)


def test_a_forked_child_does_not_inherit_the_connection_that_looks(store):
    db = db_of(store)
    db.version()
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if db._looker is None and db.version() and db.read(events.log_of).last == 0 else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    tell(store, "image.created")
    assert seqs(store.events()) == [1]


# ------------------------------------------------------------------ bounded, and never silently


def trimmed(store, most, age=0.0):
    db_of(store)._last = events.Trimmer(most, age)


def test_the_log_keeps_the_last_events_and_never_loses_the_last(store):
    trimmed(store, 10)
    for _ in range(50):
        tell(store, "image.created")
        log = db_of(store).read(events.log_of)
        assert log.last - log.first < 20
    assert seqs(store.events())[-10:] == list(range(41, 51))
    trimmed(store, 1)
    for number in range(51, 56):
        tell(store, "image.created")
        assert seqs(store.events())[-1] == number


def test_what_is_too_old_goes_but_for_the_last(store):
    trimmed(store, 1000)
    tell(store, *["image.created"] * 3)
    db_of(store).write(lambda tx: tx.execute("UPDATE events SET time_ns = 1"))
    trimmed(store, 1000, age=60)
    tell(store, "image.removed")
    assert seqs(store.events()) == [4]
    db_of(store).write(lambda tx: tx.execute("UPDATE events SET time_ns = 1"))
    trimmed(store, 1000, age=60)
    db_of(store).write(lambda tx: None)
    assert seqs(store.events()) == [4]


def test_one_transaction_drops_a_bounded_number(store):
    trimmed(store, 10_000)
    for _ in range(5):
        tell(store, *["image.created"] * 1_000)
    trimmed(store, 100)
    db_of(store).write(lambda tx: None)
    assert 2_000 < db_of(store).read(events.log_of).first < 3_000
    db_of(store).write(lambda tx: None)
    db_of(store).write(lambda tx: None)
    assert db_of(store).read(events.log_of).first == 4_901


def test_the_log_is_bounded_though_each_transaction_has_a_connection_of_its_own(store):
    trimmed(store, 10)
    for _ in range(50):
        tell(store, "image.created")
        db_of(store).before_fork()  # closes what is open
        db_of(store).after_fork_in_parent()
    log = db_of(store).read(events.log_of)
    assert log.last - log.first < 20


def test_settings_bound_the_log(tmp_path):
    wanted = orlop.Settings(durable=False, events_kept=5)
    with orlop.open(tmp_path / "root", tmp_path / "run", settings=wanted) as store:
        for _ in range(30):
            tell(store, "image.created")
        assert 5 <= len(list(store.events())) <= 10


def test_other_settings_bound_the_log_of_an_open_store(store):
    tell(store, *["image.created"] * 30)
    store.verbs.reconfigure(orlop.Settings(durable=False, events_kept=5))
    tell(store, "image.created")
    assert seqs(store.events()) == [27, 28, 29, 30, 31]


def test_numbers_that_a_power_cut_may_have_taken_back_are_another_logs(store, tmp_path):
    tell(store, "image.created", "image.created")
    cursor = next(iter(store.events())).cursor
    store.close()
    with sqlite3.connect(tmp_path / "root/meta.db") as database:
        assert database.execute("UPDATE unsynced SET boot = 'another'").rowcount == 1
    names = []
    for durable in (True, False, True):
        again = orlop.open(tmp_path / "root", tmp_path / "run", settings=orlop.Settings(durable=durable))
        with again, pytest.raises(orlop.FailedPrecondition, match="another store's events") as caught:
            list(again.events(cursor))
        names.append(caught.value.details["oldest"])
    assert len(set(names)) == 1


@pytest.mark.parametrize("cursor", ["00000000-7", "9"], ids=["another log's", "of the future"])
def test_where_there_is_something_again_is_told_of_a_log_that_was_trimmed(store, cursor):
    trimmed(store, 5)
    tell(store, *["image.created"] * 20)
    log = db_of(store).read(events.log_of)
    with pytest.raises(orlop.FailedPrecondition) as caught:
        list(store.events(cursor if "-" in cursor else f"{log.id}-99"))
    assert list(store.events(caught.value.details["oldest"])) == list(store.events("oldest")) != []


def test_a_cursor_before_what_is_kept_is_an_error_that_says_what_to_do(store):
    trimmed(store, 5)
    tell(store, "image.created")
    cursor = next(iter(store.events())).cursor
    tell(store, *["image.created"] * 20)
    with pytest.raises(orlop.FailedPrecondition, match="events after it are not kept any more") as caught:
        list(store.events(cursor))
    assert caught.value.details["lost"] == cursor
    kept = list(store.events(caught.value.details["oldest"]))
    assert kept == list(store.events("oldest")) != []


def test_who_follows_too_slowly_is_told(store):
    trimmed(store, 5)
    tell(store, "image.created")
    stream = store.events("oldest", follow=True)
    assert next(stream).seq == 1
    tell(store, *["image.created"] * 50)
    with pytest.raises(orlop.FailedPrecondition, match="not kept any more"):
        next(stream)


def test_a_time_before_what_is_kept_is_warned_of(store):
    warnings = []

    class Heard:
        def progress(self, event):
            pass

        def warning(self, text):
            warnings.append(text)

    tell(store, *["image.created"] * 3)
    assert len(list(store.events(0, call=Call(observer=Heard())))) == 3
    assert warnings == []
    trimmed(store, 1)
    tell(store, *["image.created"] * 3)
    list(store.events(0, call=Call(observer=Heard())))
    assert len(warnings) == 1


def test_a_cursor_of_another_store_or_of_a_lost_future_is_an_error(store):
    tell(store, "image.created")
    log = db_of(store).read(events.log_of).id
    for cursor in ("00000000-1", cursor_of(log, 2)):
        with pytest.raises(orlop.FailedPrecondition) as caught:
            list(store.events(cursor))
        assert seqs(store.events(caught.value.details["oldest"])) == [1]


WRONG = [
    EventQuery(cursor="x"),
    EventQuery(cursor="1a2b3c4d-01"),
    EventQuery(cursor="1a2b3c4d--1"),
    EventQuery(cursor="1a2b3c4d-" + "9" * 40),
    EventQuery(cursor="1a2b3c4d-1\n"),
    EventQuery(cursor="1a2b3c4d-1", oldest=True),
    EventQuery(since_ns=1, oldest=True),
    EventQuery(since_ns=-1),
    EventQuery(since_ns=2**63),
    EventQuery(kinds=("",)),
    EventQuery(kinds=("image.*",)),
    EventQuery(kinds=("image",) * 101),
]


def test_what_is_no_question_is_refused_at_once(store):
    for verbs in (store.verbs, FakeStore()):
        for query in WRONG:
            with pytest.raises(orlop.InvalidArgument):
                verbs.watch_events(query, call=Call())


def test_a_cursor_is_read_as_it_is_written():
    check_query(EventQuery(cursor=cursor_of("1a2b3c4d", 0)))
    assert seq_of(cursor_of("1a2b3c4d", 17), "1a2b3c4d", 1, 17) == 17


# ------------------------------------------------------------------ the same of a fake, and in a backup


def test_a_fake_tells_what_it_did():
    fake = FakeStore()
    fake.publish("alpine")
    fake.pull("alpine")
    fake.tag("alpine", "mine")
    stream = EventStream(fake.watch_events(EventQuery(kinds=("image",))))
    assert [(event.kind, event.subject) for event in stream] == [
        ("image.pulled", "docker.io/library/alpine:latest"),
        ("image.created", "docker.io/library/mine:latest"),
    ]
    steps = list(fake.watch_events(EventQuery(kinds=("root",))))
    assert steps == [Position(cursor="0fa4e000-0"), Position(cursor="0fa4e000-2")]


def test_a_backup_has_no_events_and_another_log(store, tmp_path):
    tell(store, "image.created")
    store.backup(tmp_path / "b")
    raw = (tmp_path / "b").read_bytes()
    start = raw.index(b"SQLite format 3\0")
    (tmp_path / "meta.db").write_bytes(raw[start:])
    with sqlite3.connect(tmp_path / "meta.db") as copy:
        assert copy.execute("SELECT count(*) FROM events").fetchone() == (0,)
        assert copy.execute("SELECT id FROM event_log").fetchone()[0] != db_of(store).read(events.log_of).id


def test_all_is_told_of_a_store_that_is_changed_by_its_verbs(store):
    assert isinstance(store.verbs, LocalStore)
    assert check_log(store) == []


def test_the_page_has_each_kind_and_what_it_says():
    page = (Path(__file__).parents[2] / "docs/events.md").read_text()
    rows = re.findall(r"^\| `([a-z.-]+)` \|[^|]*\| ([^|]+) \|", page, re.MULTILINE)
    assert dict(rows) == dict(EVENT_KINDS)
