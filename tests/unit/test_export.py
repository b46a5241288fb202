"""The parts of an export that need no store: streams, destinations, names, and the command line."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import orlop
from orlop.cli import main
from orlop.cli.output import Binary
from orlop.images.archives.chunks import Chunks
from orlop.images.archives.destination import FileTarget, unpack_layout
from orlop.images.archives.layoutnames import INDEX, LAYOUT, LAYOUT_TEXT, named
from orlop.images.archives.tarstream import BLOCK, TarStream, put, read_members
from orlop.images.exports import guess_format
from orlop.layers.tarwrite import Member, headers
from orlop.observe import Call
from orlop.spec.digest import Digest
from orlop.spec.documents import Descriptor, Index, encode
from orlop.testing.fake import FakeStore


def blob(data: bytes) -> tuple[str, bytes]:
    return f"blobs/sha256/{Digest.of(data).hex}", data


def line(data: bytes, name: str | None = None) -> Descriptor:
    one = Descriptor(media_type="application/x", digest=str(Digest.of(data)), size=len(data))
    return named([(one, name)], ())[0]


def layout(blobs: dict[str, bytes], *lines: Descriptor, end: bool = True) -> bytes:
    """A layout as an export sends it."""
    out = io.BytesIO()
    stream = TarStream(out, item="x", call=Call(), what="export x")
    stream.data(LAYOUT, LAYOUT_TEXT)
    stream.folder("blobs")
    stream.folder("blobs/sha256")
    for name, data in blobs.items():
        stream.data(name, data)
    if end:
        stream.data(INDEX, encode(Index(schema_version=2, manifests=list(lines))))
    stream.finish()
    return out.getvalue()


def pieces(data: bytes, size: int = 1 << 20) -> Iterator[bytes]:
    return iter([data[at : at + size] for at in range(0, len(data), size)])


def unpack(data: bytes, path: Path, *, force: bool = False) -> None:
    unpack_layout(pieces(data), path, force=force, call=Call(), what="export x")


def everything(top: Path) -> dict[str, bytes]:
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


# -- streams ----------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(0, 3 * BLOCK), max_size=5),
    long=st.booleans(),
    cut=st.integers(1, 2000),
)
def test_what_was_written_is_read_back_and_tarfile_agrees(sizes: list[int], long: bool, cut: int) -> None:
    out = io.BytesIO()
    stream = TarStream(out, item="x", call=Call(), what="x")
    files = {f"{'n' * 150 if long else 'n'}{number}": os.urandom(size) for number, size in enumerate(sizes)}
    stream.folder("d")
    for name, data in files.items():
        stream.data(name, data)
    stream.finish()
    data = out.getvalue()
    assert stream.size == len(data)
    found = {
        name: b"".join(chunks) for name, _, chunks in read_members(pieces(data, cut), lambda _: True, "x")
    }
    assert found == files
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert {one.name for one in tar if one.isfile()} == set(files)


def member(**about: object) -> bytes:
    return headers(Member(**{"path": b"a", "mode": 0o100644, **about}))  # type: ignore[arg-type]  # as given


END = bytes(2 * BLOCK)


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (b"", orlop.DataLoss),
        (member(), orlop.DataLoss),
        (member(size=5) + b"12345", orlop.DataLoss),
        (END[:BLOCK], orlop.DataLoss),
        (END + b"x", orlop.InvalidArgument),
        (END[:BLOCK] + member() + END, orlop.InvalidArgument),
        (member() + member() + END, orlop.InvalidArgument),
        (member(path=b"b") + END, orlop.InvalidArgument),
        (member(path=b"../a") + END, orlop.InvalidArgument),
        (member(path=b"/a") + END, orlop.InvalidArgument),
        (member(path=b"a\xff") + END, orlop.InvalidArgument),
        (member(mode=0o120777, link=b"/etc/passwd") + END, orlop.InvalidArgument),
        (member(hard=True, link=b"/etc/passwd") + END, orlop.InvalidArgument),
        (member(mode=0o020644, rdev=1) + END, orlop.InvalidArgument),
        (member(mode=0o104755) + END, orlop.InvalidArgument),
        (member(uid=1) + END, orlop.InvalidArgument),
        (member(mtime=-1) + END, orlop.InvalidArgument),
        (member(xattrs=((b"user.a", b"1"),)) + END, orlop.InvalidArgument),
        (member(size=1)[:124] + b"77777777777\0" + member(size=1)[136:] + END, orlop.InvalidArgument),
        (b"x" * BLOCK + END, orlop.InvalidArgument),
    ],
)
@pytest.mark.hostile(6, 9)
def test_a_stream_that_orlop_does_not_write_is_refused(stream: bytes, error: type[orlop.Error]) -> None:
    members = read_members(pieces(stream, 700), lambda name: name == "a", "x")
    with pytest.raises(error):
        list(members)


def test_a_sink_may_take_less_than_it_is_given() -> None:
    class Slow(io.BytesIO):
        def write(self, data: bytes, /) -> int:  # type: ignore[override]  # as a raw file has it
            return super().write(bytes(data[:3]))

    out = Slow()
    put(out, b"0123456789")
    assert out.getvalue() == b"0123456789"


# -- folders ----------------------------------------------------------------------------------------


def test_a_layout_becomes_a_folder_and_another_is_added(tmp_path: Path) -> None:
    one, two = b"one", b"two"
    unpack(layout(dict([blob(one)]), line(one, "r.lan/a:1")), tmp_path / "new")
    unpack(layout(dict([blob(one), blob(two)]), line(two, "r.lan/b:1")), tmp_path / "new")
    found = everything(tmp_path / "new")
    index = json.loads(found.pop(INDEX))
    assert found == {LAYOUT: LAYOUT_TEXT, **dict([blob(one), blob(two)])}
    refs = [one["annotations"]["org.opencontainers.image.ref.name"] for one in index["manifests"]]
    assert refs == ["1", "r.lan/b:1"]  # whoever has a tag keeps it alone
    assert os.listdir(tmp_path) == ["new"]


@pytest.mark.hostile(19, 37, 39)
@pytest.mark.parametrize(
    "data",
    [
        layout({blob(b"one")[0]: b"two"}, line(b"one", "r.lan/a:1")),
        layout(dict([blob(b"one")]), line(b"one", "r.lan/a:1"), end=False),
        layout(dict([blob(b"one")]), line(b"one", "r.lan/kept:1")),
        layout({"blobs/sha256/../../../x": b"one"}),
        layout(dict([blob(b"one")]), line(b"one", "r.lan/a:1"))[:-BLOCK],
        layout(dict([blob(b"one")]), line(b"one", "r.lan/a:1"))[: 5 * BLOCK],
    ],
    ids=["bytes", "no-index", "name-taken", "path", "cut-at-the-end", "cut"],
)
def test_what_is_wrong_leaves_a_folder_as_it_was(data: bytes, tmp_path: Path) -> None:
    unpack(layout(dict([blob(b"kept")]), line(b"kept", "r.lan/kept:1")), tmp_path / "old")
    before = everything(tmp_path / "old")
    for path in (tmp_path / "old", tmp_path / "new"):
        if path.name == "new" and b"r.lan/kept" in data:
            continue
        with pytest.raises(orlop.Error):
            unpack(data, path)
    assert everything(tmp_path / "old") == before
    assert os.listdir(tmp_path) == ["old"]


@pytest.mark.hostile(37)
def test_no_link_in_a_folder_is_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    top = tmp_path / "old"
    top.mkdir()
    (top / LAYOUT).write_bytes(LAYOUT_TEXT)
    (top / "blobs").symlink_to(elsewhere)
    with pytest.raises(orlop.Error):
        unpack(layout(dict([blob(b"one")]), line(b"one")), top)
    assert os.listdir(elsewhere) == []


def test_an_empty_folder_is_filled_where_it_is_and_empty_again_after_a_failure(tmp_path: Path) -> None:
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir(mode=0o750)
    link.symlink_to("folder")
    before = (folder.stat().st_ino, folder.stat().st_mode)
    data = layout(dict([blob(b"one")]), line(b"one", "r.lan/a:1"))
    with pytest.raises(orlop.DataLoss):
        unpack(data[:-BLOCK], link)
    assert os.listdir(folder) == []
    unpack(data, link)
    assert sorted(os.listdir(folder)) == ["blobs", INDEX, LAYOUT]
    assert (folder.stat().st_ino, folder.stat().st_mode, link.is_symlink()) == (*before, True)


def test_a_link_to_nothing_is_no_folder_to_be_made(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(orlop.FailedPrecondition, match="symlink to nothing"):
        unpack(layout({}), tmp_path / "link")
    assert os.listdir(tmp_path) == ["link"]


# -- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("where", ["/dev/fd/{}", "/proc/self/fd/{}"])
def test_a_descriptor_of_our_own_is_written_to_and_nothing_replaced(
    tmp_path: Path, where: str, force: bool
) -> None:
    with open(tmp_path / "a", "w+b", buffering=0) as file:
        file.write(b"before ")
        target = Path(where.format(file.fileno()))
        with FileTarget(target, force=force, holes=True, what="x") as out:
            out.write(b"a" + bytes(1 << 17))
    assert everything(tmp_path) == {"a": b"before a" + bytes(1 << 17)}


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    target = FileTarget(path, force=False, what="x")
    target.__enter__()
    target.write(b"half")
    target.__exit__(RuntimeError, RuntimeError(), None)
    assert os.listdir(tmp_path) == []
    with FileTarget(path, force=False, what="x") as target:
        target.write(b"whole")
        assert not path.exists()
    assert everything(tmp_path) == {"a": b"whole"}


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none" / "a"
    with pytest.raises(orlop.NotFound, match=f"{tmp_path}/none$"), FileTarget(path, force=False, what="x"):
        pass
    with pytest.raises(orlop.NotFound, match=f"{tmp_path}/none$"):
        unpack(layout({}), path)


def test_a_file_that_is_there_stays_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("mine")
    with pytest.raises(orlop.AlreadyExists), FileTarget(path, force=False, what="x"):
        pass
    path.unlink()
    target = FileTarget(path, force=False, what="x").__enter__()
    path.write_text("mine")  # meanwhile
    with pytest.raises(orlop.AlreadyExists):
        target.__exit__(None, None, None)
    assert everything(tmp_path) == {"a": b"mine"}
    with FileTarget(path, force=True, what="x") as target:
        target.write(b"forced")
    assert everything(tmp_path) == {"a": b"forced"}


def test_zeros_become_holes_and_are_read_as_zeros(tmp_path: Path) -> None:
    data = b"a" * 100_000 + bytes(10 << 20) + b"b" + bytes(1 << 20)
    with FileTarget(tmp_path / "a", force=False, holes=True, what="x") as target:
        for chunk in pieces(data):
            target.write(chunk)
    assert (tmp_path / "a").read_bytes() == data
    assert (tmp_path / "a").stat().st_blocks * 512 < len(data) // 2


@pytest.mark.hostile(40)
def test_a_full_disk_is_named_and_leaves_nothing() -> None:
    with (
        pytest.raises(orlop.ResourceExhausted, match="disk of /dev") as caught,
        FileTarget(Path("/dev/full"), force=False, what="x") as target,
    ):
        target.write(b"x")
    assert caught.value.details["where"] == "/dev"


# -- iterators --------------------------------------------------------------------------------------


def test_chunks_come_in_order_and_then_the_result() -> None:
    def work(sink: Chunks[str], call: Call) -> str:
        for number in range(100):
            sink.write(b"%d," % number)
        return "done"

    with Chunks(work, Call(), "x") as chunks:
        assert b"".join(chunks) == b"".join(b"%d," % number for number in range(100))
        assert chunks.result == "done"


def test_who_stops_reading_stops_the_work() -> None:
    ended: list[type[BaseException]] = []

    def work(sink: Chunks[None], call: Call) -> None:
        try:
            while True:
                sink.write(b"x")
        except BaseException as exc:
            ended.append(type(exc))
            raise

    with Chunks(work, Call(), "x") as chunks:
        assert next(chunks) == b"x"
    assert ended == [orlop.Cancelled]


def test_an_error_of_the_work_comes_where_it_is_read() -> None:
    def work(sink: Chunks[None], call: Call) -> None:
        sink.write(b"x")
        raise orlop.DataLoss("export x", "lost")

    with Chunks(work, Call(), "x") as chunks:
        assert next(chunks) == b"x"
        with pytest.raises(orlop.DataLoss, match="lost"):
            next(chunks)


# -- the command line -------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Run the command line on a store in memory; exit code, standard output, standard error."""
    fake = FakeStore()
    fake.publish("alpine")
    fake.pull("alpine")
    fake.prepare_root("alpine", "/srv/a")

    def one(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(map(str, words)), open_store=lambda target: orlop.Store(fake))
        said = capsys.readouterr()
        return code, said.out, said.err

    return one


