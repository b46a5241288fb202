"""containerd's Content over a real unix socket: the contract of its content stores, property by property."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import pytest

import orlop
from orlop.images.store import LocalStore
from orlop.metadata import contents
from orlop.metadata.contents import ContentRow
from orlop.metadata.db import Transaction
from orlop.service import Daemon
from orlop.service.table import OWNERS
from orlop.spec.digest import Digest
from orlop.testing.registry import MemoryRegistry
from support import images
from support.containerds import Service, containerd
from support.contentclient import SOON, Content
from support.full import Faults
from support.layers import Layer

pytestmark = pytest.mark.root

_numbers = itertools.count()
DATA = random.Random(8).randbytes(300_000)
DIGEST = Digest.of(DATA)
MIB = 1 << 20


@contextmanager
def serving(folder: Path, **settings: object) -> Iterator[tuple[LocalStore, grpc.Channel]]:
    """A store behind a daemon, and a channel to it."""
    store = LocalStore.open(folder / "root", folder / "run", settings=orlop.Settings(**settings))
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", 64 * MIB)]
    try:
        with (
            tempfile.TemporaryDirectory(prefix="orlop-", dir="/var/tmp") as place,  # sockets need short paths
            Daemon(store, f"unix://{place}/s/o.sock"),
            grpc.insecure_channel(f"unix:{place}/s/o.sock", options=options) as channel,
        ):
            yield store, channel
    finally:
        store.close()


@pytest.fixture(scope="module")
def served(lab: Path) -> Iterator[tuple[LocalStore, grpc.Channel]]:
    folder = lab / f"content-{os.getpid()}"
    folder.mkdir()
    with serving(folder) as running:
        yield running
    shutil.rmtree(folder)


@pytest.fixture
def store(served: tuple[LocalStore, grpc.Channel]) -> LocalStore:
    return served[0]


@pytest.fixture
def new(served: tuple[LocalStore, grpc.Channel]) -> Iterator[Callable[[], Content]]:
    """Namespaces that nobody had before; what was written goes in the end."""
    made: list[Content] = []

    def make() -> Content:
        made.append(Content(served[1], f"n{next(_numbers)}"))
        return made[-1]

    yield make
    everybody = Content(served[1], None)
    for digest in everybody.list():
        everybody.delete(digest)
    for one in (*made, everybody):  # in its own namespace an abort need not look for the ref in all
        for ref in one.statuses():
            one.abort(ref)


@pytest.fixture
def content(new: Callable[[], Content]) -> Content:
    return new()


@contextmanager
def refused(code: str, about: str = "") -> Iterator[None]:
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert caught.value.code().name == code, caught.value.details()
    assert about in caught.value.details()


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def nanoseconds(stamp) -> int:
    return stamp.seconds * 10**9 + stamp.nanos


# ------------------------------------------------------------------ blobs


def test_a_blob_is_there_from_its_commit_to_its_deletion(content: Content, store: LocalStore):
    before = time.time_ns()
    labels = {"containerd.io/gc.ref.content.0": str(DIGEST), "empty": ""}
    assert content.put(DATA, labels=labels) == DIGEST
    info = content.info(DIGEST)
    assert (info.digest, info.size) == (DIGEST, len(DATA))
    assert dict(info.labels) == {"containerd.io/gc.ref.content.0": str(DIGEST)}
    assert before <= nanoseconds(info.created_at) == nanoseconds(info.updated_at) <= time.time_ns()
    assert content.read(DIGEST) == DATA
    assert content.list() == [DIGEST]
    assert content.list('labels."containerd.io/gc.ref.content.0"', f"size=={len(DATA) + 1}") == [DIGEST]
    assert content.list("labels.empty") == []
    assert content.statuses() == []
    content.delete(DIGEST)
    for call in (content.info, content.read, content.delete):
        with refused("NOT_FOUND"):
            call(DIGEST)
    path = store.root / "content/blobs/sha256" / DIGEST.hex
    eventually(lambda: not path.exists())


def test_labels_are_changed_as_the_paths_say(content: Content):
    content.put(DATA, labels={"a": "1", "b": "2"})
    created = content.info(DIGEST)
    updated = content.update(DIGEST, {"a": "3", "c": "4"}, "labels.a", "labels.b")
    assert dict(updated.labels) == {"a": "3"}
    assert nanoseconds(updated.updated_at) > nanoseconds(created.updated_at)
    assert updated.created_at == created.created_at
    assert content.info(DIGEST) == updated
    assert dict(content.update(DIGEST, {"x": "y"}).labels) == {"x": "y"}
    with refused("INVALID_ARGUMENT", "cannot be changed"):
        content.update(DIGEST, {}, "size")
    with refused("NOT_FOUND"):
        content.update(Digest.of(b"another"), {"a": "b"})


def test_a_range_is_what_is_there_of_it(content: Content):
    content.put(DATA)
    for offset, size, expected in (
        (0, 0, DATA),
        (0, 10, DATA[:10]),
        (5, 10, DATA[5:15]),
        (len(DATA) - 3, 0, DATA[-3:]),
        (len(DATA) - 3, 100, DATA[-3:]),
        (len(DATA), 0, b""),
        (len(DATA), 1, b""),
        (-5, 4, DATA[:4]),
        (2, -1, DATA[2:]),
        (1, 2**63 - 1, DATA[1:]),
    ):
        assert content.read(DIGEST, offset, size) == expected, (offset, size)


def test_a_range_behind_the_end_is_out_of_range(content: Content):
    content.put(DATA)
    with refused("OUT_OF_RANGE"):
        content.read(DIGEST, len(DATA) + 1)


def test_parts_tell_where_they_are(content: Content):
    data = bytes(2 * MIB + 5)
    digest = content.put(data)
    parts = [(part.offset, len(part.data)) for part in content.parts(digest, 7)]
    assert parts == [(7, MIB), (7 + MIB, MIB - 2)]


def test_what_is_open_is_read_to_its_end_though_it_is_deleted(content: Content):
    data = random.Random(9).randbytes(20 * MIB)  # more than fits between daemon and client
    digest = content.put(b"", ref="other") and Digest.of(data)
    with content.write("w") as write:
        for offset in range(0, len(data), 4 * MIB):
            write.write(offset, data[offset : offset + 4 * MIB])
        write.commit(len(data))
    parts = content.parts(digest)
    read = next(parts).data
    content.delete(digest)
    assert read + b"".join(part.data for part in parts) == data


def test_a_lost_file_is_data_loss_and_may_be_written_again(content: Content, store: LocalStore):
    content.put(DATA)
    (store.root / "content/blobs/sha256" / DIGEST.hex).unlink()
    with refused("DATA_LOSS"):
        content.read(DIGEST)
    assert content.put(DATA) == DIGEST
    assert content.read(DIGEST) == DATA


def test_a_list_of_more_than_one_message_has_everything_once(content: Content, store: LocalStore):
    digests = sorted(Digest.of(b"%d" % number) for number in range(301))

    def add(tx: Transaction) -> None:
        for digest in digests:
            contents.add_content(tx, ContentRow(digest=digest, namespace=content.namespace, **nothing))

    def remove(tx: Transaction) -> None:
        tx.execute("DELETE FROM contents WHERE namespace = ?", (content.namespace,))

    nothing = {"size": 0, "labels": {}, "created": 0, "updated": 0}
    store._core.db.write(add)
    try:
        assert content.list() == digests
        assert content.list(f"digest=={digests[300]}", f"digest=={digests[0]}") == [digests[0], digests[300]]
    finally:
        store._core.db.write(remove)


@pytest.mark.hostile(14)
def test_long_labels_do_not_make_a_list_that_no_client_takes(content: Content):
    labels = {f"k{number}": "v" * 1_000 for number in range(1_000)}
    digests = [content.put(b"%d" % number, labels=labels) for number in range(6)]
    assert content.list() == sorted(digests)  # gRPC's own limit of a message is 4 MiB


# ------------------------------------------------------------------ writes


def test_a_ref_has_one_writer_at_a_time(content: Content, new: Callable[[], Content]):
    with content.write("r") as first:
        first.stat()
        with content.write("r") as second, refused("UNAVAILABLE"):
            second.stat()
        with refused("UNAVAILABLE"):
            content.abort("r")
        with content.write("s") as other, new().write("r") as elsewhere:
            other.stat()
            elsewhere.stat()
        first.write(0, DATA[:10])
    with content.write("r") as again:
        assert again.stat().offset == 10
    content.abort("r")
    with refused("NOT_FOUND"):
        content.abort("r")
    with content.write("r") as anew:
        assert anew.stat().offset == 0


def test_a_status_is_exact(content: Content):
    before = time.time_ns()
    with content.write("r") as write:
        answer = write.stat(total=len(DATA), expected=DIGEST)
        started = nanoseconds(answer.started_at)
        assert before <= started <= nanoseconds(answer.updated_at) <= time.time_ns()
        assert (answer.offset, answer.total, answer.digest) == (0, len(DATA), Digest.of(b""))
        before = time.time_ns()
        answer = write.write(0, DATA[:1000])
        assert (answer.offset, answer.digest) == (1000, Digest.of(DATA[:1000]))
        live = content.status("r")
        assert (live.ref, live.offset, live.total, live.expected) == ("r", 1000, len(DATA), DIGEST)
        assert nanoseconds(live.started_at) == started
        assert before <= nanoseconds(live.updated_at) <= time.time_ns()
    assert content.status("r") == live
    with content.write("r") as again:
        answer = again.stat()
        assert (answer.offset, answer.total, answer.digest) == (1000, len(DATA), Digest.of(DATA[:1000]))
        assert nanoseconds(answer.started_at) == started
        assert nanoseconds(answer.updated_at) == nanoseconds(live.updated_at)
    with refused("NOT_FOUND"):
        content.status("s")
    assert content.statuses() == ["r"]
    assert content.statuses("ref~=^s", "ref==r") == ["r"]
    assert content.statuses("ref==s") == []


def test_bytes_go_to_the_end_and_from_the_start_all_is_written_anew(content: Content):
    with content.write("r") as write:
        assert write.write(0, DATA[:10]).offset == 10
        assert write.write(10, DATA[10:20]).offset == 20
        assert write.write(0, DATA[:5]).offset == 5
        assert write.stat().digest == Digest.of(DATA[:5])
        assert write.write(5, DATA[5:]).digest == DIGEST
        assert write.commit(len(DATA), expected=DIGEST, total=len(DATA)).digest == DIGEST
    assert content.read(DIGEST) == DATA


@pytest.mark.parametrize("offset", [1, 9, 11, 2**62])
def test_another_offset_is_out_of_range_and_nothing_is_lost(content: Content, offset: int):
    with content.write("r") as write:
        write.write(0, DATA[:10])
        with refused("OUT_OF_RANGE"):
            write.write(offset, b"x")
    with content.write("r") as again:
        assert again.stat().digest == Digest.of(DATA[:10])


@pytest.mark.parametrize(
    "wrong", [{"expected": Digest.of(b"other")}, {"total": len(DATA) + 1}, {"total": 1, "expected": DIGEST}]
)
def test_what_is_not_as_expected_is_refused_and_stays(content: Content, wrong: dict):
    with content.write("r") as write:
        write.write(0, DATA)
        with refused("FAILED_PRECONDITION"):
            write.commit(len(DATA), **wrong)
    assert content.status("r").offset == len(DATA)
    assert content.list() == []
    with content.write("r") as again:
        assert again.stat(expected=DIGEST, total=len(DATA)).offset == len(DATA)
        assert again.commit(len(DATA)).digest == DIGEST
    assert content.statuses() == []


def test_what_exists_frees_the_ref(content: Content):
    content.put(DATA)
    with content.write("r") as write:
        write.write(0, DATA)
        with refused("ALREADY_EXISTS"):
            write.commit(len(DATA))
    assert content.statuses() == []
    with content.write("r") as write:
        write.write(0, DATA[:5])
    with content.write("r") as write, refused("ALREADY_EXISTS"):
        write.stat(expected=DIGEST)
    assert content.statuses() == []
    with content.write("r") as write:
        write.write(0, DATA[:5])
        with refused("ALREADY_EXISTS"):
            write.write(5, DATA[5:], expected=DIGEST)
    assert content.statuses() == []
    assert content.put(b"something else", ref="r")


def test_a_client_that_goes_away_releases_the_ref_and_its_bytes_wait(content: Content):
    write = content.write("r")
    write.write(0, DATA[:1234])
    write.cancel()

    def is_free() -> bool:
        with content.write("r") as again:
            try:
                return again.stat().offset == 1234
            except grpc.RpcError as exc:
                if exc.code() is grpc.StatusCode.UNAVAILABLE:
                    return False
                raise

    eventually(is_free)


def test_one_message_may_do_all(content: Content):
    with content.write("r") as write:
        answer = write.commit(0, data=DATA, total=len(DATA), expected=DIGEST, labels={"a": "b"})
    assert (answer.action, answer.offset, answer.total, answer.digest) == (2, len(DATA), len(DATA), DIGEST)
    assert dict(content.info(DIGEST).labels) == {"a": "b"}
    with content.write("r") as write:
        assert write.commit(0).digest == Digest.of(b"")
    assert content.read(Digest.of(b"")) == b""


def test_a_digest_of_another_algorithm_is_verified_too(content: Content):
    import hashlib

    digest = "sha512:" + hashlib.sha512(DATA).hexdigest()
    for ref, opening in (("r", {"expected": digest}), ("s", {})):
        with content.write(ref) as write:
            write.stat(**opening)
            write.write(0, DATA)
            assert write.commit(len(DATA), expected=digest).digest == digest
        assert content.read(digest) == DATA
        content.delete(digest)


# ------------------------------------------------------------------ namespaces


def test_a_namespace_sees_what_is_its_own(new: Callable[[], Content]):
    one, two = new(), new()
    one.put(DATA, labels={"a": "1"})
    assert two.list() == []
    for call in (two.info, two.read, two.delete):
        with refused("NOT_FOUND"):
            call(DIGEST)
    two.put(DATA, labels={"a": "2"})
    assert (one.info(DIGEST).labels["a"], two.info(DIGEST).labels["a"]) == ("1", "2")
    one.delete(DIGEST)
    assert one.list() == []
    assert two.read(DIGEST) == DATA


def test_what_another_namespace_has_is_shared_by_its_digest(new: Callable[[], Content]):
    one, two = new(), new()
    one.put(DATA)
    with two.write("r") as write:
        answer = write.stat(total=len(DATA), expected=DIGEST)
        assert (answer.offset, answer.digest) == (len(DATA), DIGEST)
        assert two.list() == []
        assert (two.statuses(), one.statuses()) == (["r"], [])  # though there is no file of it
        assert (two.status("r").offset, two.status("r").expected) == (len(DATA), DIGEST)
        for someone in (two, Content(two.channel, None)):
            with refused("UNAVAILABLE"):
                someone.abort("r")
        one.delete(DIGEST)  # meanwhile
        assert write.commit(len(DATA)).digest == DIGEST
    assert two.statuses() == []
    assert two.read(DIGEST) == DATA
    with one.write("r") as write:  # of another size it cannot be
        assert write.stat(total=len(DATA) + 1, expected=DIGEST).offset == 0


def test_what_is_shared_can_be_gone_on_with(new: Callable[[], Content]):
    one, two = new(), new()
    one.put(DATA)
    with two.write("r") as write:
        assert write.stat(total=len(DATA), expected=DIGEST).offset == len(DATA)
        longer = write.write(len(DATA), b"more")
        assert longer.digest == Digest.of(DATA + b"more")
        write.commit(len(DATA) + 4, total=len(DATA) + 4, expected=longer.digest)
    assert two.list() == [longer.digest]
    assert two.read(longer.digest) == DATA + b"more"
    assert one.read(DIGEST) == DATA
    with two.write("s") as write:
        write.stat(total=len(DATA), expected=DIGEST)
        assert write.write(0, DATA[:7]).digest == Digest.of(DATA[:7])
    assert two.status("s").offset == 7


def test_isolated_namespaces_share_only_what_is_shareable(workdir: Path):
    settings = {"content_sharing": "isolated", "content_shareable": ("common",)}
    with serving(workdir, **settings) as (_, channel):
        one, two, common = (Content(channel, name) for name in ("one", "two", "common"))
        one.put(DATA)
        with two.write("r") as write:
            assert write.stat(total=len(DATA), expected=DIGEST).offset == 0
        common.put(DATA)
        with two.write("r") as write:
            assert write.stat(total=len(DATA), expected=DIGEST).offset == len(DATA)
            write.commit(len(DATA))
        assert two.read(DIGEST) == DATA


def test_who_says_no_namespace_writes_for_all_and_asks_about_all(
    served: tuple[LocalStore, grpc.Channel], new: Callable[[], Content]
):
    one, two, everybody = new(), new(), Content(served[1], None)
    common = everybody.put(b"of everybody")
    mine = one.put(DATA)
    assert one.list() == sorted([common, mine])
    assert two.list() == [common]
    assert everybody.list() == sorted([common, mine])
    assert everybody.read(mine) == DATA
    assert two.read(common) == b"of everybody"
    with everybody.write("r") as write:
        write.write(0, b"x")
    assert two.status("r").offset == 1
    two.abort("r")
    with one.write("s") as write:
        write.write(0, b"x")
    with refused("NOT_FOUND"):
        two.status("s")
    everybody.abort("s")
    with refused("NOT_FOUND"):
        two.delete(common)  # it is not its own
    for digest in (common, mine):
        everybody.delete(digest)
    assert one.list() == everybody.list() == []


# ------------------------------------------------------------------ orlop's own, and collections


@pytest.fixture
def image(store: LocalStore, workdir: Path) -> Iterator[images.Image]:
    made = images.make_image([Layer().file("a", b"a").tar()])
    store.load(str(images.write_layout(workdir / "layout", {"v1": made})), name="localhost/app:v1")
    yield made
    if any(info.name == "localhost/app:v1" for info in store.images()):
        store.remove("localhost/app:v1")


def test_images_of_orlop_are_not_listed_and_lose_nothing(
    content: Content, store: LocalStore, image: images.Image
):
    assert content.list() == []
    with refused("NOT_FOUND"):
        content.info(image.digest)
    with content.write("r") as write:  # but bytes that are there need not come again
        assert write.stat(total=len(image.document), expected=image.digest).offset == len(image.document)
        write.commit(len(image.document))
    assert content.read(image.digest) == image.document
    content.delete(image.digest)
    store.collect()
    assert store.inspect("localhost/app:v1").manifest == image.document


def test_what_was_written_stays_whatever_is_collected(
    content: Content, store: LocalStore, image: images.Image
):
    content.put(image.document)
    content.put(DATA)
    store.remove("localhost/app:v1")
    assert image.digest not in str(store.collect().items)
    assert content.read(image.digest) == image.document
    assert content.read(DIGEST) == DATA
    assert [(one.kind, one.name) for one in store.explain(f"blob {DIGEST}").kept_by] == [
        ("content", content.namespace)
    ]
    assert store.check(full=True).clean
    content.delete(image.digest)
    content.delete(DIGEST)
    store.collect()  # and wait for what is deleted behind the calls
    assert store.collect(dry_run=True).items == ()
    assert os.listdir(store.root / "content/blobs/sha256") == []


def test_a_write_waits_a_day_and_an_open_one_as_long_as_it_is_open(content: Content, store: LocalStore):
    def collect() -> None:
        for data in (store.root / "content/ingest").glob("*/data"):
            os.utime(data, (0, 0))
        store.collect()

    with content.write("r") as write:
        write.write(0, DATA[:10])
        store.collect()
        collect()
        assert write.write(10, DATA[10:20]).offset == 20
    store.collect()
    assert content.status("r").offset == 20
    collect()
    assert content.statuses() == []


# ------------------------------------------------------------------ who asks for too much, or for nonsense


@pytest.mark.hostile(6, 18)
@pytest.mark.parametrize(
    "ref", ["../../etc/passwd", "/", ".", "a/b/c", "x\ny", "💥", "x" * 4_096, " ", "ref-0", "%00", "a,b:c\\d"]
)
def test_any_text_is_a_ref(content: Content, store: LocalStore, ref: str):
    with content.write(ref) as write:
        write.write(0, b"x")
    assert content.statuses() == [ref]
    assert content.status(ref).offset == 1
    names = os.listdir(store.root / "content/ingest")
    assert len(names) == 1
    assert names[0].startswith("ref-")
    content.abort(ref)
    assert os.listdir(store.root / "content/ingest") == []


@pytest.mark.hostile(6, 9, 16, 18)
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("INVALID_ARGUMENT", {"ref": ""}),
        ("INVALID_ARGUMENT", {"ref": "x" * 4_097}),
        ("INVALID_ARGUMENT", {"ref": "a\0b"}),
        ("INVALID_ARGUMENT", {"expected": "sha256:../../x"}),
        ("INVALID_ARGUMENT", {"expected": "sha256:" + "A" * 64}),
        ("INVALID_ARGUMENT", {"expected": "md5:" + "0" * 32}),
        ("INVALID_ARGUMENT", {"action": 7}),
        ("INVALID_ARGUMENT", {"action": 1, "offset": -1}),
        ("OUT_OF_RANGE", {"action": 1, "offset": 2**63 - 1}),
        ("RESOURCE_EXHAUSTED", {"total": 2**63 - 1}),
        ("RESOURCE_EXHAUSTED", {"action": 1, "data": bytes(17 * MIB)}),
        ("INVALID_ARGUMENT", {"action": 2, "labels": {"k": "v" * 4_096}}),
        ("INVALID_ARGUMENT", {"action": 2, "labels": {f"k{number}": "v" for number in range(1_025)}}),
        ("INVALID_ARGUMENT", {"action": 2, "labels": {"k\0": "v"}}),
        ("INVALID_ARGUMENT", {"action": 2, "labels": {"": "v"}}),
    ],
)
def test_a_message_that_cannot_be_is_refused_and_leaves_no_lock(content: Content, code: str, message: dict):
    with content.write("r") as write, refused(code):
        write.send(**{"action": 0, **message})
    with content.write("r") as again:
        assert again.stat().offset == 0


@pytest.mark.hostile(18)
@pytest.mark.parametrize("digest", ["", "sha256:../../x", "sha256:" + "0" * 63, "x", "sha256:" + "g" * 64])
def test_what_is_no_digest_is_refused(content: Content, digest: str):
    for call in (content.info, content.read, content.delete, lambda one: content.update(one, {"a": "b"})):
        with refused("INVALID_ARGUMENT"):
            call(digest)


@pytest.mark.hostile(6)
@pytest.mark.parametrize("namespace", ["..", "a/b", "x" * 77, "-"])
def test_what_is_no_namespace_is_refused(served: tuple[LocalStore, grpc.Channel], namespace: str):
    content = Content(served[1], namespace)
    calls: tuple[Callable[[], object], ...] = (
        lambda: content.info(DIGEST),
        lambda: content.read(DIGEST),
        lambda: content.update(DIGEST, {}),
        lambda: content.delete(DIGEST),
        content.list,
        content.statuses,
        lambda: content.status("r"),
        lambda: content.abort("r"),
        lambda: content.put(DATA),
    )
    for call in calls:
        with refused("INVALID_ARGUMENT", "not a namespace"):
            call()


def test_a_stream_is_about_one_ref(content: Content):
    with content.write("r") as write:
        write.stat()
        with refused("INVALID_ARGUMENT", "another ref"):
            write.send("WRITE", ref="s", data=b"x")
    with content.write("r") as write:
        write.stat()
        assert write.send("WRITE", ref="r", data=b"x").offset == 1


@pytest.mark.hostile(14)
def test_labels_cannot_pile_up(content: Content):
    content.put(DATA, labels={f"k{number}": "v" for number in range(1_024)})
    with refused("INVALID_ARGUMENT", "labels"):
        content.update(DIGEST, {"one": "more"}, "labels.one")
    assert len(content.info(DIGEST).labels) == 1_024


@pytest.mark.hostile(40)
@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, "ResourceExhausted"), (errno.EIO, "DataLoss")])
def test_a_disk_that_fails_anywhere_spoils_nothing(
    content: Content, store: LocalStore, number: int, error: str
):
    def go_on() -> None:
        write = store.content_store.write(content.namespace, "r", len(DATA), None)
        try:
            for end in (len(DATA) // 2, len(DATA)):
                offset = write.status.offset
                write.write(offset, DATA[offset : max(end, offset)])
            write.commit({})
        finally:
            write.close()

    for at in itertools.count():
        with Faults(number, at=at) as faults, suppress(getattr(orlop, error)):
            go_on()
        if content.list() == []:
            assert faults.failed
            with content.write("r") as write:
                answer = write.stat()
                assert answer.digest == Digest.of(DATA[: answer.offset])
            go_on()
        assert content.read(DIGEST) == DATA
        assert content.statuses() == []
        content.delete(DIGEST)
        if not faults.failed:
            break
    assert at > 3


def test_open_writes_hold_up_no_other_call(content: Content, store: LocalStore):
    content.put(DATA)
    with ExitStack() as stack:
        writes = [stack.enter_context(content.write(f"r{number}")) for number in range(40)]
        assert len(writes) > orlop.service.ServiceLimits().quick
        for write in writes:
            write.stat()
        assert content.read(DIGEST) == DATA
        assert content.list() == [DIGEST]
        assert len(content.statuses()) == len(writes)
        assert content.put(b"one more") == Digest.of(b"one more")
        for write in writes:
            assert write.write(0, b"x").offset == 1


def test_content_is_for_root_and_the_daemons_own_user_alone():
    service = "/containerd.services.content.v1.Content"
    for method in ("Info", "Update", "List", "Delete", "Read", "Status", "ListStatuses", "Write", "Abort"):
        assert f"{service}/{method}" in OWNERS


# ------------------------------------------------------------------ a daemon that is killed, and containerd


@pytest.fixture(scope="module")
def daemon() -> Iterator[Service]:
    """A daemon of its own process, which tests kill and start again, with no content."""
    folder = Path(tempfile.mkdtemp(prefix="orlop-", dir="/var/tmp"))  # sockets need short paths
    try:
        with Service(folder / "o") as running:
            yield running
    finally:
        shutil.rmtree(folder)


@pytest.mark.hostile(39)
def test_a_killed_daemon_loses_no_byte_of_a_write(daemon: Service):
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        content = Content(channel, "n")
        kept = content.put(b"kept", labels={"a": "b"})
        write = content.write("r")
        write.stat(total=len(DATA), expected=DIGEST)
        write.write(0, DATA[:100_000])
        write.write(100_000, DATA[100_000:200_000])
        before = content.status("r")
        daemon.stop(signal.SIGKILL)
        write.cancel()
    daemon.start()
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        content = Content(channel, "n")
        after = content.status("r")
        assert (after.offset, after.total, after.expected) == (200_000, len(DATA), DIGEST)
        assert after.started_at == before.started_at
        assert content.read(kept) == b"kept"
        assert dict(content.info(kept).labels) == {"a": "b"}
        with content.write("r") as write:
            assert write.stat().digest == Digest.of(DATA[:200_000])
            write.write(200_000, DATA[200_000:])
            assert write.commit(len(DATA)).digest == DIGEST
        assert content.read(DIGEST) == DATA
        for digest in content.list():
            content.delete(digest)


def test_containerd_keeps_its_content_in_orlop(daemon: Service):
    """Debian's containerd, without its own content plugin, and `ctr content`; clients and daemon die."""
    made = images.make_image([Layer().file("a", DATA).tar()])
    place = daemon.folder.parent
    file = place / "blob"
    file.write_bytes(DATA)
    with (
        MemoryRegistry() as registry,
        containerd(place / "c", proxies={"orlop": ("content", daemon.socket)}, own_content=False) as ctrd,
    ):
        for blob in made.blobs.values():
            registry.add_blob("app", blob)
        registry.add_manifest("app", "v1", made.document, made.media_type)
        ctr = ["ctr", "--address", str(ctrd.socket), "--namespace", ctrd.namespace, "content"]

        def ingest(*words: str) -> subprocess.CompletedProcess[bytes]:
            with file.open("rb") as data:
                command = [*ctr, "ingest", *words]
                return subprocess.run(command, stdin=data, capture_output=True, timeout=SOON, check=False)

        def get(digest: str) -> bytes:
            done = subprocess.run([*ctr, "get", digest], capture_output=True, timeout=SOON, check=True)
            return done.stdout

        with grpc.insecure_channel(
            f"unix:{daemon.socket}"
        ) as channel:  # a client that is killed, and comes again
            content = Content(channel, None)
            with subprocess.Popen(
                [*ctr, "ingest", "cut"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
            ) as cut:
                try:
                    assert cut.stdin is not None
                    cut.stdin.write(bytes(MIB))
                    cut.stdin.flush()
                    eventually(lambda: any(content.status(ref).offset for ref in content.statuses()))
                finally:
                    cut.kill()
            [ref] = content.statuses()
            assert ref.startswith(ctrd.namespace)
            assert ref.endswith("/cut")
            file.write_bytes(bytes(2 * MIB))
            done = ingest("--expected-digest", Digest.of(bytes(2 * MIB)), "cut")
            assert (done.returncode, content.statuses()) == (0, []), done.stderr
        file.write_bytes(DATA)

        size = str(len(DATA))
        assert ingest("--expected-digest", DIGEST, "--expected-size", size, "ref").returncode == 0
        ctrd.ctr("content", "label", DIGEST, "containerd.io/gc.root=x")  # else its collector takes it
        assert get(DIGEST) == DATA
        assert b"failed precondition" in ingest("--expected-digest", Digest.of(b"x"), "wrong").stderr
        assert "wrong" in ctrd.ctr("content", "active").stdout
        ctrd.ctr("content", "fetch", "--plain-http", f"{registry.host}/app:v1")
        listed = ctrd.ctr("content", "ls", "--quiet").stdout.split()
        assert {DIGEST, made.digest, *made.blobs} <= set(listed)

        daemon.stop(signal.SIGKILL)
        daemon.start()
        eventually(lambda: ctrd.ctr("content", "get", made.digest, check=False).returncode == 0)
        for digest, blob in made.blobs.items():
            assert get(digest) == blob

        ctrd.ctr("content", "rm", DIGEST)
        ctrd.ctr(
            "images", "rm", "--sync", f"{registry.host}/app:v1"
        )  # containerd collects what it has forgotten
        with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
            content = Content(channel, None)
            eventually(lambda: not {DIGEST, made.digest, *made.blobs} & set(content.list()))
        blobs = daemon.root / "content/blobs/sha256"
        eventually(lambda: os.listdir(blobs) == [])
