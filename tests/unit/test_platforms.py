"""Which platform serves which: the tables of containerd's own tests of its rules, and what ours adds.

Source of the tables: github.com/containerd/platforms, compare_test.go and platform_windows_compat_test.go
(Apache-2.0); read there, written anew here.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.spec.documents import Index, parse_config, parse_manifest
from orlop.spec.platform import Platform, host_platform

ARM64 = [f"linux/arm64/v8.{minor}" for minor in range(1, 10)]
ARM64_V9 = [f"linux/arm64/v9.{minor}" for minor in range(8)]
ARM = ["linux/arm", "linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm/v8"]
ELSEWHERE = ["windows/amd64", "windows/arm", "darwin/arm64"]

# A machine, what serves it from the best to the least (those on one line alike), and what does not.
TABLE: list[tuple[str, list[str], list[str]]] = [
    (
        "linux/amd64",
        ["linux/amd64 linux/amd64/v1 linux/x86_64", "linux/386 linux/i386"],
        ["linux/amd64/v2", "linux/arm/v7", "linux/arm64", *ELSEWHERE],
    ),
    (
        "linux/amd64/v3",
        ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64 linux/amd64/v1", "linux/386"],
        ["linux/amd64/v4", "linux/amd64/v10", "linux/arm64", *ELSEWHERE],
    ),
    ("linux/386", ["linux/386"], ["linux/amd64", "linux/arm/v7", *ELSEWHERE]),
    (
        "linux/arm/v8",
        ["linux/arm/v8", "linux/arm linux/arm/v7 linux/armhf", "linux/arm/v6 linux/armel", "linux/arm/v5"],
        ["linux/arm/v4", "linux/arm/v9", "linux/arm64", "linux/amd64", *ELSEWHERE],
    ),
    (
        "linux/arm/v7",
        ["linux/arm/v7 linux/arm linux/arm/7", "linux/arm/v6", "linux/arm/v5"],
        ["linux/arm/v4", "linux/arm/v8", "linux/arm64", *ELSEWHERE],
    ),
    ("linux/arm", ["linux/arm linux/arm/v7", "linux/arm/v6", "linux/arm/v5"], ["linux/arm/v8"]),
    ("linux/arm/v6", ["linux/arm/v6", "linux/arm/v5"], ["linux/arm", "linux/arm/v7", "linux/arm/v4"]),
    ("linux/arm/v5", ["linux/arm/v5"], ["linux/arm", "linux/arm/v4", "linux/arm/v6"]),
    ("linux/arm/v4", ["linux/arm/v4"], ["linux/arm", "linux/arm/v5"]),
    (
        "linux/arm64/v9.6",
        [
            *reversed(ARM64_V9[1:7]),
            "linux/arm64/v9 linux/arm64/v9.0",
            *reversed(ARM64),
            "linux/arm64 linux/arm64/v8 linux/arm64/8 linux/aarch64",
            *reversed(ARM[1:]),
        ],
        ["linux/arm64/v9.7", "linux/arm64/v8.10", "linux/arm/v4", "linux/amd64"],
    ),
    (
        "linux/arm64/v9",
        ["linux/arm64/v9 linux/arm64/v9.0", *reversed(ARM64[:5]), "linux/arm64/v8", *reversed(ARM[1:])],
        ["linux/arm64/v8.6", "linux/arm64/v9.1", "linux/arm/v4", "linux/amd64"],
    ),
    (
        "linux/arm64/v8.1",
        ["linux/arm64/v8.1", "linux/arm64 linux/arm64/v8", *reversed(ARM[1:])],
        ["linux/arm64/v8.2", "linux/arm64/v9", "linux/arm/v9", "linux/amd64"],
    ),
    (
        "linux/arm64",
        ["linux/arm64 linux/arm64/v8 linux/arm64/v8.0", *reversed(ARM[1:])],
        ["linux/arm64/v8.1", "linux/arm64/v9", "linux/arm/v9", "linux/arm/v4", "linux/amd64"],
    ),
    (
        "linux/arm64/v9.9",  # no such version: it is only what it says
        ["linux/arm64/v9.9"],
        ["linux/arm64/v9.7", "linux/arm64", "linux/arm"],
    ),
    (
        "linux(+f1+f2)/amd64",
        ["linux(+f2+f1)/amd64", "linux(+f1)/amd64 linux(+f2)/amd64", "linux/amd64"],
        ["linux(+f3)/amd64", "linux(+f1+f3)/amd64", "linux(+f1)/arm64"],
    ),
    ("linux/riscv64", ["linux/riscv64"], ["linux/riscv64/rva23", "linux/arm64"]),
    ("linux/mips/weird", ["linux/mips/weird"], ["linux/mips", "linux/mips/weirder"]),
    (
        "windows/amd64",
        ["windows(10.0.17763)/amd64 windows/amd64 windows(10.0.20348+win32k)/amd64", "windows/386"],
        ["linux/amd64", "windows/arm", "windows(+other)/amd64"],
    ),
    (
        "windows(10.0.17763)/amd64",
        ["windows(10.0.17763)/amd64", "windows(10.0.17763.5)/amd64", "windows/amd64"],
        ["windows(10.0.20348)/amd64", "windows(odd)/amd64", "windows(11.0.17763)/amd64"],
    ),
]


@pytest.mark.parametrize(("machine", "serve", "others"), TABLE, ids=[row[0] for row in TABLE])
def test_what_serves_a_machine_and_what_serves_it_better(
    machine: str, serve: list[str], others: list[str]
) -> None:
    wanted = Platform.parse(machine)
    ranks = [[Platform.parse(text).rank(wanted) for text in line.split()] for line in serve]
    assert all(rank > 0 for line in ranks for rank in line)
    assert [line for line in ranks if len(set(line)) > 1] == []
    assert [line[0] for line in ranks] == sorted({line[0] for line in ranks}, reverse=True)
    assert [text for text in others if Platform.parse(text).rank(wanted)] == []


# Builds of Windows: a host, an image, and whether the one runs the other.
BUILDS = [
    (17763, 17763, True),
    (17763, 20348, False),
    (20348, 17763, False),
    (20348, 20348, True),
    (22621, 17763, False),
    (22621, 20348, True),
    (25398, 17763, False),
    (25398, 20348, True),
    (26100, 20348, True),
    (20348, 26100, False),
    (20348, 22621, False),
    (26100, 22621, True),
    (27000, 25398, False),
]


@pytest.mark.parametrize(("host", "image", "runs"), BUILDS)
def test_a_windows_host_runs_the_builds_that_it_can(host: int, image: int, runs: bool) -> None:
    offered = Platform(os="windows", architecture="amd64", os_version=f"10.0.{image}.1")
    wanted = Platform(os="windows", architecture="amd64", os_version=f"10.0.{host}.9")
    assert bool(offered.rank(wanted)) == runs


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("Linux/ARM/v7", "linux/arm/v7"),
        ("armhf", "linux/arm"),
        ("armel", "linux/arm/v6"),
        ("i386", "linux/386"),
        ("macOS/arm64", "darwin/arm64"),
        ("linux", f"linux/{host_platform().architecture}"),
        ("windows()/amd64", "windows/amd64"),
        ("windows(10.0.17763+win32k)/amd64", "windows(10.0.17763+win32k)/amd64"),
        ("linux(+b+a)/amd64", "linux(+a+b)/amd64"),
        ("linux(+a%2Fb)/amd64", "linux(+a%2Fb)/amd64"),
    ],
)
def test_a_platform_is_written_in_one_way(text: str, full: str) -> None:
    assert str(Platform.parse(text)) == full
    assert Platform.parse(full) == Platform.parse(text)


@given(st.builds(Platform, os=st.text(), architecture=st.text(), variant=st.text(), os_version=st.text()))
def test_whatever_a_document_says_nothing_serves_better_than_itself(said: Platform) -> None:
    for other in ("linux/arm64/v9.7", "windows(10.0.26100)/amd64", "linux/amd64/v4"):
        wanted = Platform.parse(other)
        assert 0 <= said.rank(wanted) <= wanted.rank(wanted)
    assert said.rank(said) > 0


def test_documents_tell_the_systems_version_and_features() -> None:
    config = b'{"os":"windows","architecture":"amd64","os.version":"10.0.1","os.features":["win32k"],'
    config += b'"rootfs":{"type":"layers","diff_ids":[]}}'
    assert str(parse_config(config, "test").platform()) == "windows(10.0.1+win32k)/amd64"
    child = (
        '{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":1,'
        '"platform":{"os":"windows","architecture":"amd64","os.version":"10.0.%s"}}'
    )
    text = f'{{"schemaVersion":2,"manifests":[{child % ("a" * 64, 17763)},{child % ("b" * 64, 20348)}]}}'
    index = parse_manifest(text.encode(), "", "test")
    assert isinstance(index, Index)
    chosen = index.choose(Platform.parse("windows(10.0.20348)/amd64"))
    assert chosen is not None
    assert chosen.digest == "sha256:" + "b" * 64


def test_no_attestation_or_artifact_is_taken_for_an_image() -> None:
    index = parse_manifest(
        b'{"schemaVersion":2,"manifests":['
        b'{"digest":"sha256:%s","size":1,"platform":{"os":"unknown","architecture":"unknown"}},'
        b'{"digest":"sha256:%s","size":1,"artifactType":"application/spdx+json"}]}' % (b"a" * 64, b"b" * 64),
        "",
        "test",
    )
    assert isinstance(index, Index)
    assert index.choose(Platform.parse("linux/amd64")) is None
    assert index.choose(Platform.parse("unknown/unknown")) is None