@pytest.mark.parametrize(
    ("words", "name", "form"),
    [
        (("alpine",), "a.tar", "oci"),
        (("alpine",), "a.docker.tar", "docker"),
        (("alpine",), "a.sqfs", "squashfs"),
        (("/srv/a",), "a.tar", "tar"),
        (("/srv/a",), "a.ext4", "ext4"),
        (("--format", "erofs", "alpine"), "a.tar", "erofs"),
    ],
)
def test_a_files_name_says_the_format(
    words: tuple[str, ...], name: str, form: str, run, tmp_path: Path
) -> None:
    code, out, _ = run("export", "-q", "--json", "-o", tmp_path / name, *words)
    assert code == 0
    assert (json.loads(out)["format"], json.loads(out)["path"]) == (form, f"{tmp_path}/{name}")
    assert json.loads((tmp_path / name).read_bytes())["format"] == form
    assert run("export", "-o", tmp_path / name, *words)[0] == 4
    assert run("export", "-f", "-o", tmp_path / name, *words)[:2] == (0, f"{tmp_path}/{name}\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-o", "a.tar.gz", "alpine"), "not compressed as a whole"),
        (("--json", "alpine"), "give a file"),
        (("--json", "-o", "/dev/stdout", "alpine"), "give a file"),
        (("--format", "oci-dir", "alpine"), "a folder cannot go"),
        (("--format", "zip", "alpine"), "zip"),
        (("--format", "docker", "-o", "a", "/srv/a"), "prepared root"),
    ],
)
def test_what_cannot_be_is_refused(words: tuple[str, ...], said: str, run, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run("export", *words)
    assert code in (2, 3)
    assert said in err
    assert os.listdir(tmp_path) == []


def test_an_archive_is_not_written_to_a_terminal(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, _, err = run("export", "alpine")
    assert (code, "terminal" in err) == (2, True)


@pytest.mark.hostile(40)
def test_standard_output_that_is_full_for_good_or_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Binary()
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(orlop.ResourceExhausted, match="that standard output goes to"):
            out.write(b"x")
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    with open(read, "rb", buffering=0) as end, open(write, "wb", buffering=0) as pipe:
        os.set_blocking(read, True)
        while pipe.write(bytes(1 << 12)) is not None:
            pass  # until it is full
        monkeypatch.setattr(sys, "stdout", pipe)
        reader = threading.Thread(target=end.read, args=(1 << 20,))
        reader.start()
        assert out.write(b"x" * 100) == 100
        reader.join()


def test_a_folder_that_is_there_makes_a_layout(tmp_path: Path) -> None:
    assert guess_format(["alpine"], str(tmp_path), "x") == "oci-dir"
