"""Config edits: the instructions of ``commit --change``, and what a commit does to the config."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import InvalidArgument
from orlop.images.api import CommitOptions
from orlop.images.changed.changes import apply_change
from orlop.images.changed.commit import edit_config
from orlop.spec.digest import DiffID
from orlop.spec.documents import parse_config

ID, NEW = DiffID.of(b"old"), DiffID.of(b"new")


@pytest.mark.parametrize(
    ("instruction", "before", "after"),
    [
        ('CMD ["a", "b c"]', {}, {"Cmd": ["a", "b c"]}),
        ("cmd echo hi", {}, {"Cmd": ["/bin/sh", "-c", "echo hi"]}),
        ("CMD []", {"Cmd": ["x"]}, {"Cmd": []}),
        ('ENTRYPOINT ["e"]', {"Cmd": ["x"]}, {"Entrypoint": ["e"]}),
        ("ENV A=1 B='two words'", {}, {"Env": ["A=1", "B=two words"]}),
        ("ENV A=2", {"Env": ["A=1", "B=1"]}, {"Env": ["B=1", "A=2"]}),
        ("ENV A some words", {"Env": None}, {"Env": ["A=some words"]}),
        ("ENV A=b=c", {}, {"Env": ["A=b=c"]}),
        ("ENV A=", {}, {"Env": ["A="]}),
        ("LABEL k=v", {"Labels": {"o": "1"}}, {"Labels": {"o": "1", "k": "v"}}),
        ('LABEL "k e y"="v"', {}, {"Labels": {"k e y": "v"}}),
        ("EXPOSE 80 53/udp", {}, {"ExposedPorts": {"80/tcp": {}, "53/udp": {}}}),
        ("VOLUME /a /b", {"Volumes": {"/o": {}}}, {"Volumes": {"/o": {}, "/a": {}, "/b": {}}}),
        ('VOLUME ["/a b"]', {}, {"Volumes": {"/a b": {}}}),
        ("USER 1:2", {"User": "0"}, {"User": "1:2"}),
        ("WORKDIR /w", {}, {"WorkingDir": "/w"}),
        ("STOPSIGNAL SIGINT", {}, {"StopSignal": "SIGINT"}),
        ("  user   me  ", {}, {"User": "me"}),
    ],
)
def test_an_instruction_edits_its_field(
    instruction: str, before: dict[str, Any], after: dict[str, Any]
) -> None:
    config = copy.deepcopy(before)
    apply_change(config, instruction)
    assert config == after


@pytest.mark.parametrize(
    ("instruction", "words"),
    [
        ("", "unknown instruction"),
        ("RUN make", "unknown instruction"),
        ("CMD", "says nothing"),
        ("CMD [1]", "list of strings"),
        ('CMD ["a"', "not a JSON list"),
        ("CMD [" + "[" * 100_000, "not a JSON list"),
        ("ENV A=1 B", "not KEY=VALUE"),
        ("ENV =1", "not KEY=VALUE"),
        ("ENV 'open", "quotation"),
        ("ENV ''", "not KEY=VALUE"),
        ("LABEL ''  x", "not KEY=VALUE"),
        ('VOLUME ["a"', "not a JSON list"),
        ("VOLUME [1]", "list of strings"),
    ],
)
def test_what_is_no_instruction_is_refused(instruction: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        apply_change({}, instruction)


@given(
    st.sampled_from(
        ["CMD", "ENTRYPOINT", "ENV", "EXPOSE", "LABEL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"]
    ),
    st.text() | st.text(alphabet="ab=\"' []{},:/\\#"),
)
def test_any_instruction_leaves_a_config_that_can_be_read_or_is_refused(word: str, rest: str) -> None:
    config: dict[str, Any] = {"Env": ["A=1"], "Labels": {"a": "b"}}
    try:
        apply_change(config, f"{word} {rest}")
    except InvalidArgument:
        return
    document = {"rootfs": {"type": "layers", "diff_ids": []}, "config": config}
    parse_config(json.dumps(document).encode("utf-8", "surrogatepass"), "read it back")


def test_arguments_that_are_not_utf_8_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="UTF-8"):
        apply_change({}, "USER \udcff")
    for options in ({"author": "\udcff"}, {"message": "\udcff"}):
        with pytest.raises(InvalidArgument, match="UTF-8"):
            edited(document(), **options)


@pytest.mark.parametrize("created", [10**12, -(10**12), 10**30])
def test_a_time_that_no_date_has_is_refused(created: int) -> None:
    with pytest.raises(InvalidArgument, match="no date"):
        edited(document(), created=created)


def document(**more: Any) -> dict[str, Any]:
    return {
        "architecture": "amd64",
        "os": "linux",
        "created": "2000-01-01T00:00:00Z",
        "config": {"Cmd": ["sh"], "Unknown": 1},
        "rootfs": {"type": "layers", "diff_ids": [str(ID)]},
        "history": [{"created_by": "base"}, {"created_by": "ENV", "empty_layer": True}],
        "x-unknown": {"kept": True},
        **more,
    }


def edited(before: dict[str, Any], diff_id: DiffID | None = NEW, **options: Any) -> dict[str, Any]:
    original = copy.deepcopy(before)
    data = edit_config(before, diff_id, CommitOptions(**{"created": 1_700_000_000, **options}))
    assert before == original, "the old document is somebody else's"
    return json.loads(data)


def test_a_commit_adds_a_layer_and_a_line_and_keeps_what_it_does_not_know() -> None:
    made = edited(document(), author="me", message="why")
    assert made["rootfs"] == {"type": "layers", "diff_ids": [ID, NEW]}
    assert made["history"][:2] == document()["history"]
    assert made["history"][2] == {
        "created": "2023-11-14T22:13:20Z",
        "created_by": "orlop commit",
        "author": "me",
        "comment": "why",
    }
    assert (made["created"], made["author"]) == ("2023-11-14T22:13:20Z", "me")
    assert made["config"] == {"Cmd": ["sh"], "Unknown": 1}
    assert made["x-unknown"] == {"kept": True}


def test_a_commit_of_no_change_adds_a_line_without_a_layer() -> None:
    made = edited(document(), None)
    assert made["rootfs"]["diff_ids"] == [ID]
    assert made["history"][-1]["empty_layer"] is True


@pytest.mark.parametrize("history", [None, [], [{"created_by": "x", "empty_layer": True}]], ids=repr)
def test_there_is_a_line_of_history_for_each_layer(history: list[Any] | None) -> None:
    made = edited(document(history=history))
    layers = [line for line in made["history"] if not line.get("empty_layer")]
    assert len(layers) == len(made["rootfs"]["diff_ids"]) == 2


def test_what_docker_wrote_about_another_container_is_left_out() -> None:
    made = edited(document(container="c", container_config={"Cmd": ["x"]}, id="i", parent="p"))
    assert not {"container", "container_config", "id", "parent"} & set(made)


def test_the_same_commit_gives_the_same_bytes() -> None:
    options = CommitOptions(created=0, changes=("ENV B=1", "LABEL z=1 a=2"))
    shuffled = dict(reversed(document().items()))
    assert edit_config(document(), NEW, options) == edit_config(shuffled, NEW, options)


@pytest.mark.parametrize("config", [None, {}], ids=repr)
def test_changes_also_fit_a_config_that_has_none(config: dict[str, Any] | None) -> None:
    assert edited(document(config=config), changes=("USER me",))["config"] == {"User": "me"}
