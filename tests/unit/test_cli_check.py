"""``orlop check`` against a store that answers what it is told to."""

from __future__ import annotations

import json

import pytest

from orlop.cli import main
from orlop.facade import Store
from orlop.images.upkeep import Checked, Finding

LAYER = "layer sha256:" + "ab" * 32


class Answers:
    """The one verb, and how it was asked."""

    def __init__(self, checked):
        self.checked = checked
        self.asked = None

    def check(self, *, full, repair, things, pace, call):
        self.asked = {"full": full, "repair": repair, "things": things, "pace": pace}
        return self.checked

    def close(self):
        pass


def finding(kind="damage", action="", **more):
    about = {"problem": "wrong-digest", "thing": LAYER, "detail": "its tar has another digest", **more}
    return Finding(kind=kind, action=action, **about)


@pytest.fixture
def run(capsys):
    def run_(checked, *argv):
        verbs = Answers(checked)
        code = main(["check", "--progress", "none", *argv], open_store=lambda target: Store(verbs))
        captured = capsys.readouterr()
        return code, captured.out, captured.err, verbs.asked

    return run_


def test_a_sound_store_prints_nothing_and_ends_with_0(run):
    code, out, err, asked = run(Checked(findings=(), full=False, images=2, layers=1, roots=1))
    assert (code, out) == (0, "")
    assert "checked 2 images, 1 layer, 0 chains, 0 blobs, 1 root: no damage" in err
    assert asked == {"full": False, "repair": False, "things": (), "pace": None}


def test_options_and_things_are_handed_down(run):
    asked = run(Checked(findings=(), full=True), "--full", "--repair", "--pace", "2M", "alpine", LAYER)[3]
    assert asked == {"full": True, "repair": True, "things": ("alpine", LAYER), "pace": 2 << 20}


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([finding()], 9),
        ([finding(action="failed")], 9),
        ([finding(action="quarantined")], 9),
        ([finding(action="rebuilt")], 0),
        ([finding(action="fetched"), finding(action="fixed"), finding(action="forgotten")], 0),
        ([finding(action="fetched"), finding()], 9),
        ([finding("leftover"), finding("warning")], 0),
    ],
    ids=str,
)
def test_the_exit_code_tells_whether_damage_is_left(run, findings, code):
    checked = Checked(findings=tuple(findings), full=True)
    assert run(checked)[0] == code
    assert run(checked, "--json")[0] == code


def test_a_finding_names_its_thing_what_is_wrong_what_was_done_and_who_suffers(run):
    suffer = ("a:1", "b:1", "/srv/a", "/srv/b")
    _, out, err, _ = run(Checked(findings=(finding(action="fetched", affects=suffer),), full=True, bytes=5))
    for text in (
        LAYER,
        "wrong-digest",
        "fetched",
        "its tar has another digest",
        "a:1, b:1, /srv/a and 1 more",
    ):
        assert text in out
    assert "1 damaged, 0 of them still" in err
    assert "5 B read" in err


def test_a_name_that_would_steer_the_terminal_does_not(run):
    out = run(Checked(findings=(finding(thing="stray \x1b[2J"),), full=False))[1]
    assert "\x1b" not in out


def test_json_has_the_findings_and_the_verdict(run):
    checked = Checked(findings=(finding(action="fetched", affects=("a:1",)),), full=True, layers=1, bytes=9)
    said = json.loads(run(checked, "--json")[1])
    assert (said["clean"], said["sound"], said["full"], said["bytes"]) == (False, True, True, 9)
    assert said["findings"] == [
        {
            "kind": "damage",
            "problem": "wrong-digest",
            "thing": LAYER,
            "detail": "its tar has another digest",
            "affects": ["a:1"],
            "action": "fetched",
        }
    ]


@pytest.mark.parametrize("pace", ["fast", "-1", "0", "1e9"])
def test_a_pace_that_is_none_is_wrong_usage(run, pace):
    code, _, err, asked = run(Checked(findings=(), full=False), f"--pace={pace}")
    assert code == 2
    assert pace in err
    assert asked is None
