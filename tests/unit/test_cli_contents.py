"""``ls``, ``cat``, ``find`` and ``cp`` against a store in memory: what they print, and what they hand down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orlop.cli import main
from orlop.cli.contents import long_line
from orlop.cli.cp import place_of
from orlop.facade import Store
from orlop.images.contents import FileInfo
from orlop.testing.fake import FakeStore

IMAGE = "docker.io/library/alpine:latest"


@pytest.fixture
def fake() -> FakeStore:
    store = FakeStore()
    store.publish("alpine")
    store.pull("alpine")
    store.prepare_root("alpine", "/srv/a")
    store.put("alpine", b"etc/motd", b"hello")
    store.put("alpine", b"etc/\xff\x1b[2J", b"odd\n")
    store.put("/srv/a", b"etc/motd", b"changed")
    return store


def run(fake: FakeStore, capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(list(argv), open_store=lambda _: Store(fake))
    out, err = capfd.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("ls", "alpine"), "etc\n"),
        (("ls", "alpine", "/etc"), "motd\n\udcff\\x1b[2J\n"),
        (("ls", "-R", "/srv/a"), "/etc\n/etc/motd\n"),
        (("ls", "-d", "/srv/a", "etc"), "/etc\n"),
        (("ls", "alpine", "etc/motd", "/etc"), "/etc/motd\n/etc/motd\n/etc/\udcff\\x1b[2J\n"),
        (("cat", "alpine", "/etc/motd"), "hello"),
        (("cat", "/srv/a", "etc/motd", "/etc/motd"), "changedchanged"),
        (("find", "alpine", "mo*"), "/etc/motd\n"),
        (("find", "--all", "mo*"), f"{IMAGE}:/etc/motd\n"),
        (("find", "-0", "alpine", "/etc/*", "--size", "-4"), "/etc/\udcff\x1b[2J\0"),
        (("find", "/srv/a", "*", "--type", "d"), "/etc\n"),
    ],
)
def test_what_is_in_a_thing_is_printed_and_steers_no_terminal(
    fake: FakeStore, capfd: pytest.CaptureFixture[str], argv: tuple[str, ...], expected: str
) -> None:
    assert run(fake, capfd, *argv) == (0, expected, "")


def test_json_has_a_line_for_each_file(fake: FakeStore, capfd: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(fake, capfd, "find", "--all", "--json", "mo*")
    found = json.loads(out)
    assert found == {
        "names": [IMAGE],
        "image_id": fake.images()[0].id,
        "path": "/etc/motd",
        "kind": "file",
        "mode": 0o644,
        "uid": 0,
        "gid": 0,
        "size": 5,
        "mtime": 0,
        "nsec": 0,
        "links": 1,
        "target": "",
        "device": [0, 0],
        "xattrs": {},
    }
    _, out, _ = run(fake, capfd, "ls", "--json", "alpine", "/etc")
    assert [json.loads(line)["path"] for line in out.splitlines()] == ["/etc/motd", "/etc/\udcff\x1b[2J"]


def test_a_copy_goes_out_in_and_from_thing_to_thing(
    fake: FakeStore, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(fake, capfd, "cp", "alpine:/etc/motd", str(tmp_path))[0] == 0
    assert (tmp_path / "motd").read_bytes() == b"hello"
    (tmp_path / "f").write_bytes(b"file")
    assert run(fake, capfd, "cp", str(tmp_path / "f"), "/srv/a:/etc") == (0, "", "")
    assert run(fake, capfd, "cp", "alpine:/etc", "/srv/a:/") == (0, "", "")
    assert run(fake, capfd, "cat", "/srv/a", "/etc/f", "/etc/motd") == (0, "filehello", "")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (("cp", "a", "b"), "neither is in an image or a root"),
        (("cp", "a", "alpine:/etc"), "an image does not change: alpine"),
        (("cp", "./alpine:/etc", "b"), "neither is in an image or a root"),
        (("find", "alpine"), "give an image and a pattern"),
        (("find", "--all", "alpine", "*"), "give a pattern, and no image"),
        (("find", "alpine", "*", "--type", "x"), "no kind of file: x"),
        (("cat", "alpine"), "Missing argument"),
        (("cat", "alpine", "/etc"), "it is a folder"),
        (("ls", "alpine", "/none"), "there is no /none"),
        (("ls", "busybox"), "no such image"),
    ],
)
def test_wrong_words_get_one_clear_line(
    fake: FakeStore, capfd: pytest.CaptureFixture[str], argv: tuple[str, ...], line: str
) -> None:
    code, out, err = run(fake, capfd, *argv)
    assert code != 0
    assert out == ""
    assert line.lower() in err.lower()


@pytest.mark.parametrize(
    ("text", "thing", "path"),
    [
        ("alpine:/etc", "alpine", "/etc"),
        ("localhost:5000/a/b:1:/", "localhost:5000/a/b:1", "/"),
        ("/srv/a:/x:/y", "/srv/a", "/x:/y"),
        ("sha256:00ff:/x", "sha256:00ff", "/x"),
    ],
)
def test_a_place_in_a_thing_is_told_from_a_path(text: str, thing: str, path: str) -> None:
    found = place_of(text)
    assert found is not None
    assert (found.thing, found.path) == (thing, path)
    assert place_of(f"./{text}") is None


@pytest.mark.parametrize("text", ["a", "/a/b", "a:b", ":/a", "-", "../a:/b"])
def test_what_is_no_place_in_a_thing_is_a_path(text: str) -> None:
    assert place_of(text) is None


def test_a_long_line_is_that_of_ls_whatever_the_time() -> None:
    link = FileInfo(path=b"l", mode=0o120777, size=1, target=b"x\n", mtime=2**40)
    assert long_line(link, "l") == f"lrwxrwxrwx   1     0     0          1 {2**40} l -> x "
    device = FileInfo(path=b"d", mode=0o60660, device=(8, 1), gid=6)
    assert long_line(device, "d") == "brw-rw----   1     0     6       8, 1 1970-01-01 00:00:00 d"
