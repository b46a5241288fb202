"""Id maps, whose folders are meant, and the reasons why there is no user namespace; no privilege needed."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop import rootless
from orlop.cli.environment import default_root, default_run, whose
from orlop.errors import FailedPrecondition
from orlop.facade import DEFAULT_ROOT, DEFAULT_RUN
from orlop.linux import userns
from orlop.linux._rights import reason
from orlop.linux.userns import IdRange, parse_map, parse_subordinate

LAST = 0xFFFFFFFE


def r(inside: int, outside: int, size: int) -> IdRange:
    return IdRange(inside=inside, outside=outside, size=size)


# ------------------------------------------------------------------ maps


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("", ()),
        ("         0          0 4294967295\n", (r(0, 0, 4_294_967_295),)),
        ("0 1000 1\n1 100000 65536\n", (r(0, 1000, 1), r(1, 100_000, 65_536))),
    ],
)
def test_a_map_is_read_as_the_kernel_writes_it(text: str, ranges: tuple[IdRange, ...]) -> None:
    assert parse_map(text) == ranges


@pytest.mark.parametrize("text", ["0 1\n", "0 1 2 3\n", "a b c\n", "0 0 1\n\n0 0 1\n"])
def test_what_is_not_a_map_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_map(text)


numbers = st.integers(0, LAST)


@given(st.lists(st.builds(r, numbers, numbers, numbers)))
def test_a_map_survives_its_text(ranges: list[IdRange]) -> None:
    assert parse_map(userns.map_text(ranges)) == tuple(ranges)


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("", ()),
        ("me:100000:65536", (r(1, 100_000, 65_536),)),
        ("1000:100000:65536\n", (r(1, 100_000, 65_536),)),
        ("  me:100000:10  \r\n", (r(1, 100_000, 10),)),
        ("you:1:1\nme:100:10\nyou:2:1\nme:300:20\n", (r(1, 100, 10), r(11, 300, 20))),
        ("me:300:20\nme:100:10\n", (r(1, 300, 20), r(21, 100, 10))),
        # the same by name and by number; one inside another; end to end
        ("me:100:10\n1000:100:10\n", (r(1, 100, 10),)),
        ("me:100:10\nme:105:1\nme:110:1\nme:99:1\n", (r(1, 100, 10), r(11, 110, 1), r(12, 99, 1))),
        # malformed
        ("me\nme:\nme:1\nme:1:\nme::1\nme:1:2:3\n# me:1:1\nme:-1:5\nme:1: 5\nme:0x10:1\nme:¹:1\n", ()),
        ("me:100:0\nme:7:3\n", (r(1, 7, 3),)),
        # ids end
        (f"me:{LAST}:5\n", (r(1, LAST, 1),)),
        (f"me:{LAST + 1}:5\n", ()),
        (f"me:0:{10**9 * 9}\nme:{LAST}:1\n", (r(1, 0, LAST),)),
        ("me:1:" + "9" * 5000, ()),
    ],
)
def test_subordinate_ids_are_those_of_the_names(text: str, ranges: tuple[IdRange, ...]) -> None:
    assert parse_subordinate(text, {"me", "1000"}) == ranges


def test_subordinate_ranges_stay_within_one_page_of_map() -> None:
    text = "".join(f"me:{LAST - 10 * n}:2\n" for n in range(1, 5000))
    whole, _ = userns.usual_maps(LAST, LAST, (parse_subordinate(text, {"me"}), (r(1, 1, 1),)))
    assert len(whole) > 50
    assert len(userns.map_text(whole)) < 4096


@given(st.text(st.sampled_from("me:0129\n #\t-"), max_size=200))
def test_any_text_gives_ranges_that_the_kernel_takes(text: str) -> None:
    ranges = parse_subordinate(text, {"me", "9", ""})
    seen: set[tuple[int, int]] = set()
    inside = 1
    for entry in ranges:
        assert entry.inside == inside
        assert entry.size >= 1
        assert max(entry.outside, entry.inside) + entry.size - 1 <= LAST
        assert all(entry.outside + entry.size <= low or high <= entry.outside for low, high in seen)
        seen.add((entry.outside, entry.outside + entry.size))
        inside += entry.size


def test_subordinate_ids_come_from_the_two_files(tmp_path: Path) -> None:
    subuid, subgid = tmp_path / "subuid", tmp_path / "subgid"
    subuid.write_bytes(b"\xff\xfe:1:1\n4711:10:5\n")
    subgid.write_text("4711:20:6\n")
    found = userns.subordinate_ids(4711, subuid=str(subuid), subgid=str(subgid))
    assert found == ((r(1, 10, 5),), (r(1, 20, 6),))
    assert userns.subordinate_ids(4711, subuid=str(tmp_path / "no"), subgid=str(subgid))[0] == ()
    root = tmp_path / "root"
    root.write_text("root:7:7\n")
    assert userns.subordinate_ids(0, subuid=str(root), subgid=str(root))[0] == (r(1, 7, 7),)


@pytest.mark.parametrize(
    ("subordinate", "expected"),
    [
        (((), ()), ((r(0, 5, 1),), (r(0, 6, 1),))),
        (((r(1, 100, 9),), ()), ((r(0, 5, 1),), (r(0, 6, 1),))),
        (((), (r(1, 100, 9),)), ((r(0, 5, 1),), (r(0, 6, 1),))),
        (
            ((r(1, 100, 9), r(10, 300, 1)), (r(1, 200, 9),)),
            ((r(0, 5, 1), r(1, 100, 9), r(10, 300, 1)), (r(0, 6, 1), r(1, 200, 9))),
        ),
    ],
)
def test_the_usual_maps_begin_with_oneself(subordinate: userns.Maps, expected: userns.Maps) -> None:
    assert userns.usual_maps(5, 6, subordinate) == expected


@pytest.mark.parametrize(
    ("subordinate", "word"),
    [
        (((), ()), "/etc/subuid has no line for user 4711"),
        (((r(1, 1, 1),), ()), "/etc/subgid has no line for user 4711"),
    ],
)
def test_what_is_missing_for_many_ids_is_named(subordinate: userns.Maps, word: str) -> None:
    assert word in (userns.why_single_id(4711, subordinate) or "")


def test_missing_programs_for_many_ids_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    subordinate = ((r(1, 1, 1),), (r(1, 1, 1),))
    assert "newuidmap is not installed" in (userns.why_single_id(4711, subordinate) or "")
    for name in ("newuidmap", "newgidmap"):
        (tmp_path / name).touch(0o755)
    assert userns.why_single_id(4711, subordinate) is None


# ------------------------------------------------------------------ reasons


@pytest.mark.parametrize(
    ("step", "code", "knobs", "filtered", "words"),
    [
        (1, errno.ENOSPC, {"user.max_user_namespaces": "0"}, False, "max_user_namespaces is 0"),
        (1, errno.ENOSPC, {"user.max_user_namespaces": "9"}, False, "as many user namespaces"),
        (1, errno.EUSERS, {}, False, "as many user namespaces"),
        (1, errno.EINVAL, {}, False, "CONFIG_USER_NS"),
        (1, errno.EPERM, {"kernel.unprivileged_userns_clone": "0"}, False, "unprivileged_userns_clone is 0"),
        (1, errno.EPERM, {"kernel.unprivileged_userns_clone": "1"}, True, "seccomp"),
        (1, errno.ENOSYS, {}, True, "seccomp"),
        (2, errno.EPERM, {"kernel.apparmor_restrict_unprivileged_userns": "1"}, False, "AppArmor"),
        (1, errno.EPERM, {"kernel.apparmor_restrict_unprivileged_userns": "0"}, False, "chroot"),
        (2, errno.EPERM, {}, False, "mounting in a user namespace"),
    ],
)
def test_a_refusal_has_a_reason(
    step: int, code: int, knobs: dict[str, str], filtered: bool, words: str
) -> None:
    assert words in reason(step, code, knobs=knobs, filtered=filtered)


def test_a_process_with_threads_does_not_enter() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with pytest.raises(FailedPrecondition, match="threads"):
            userns.enter(["true"], env={}, maps=userns.usual_maps(os.geteuid(), os.getegid()))
    finally:
        done.set()
        thread.join()


# ------------------------------------------------------------------ whose folders


@pytest.mark.parametrize(
    ("environ", "uid", "initial", "expected"),
    [
        ({}, 0, False, 0),
        ({}, 7, True, 7),
        ({"_ORLOP_UID": "1000"}, 0, False, 1000),
        ({"_CONTAINERS_ROOTLESS_UID": "1000"}, 0, False, 1000),
        ({"_ORLOP_UID": "1000"}, 0, True, 0),  # sudo -E
        ({"_ORLOP_UID": "1000"}, 7, False, 7),
        ({"_ORLOP_UID": "0"}, 0, False, 0),
        ({"_ORLOP_UID": "me"}, 0, False, 0),
        ({"_ORLOP_UID": "²"}, 0, False, 0),
        ({"_ORLOP_UID": ""}, 0, False, 0),
    ],
)
def test_root_of_a_users_namespace_means_the_user(
    environ: dict[str, str], uid: int, initial: bool, expected: int
) -> None:
    assert whose(environ, uid, initial=lambda: initial) == expected


def test_the_environment_inside_says_who_is_outside_and_keeps_the_rest() -> None:
    inside = rootless.environment({"HOME": "/h", "_ORLOP_UID": "3"}, 1000)
    assert inside == {"HOME": "/h", "ORLOP_UNSHARED": "1", "_ORLOP_UID": "1000"}


def test_folders_are_those_of_whom_is_meant() -> None:
    environ = {"_ORLOP_UID": "1000", "HOME": "/h", "XDG_RUNTIME_DIR": "/r"}
    meant = whose(environ, 0)
    assert (meant == 0) == userns.in_initial_namespace()
    assert default_root(environ, 0) == (default_root(environ, meant) if meant else DEFAULT_ROOT)
    assert default_run(environ, 0) == (default_run(environ, meant) if meant else DEFAULT_RUN)
