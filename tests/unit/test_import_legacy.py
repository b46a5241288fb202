"""The oldest form of docker's archives: chains of images of version 1, and the config that comes of one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from orlop.config import DEFAULT_LIMITS
from orlop.errors import Error, InvalidArgument, NotFound, ResourceExhausted
from orlop.images.archives.legacy import V1Images, config_of, parse_repositories
from orlop.spec.digest import DiffID

LIMITS = replace(DEFAULT_LIMITS, layers=10, config_size=4_000, metadata_size=20_000)
IDS = [f"{number:064x}" for number in range(1, 30)]


def images_of(said: dict[str, object], limits=LIMITS) -> V1Images:
    def read(identity: str) -> bytes:
        if identity not in said:
            raise NotFound("test", f"there is no {identity}/json in it")
        data = said[identity]
        return data if isinstance(data, bytes) else json.dumps(data).encode()

    return V1Images(read, "test", limits=limits)


def linked(count: int, **more: object) -> dict[str, object]:
    """A chain, bottom first."""
    return {
        identity: {
            "id": identity,
            "created": f"2015-01-01T00:00:{number:02}Z",
            "container_config": {"Cmd": ["/bin/sh", "-c", f"step {number}"]},
            **({"parent": IDS[number - 1]} if number else {}),
            **more,
        }
        for number, identity in enumerate(IDS[:count])
    }


def test_a_chain_becomes_a_config_that_depends_on_nothing_else():
    said = linked(3, author="me", os="linux", architecture="arm", config={"Cmd": ["sh"]}, Size=7, odd=1.5)
    diff_ids = [DiffID(f"sha256:{number:064x}") for number in range(3)]

    def made() -> bytes:
        v1 = images_of(said)
        chain = v1.chain(IDS[2])
        assert chain == IDS[:3]
        return config_of(v1.top(IDS[2]), v1.history(chain), diff_ids, "test", limits=LIMITS)

    assert made() == made()
    config = json.loads(made())
    assert config["rootfs"] == {"type": "layers", "diff_ids": diff_ids}
    assert [line["created_by"] for line in config["history"]] == [f"/bin/sh -c step {n}" for n in range(3)]
    assert config["history"][1] == {
        "created": "2015-01-01T00:00:01Z",
        "created_by": "/bin/sh -c step 1",
        "author": "me",
    }
    assert (config["architecture"], config["os"], config["odd"]) == ("arm", "linux", 1.5)
    assert config["config"] == {"Cmd": ["sh"]}
    assert not {"id", "parent", "container_config", "Size"} & set(config)


def test_an_image_that_says_little_is_one_all_the_same():
    v1 = images_of({IDS[0]: {}})
    config = json.loads(config_of(v1.top(IDS[0]), v1.history(v1.chain(IDS[0])), [], "test", limits=LIMITS))
    assert (config["architecture"], config["os"], config["history"]) == ("amd64", "linux", [{}])


LOOP = {IDS[0]: {"parent": IDS[1]}, IDS[1]: {"parent": IDS[0]}}


@pytest.mark.hostile(15)
@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ({IDS[0]: {"parent": IDS[0]}}, InvalidArgument, "its own parents"),
        (LOOP, InvalidArgument, "its own parents"),
        ({IDS[0]: {"parent": IDS[5]}}, NotFound, IDS[5]),
        ({}, NotFound, IDS[0]),
        ({IDS[0]: {"parent": "../../etc"}}, InvalidArgument, "no image's ID"),
        ({IDS[0]: {"parent": "a/b"}}, InvalidArgument, "no image's ID"),
        ({IDS[0]: {"parent": "A" * 64}}, InvalidArgument, "no image's ID"),
        ({IDS[0]: {"parent": 7}}, InvalidArgument, "parent"),
        ({IDS[0]: {"id": IDS[1]}}, InvalidArgument, "is about"),
        ({IDS[0]: {"created": 7}}, InvalidArgument, "created"),
        ({IDS[0]: {"container_config": {"Cmd": "sh"}}}, InvalidArgument, "Cmd"),
        ({IDS[0]: b"[]"}, InvalidArgument, "object"),
        ({IDS[0]: b"\xff"}, InvalidArgument, "JSON"),
        ({IDS[0]: b'{"a":' * 100 + b"1" + b"}" * 100}, ResourceExhausted, "json_depth"),
        ({IDS[0]: {"comment": "x" * 5_000}}, ResourceExhausted, "config_size"),
        ({IDS[number]: {"parent": IDS[number + 1]} for number in range(12)}, ResourceExhausted, "layers"),
        (linked(9, comment="x" * 3_000), ResourceExhausted, "metadata_size"),
    ],
)  # fmt: skip
def test_a_chain_that_is_none_is_refused(said: dict[str, Any], error: type[Error], words: str):
    v1 = images_of(said)
    with pytest.raises(error, match=words):
        v1.chain(next(reversed(said), IDS[0]) if "metadata" in words else IDS[0])


@pytest.mark.hostile(15)
def test_a_history_that_no_config_holds_is_refused_before_it_is_put_together():
    v1 = images_of(linked(4, comment="x" * 1_500))
    chain = v1.chain(IDS[3])
    with pytest.raises(ResourceExhausted, match="config_size"):
        v1.history(chain)


@pytest.mark.parametrize(
    "top", [{"config": 7}, {"config": {"Env": "A=b"}}, {"os": 7}, {"architecture": ["amd64"]}]
)
def test_a_config_that_none_could_read_is_not_made(top: dict[str, object]):
    with pytest.raises(InvalidArgument):
        config_of(top, [], [], "test", limits=LIMITS)


def test_repositories_give_names_in_their_order():
    data = json.dumps({"b": {"2": IDS[0], "1": IDS[1]}, "a": {"x": IDS[0]}}).encode()
    assert parse_repositories(data, "test", limits=LIMITS) == {"b:2": IDS[0], "b:1": IDS[1], "a:x": IDS[0]}
    assert parse_repositories(b"{}", "test", limits=LIMITS) == {}


@pytest.mark.hostile(15, 18)
@pytest.mark.parametrize(
    "said", [b"", b"[]", b'{"a": 7}', b'{"a": {"b": 7}}', b'{"a": {"b": "../x"}}', b'{"a": {"b": ""}}']
)
def test_repositories_that_say_no_ids_are_refused(said: bytes):
    with pytest.raises(InvalidArgument):
        parse_repositories(said, "test", limits=LIMITS)
