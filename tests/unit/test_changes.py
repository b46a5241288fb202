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
from orlop.images.changed.changes import INSTRUCTIONS, apply_change
from orlop.images.changed.commit import edit_config
from orlop.spec.digest import DiffID
from orlop.spec.documents import parse_config

TIMES = "--interval=1m30s --timeout=.5s --start-period=0s  --start-interval=2ms"
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
        ("USER\tme", {}, {"User": "me"}),
        # words are a builder's: quotes, escapes, variables of before the line
        (r"ENV A=\"x\" B=a\ b C='it\'", {}, {"Env": ['A="x"', "B=a b", "C=it\\"]}),
        (r'ENV A="a \"b\" \c $$"' + " B=\"x\"y'z'", {}, {"Env": [r'A=a "b" \c $$', "B=xyz"]}),
        ("ENV PATH=$PATH:/x", {"Env": ["PATH=/bin"]}, {"Env": ["PATH=/bin:/x"]}),
        ("ENV A=1 B=$A", {"Env": ["A=0"]}, {"Env": ["A=1", "B=0"]}),
        ("ENV A=${A:-d}${A:+e}${N:-n$A}${N:+x}", {"Env": ["A=1"]}, {"Env": ["A=1en1"]}),
        ("ENV A=${E-d}${E:-d}${E+s}", {"Env": ["E="]}, {"Env": ["E=", "A=ds"]}),
        (r"ENV A='$A' B=\$A", {"Env": ["A=1"]}, {"Env": ["A=$A", "B=$A"]}),
        ('ENV A say "hello $W" now', {"Env": ["W=w"]}, {"Env": ["W=w", "A=say hello w now"]}),
        ('LABEL a="1" b=2\tc=\'3 4\'', {}, {"Labels": {"a": "1", "b": "2", "c": "3 4"}}),
        ("LABEL $K=$V", {"Env": ["K=k", "V=v w"]}, {"Env": ["K=k", "V=v w"], "Labels": {"k": "v w"}}),
        ("EXPOSE 8000-8002 $P/UDP", {"Env": ["P=53"]}, {
            "Env": ["P=53"],
            "ExposedPorts": {"8000/tcp": {}, "8001/tcp": {}, "8002/tcp": {}, "53/udp": {}},
        }),
        ("VOLUME $V '/a b'", {"Env": ["V=/v"]}, {"Env": ["V=/v"], "Volumes": {"/v": {}, "/a": {}, "b": {}}}),
        ("WORKDIR x", {"WorkingDir": "/w"}, {"WorkingDir": "/w/x"}),
        ("WORKDIR x/../y/", {}, {"WorkingDir": "/y"}),
        ("WORKDIR /x", {"WorkingDir": "/w"}, {"WorkingDir": "/x"}),
        ("STOPSIGNAL SIGRTMIN+3", {}, {"StopSignal": "SIGRTMIN+3"}),
        ("STOPSIGNAL 9", {}, {"StopSignal": "9"}),
        # Docker's own
        ('SHELL ["/bin/bash", "-c"]', {}, {"Shell": ["/bin/bash", "-c"]}),
        ("CMD a b", {"Shell": ["bash", "-ec"]}, {"Shell": ["bash", "-ec"], "Cmd": ["bash", "-ec", "a b"]}),
        ("ENTRYPOINT a", {"Shell": ["x"], "Cmd": ["y"]}, {"Shell": ["x"], "Entrypoint": ["x", "a"]}),
        ("ONBUILD RUN make", {"OnBuild": ["ENV A=$A"]}, {"OnBuild": ["ENV A=$A", "RUN make"]}),
        ("HEALTHCHECK none", {}, {"Healthcheck": {"Test": ["NONE"]}}),
        ("HEALTHCHECK CMD curl x", {}, {"Healthcheck": {"Test": ["CMD-SHELL", "curl x"]}}),
        (
            f'HEALTHCHECK {TIMES} --retries=3 cmd ["a", "b c"]',
            {},
            {
                "Healthcheck": {
                    "Test": ["CMD", "a", "b c"],
                    "Interval": 90_000_000_000,
                    "Timeout": 500_000_000,
                    "StartPeriod": 0,
                    "StartInterval": 2_000_000,
                    "Retries": 3,
                }
            },
        ),
    ],
)  # fmt: skip
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
        ("ENV A=${B", "none of"),
        ("ENV A=${B:-c", "no '}'"),
        ("ENV A=${}", "without a variable's name"),
        ("ENV A=${B:?no}", "none of"),
        ("ENV A=" + "${A:-" * 60 + "}" * 60, "deep"),
        ("LABEL $A=b", "the key is ''"),
        ("USER $NOBODY", "says nothing"),
        ("EXPOSE x", "no port"),
        ("EXPOSE 0", "no port"),
        ("EXPOSE 70000", "no port"),
        ("EXPOSE 2-1", "no port"),
        ("EXPOSE 1/icmp", "no port"),
        ("STOPSIGNAL a b", "no signal"),
        ("SHELL /bin/sh", "JSON list"),
        ("SHELL []", "empty"),
        ("ONBUILD ONBUILD RUN x", "takes no ONBUILD"),
        ("ONBUILD from x", "takes no FROM"),
        ("HEALTHCHECK", "says nothing"),
        ("HEALTHCHECK x", "neither NONE nor CMD"),
        ("HEALTHCHECK CMD", "neither NONE nor CMD"),
        ("HEALTHCHECK --interval=1 CMD x", "no duration"),
        ("HEALTHCHECK --interval=1us CMD x", "out of range"),
        ("HEALTHCHECK --interval=9999999h CMD x", "out of range"),
        ("HEALTHCHECK --retries=0 CMD x", "from 1 on"),
        ("HEALTHCHECK --other=1s CMD x", "unknown flag"),
        ("VOLUME [' ']", "not a JSON list"),
        ('VOLUME [" "]', "without a path"),
        ('CMD ["\\ud800"]', "surrogate"),
        ("USER a\0b", "NUL"),
        ("LABEL ''  x", "not KEY=VALUE"),
        ('VOLUME ["a"', "not a JSON list"),
        ("VOLUME [1]", "list of strings"),
    ],
)
def test_what_is_no_instruction_is_refused(instruction: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        apply_change({}, instruction)


@given(
    st.sampled_from(INSTRUCTIONS),
    st.text() | st.text(alphabet="abA=\"' []{},:/\\#$-+1"),
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


def test_an_entrypoint_keeps_the_command_that_was_said_with_it() -> None:
    before = document(config={"Cmd": ["old"]})
    assert "Cmd" not in edited(before, changes=("ENTRYPOINT e",))["config"]
    made = edited(before, changes=('CMD ["c"]', 'ENTRYPOINT ["e"]'))
    assert made["config"] == {"Cmd": ["c"], "Entrypoint": ["e"]}


def test_a_maintainer_is_the_author() -> None:
    assert (
        edited(document(), author="me", changes=("MAINTAINER 'some body' <x>",))["author"] == "some body <x>"
    )


def test_a_squashed_commit_has_one_layer_and_tells_what_was_done_before() -> None:
    made = edited(document(), squash=True)
    assert made["rootfs"]["diff_ids"] == [NEW]
    assert made["history"] == [
        {"created_by": "base", "empty_layer": True},
        {"created_by": "ENV", "empty_layer": True},
        {"created": "2023-11-14T22:13:20Z", "created_by": "orlop commit --squash"},
    ]
