"""Files of credentials: what a change leaves alone, and whose the file is afterwards."""

from __future__ import annotations

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import Cancelled, FailedPrecondition, InvalidArgument, ResourceExhausted
from orlop.observe import Call, CancelToken
from orlop.registry.access.authfile import can_be_written, changing, entry_of, section
from orlop.registry.access.credentials import Credential, find, of_entry
from orlop.registry.access.login import Subject, subject_of
from support.fuzzing import trials

LIMIT = 1 << 20
STRANGE = '{"z": 1.50, "auths": {"b": {"auth": "eA==", "email": "e"}, "a": {}}, "HttpHeaders": {"X": "é"}, "n": null}'


def change(path, key="r.example", value=None):
    with changing(str(path), limit=LIMIT, call=Call()) as document:
        section(document, "auths", "test")[key] = value or {"auth": "bTpw"}


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_a_change_keeps_what_it_does_not_know_in_its_order(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(STRANGE)
    change(file)
    before, after = json.loads(STRANGE), json.loads(file.read_text())
    assert after["auths"].pop("r.example") == {"auth": "bTpw"}
    assert json.dumps(after) == json.dumps(before)


def test_a_new_file_and_its_folder_are_nobody_elses(tmp_path):
    file = tmp_path / "a" / "b" / "auth.json"
    change(file)
    assert mode(file) == 0o600
    assert mode(file.parent) == 0o700
    assert os.listdir(file.parent) == ["auth.json"]


def test_a_file_that_others_could_read_is_so_no_more(tmp_path):
    file = tmp_path / "config.json"
    file.write_text("{}")
    file.chmod(0o644)
    change(file)
    assert mode(file) == 0o600


def test_nothing_is_written_where_nothing_changed(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(STRANGE)
    with changing(str(file), limit=LIMIT, call=Call()) as document:
        assert document["z"] == 1.5
    assert file.read_text() == STRANGE


@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_stays_one_and_what_it_points_at_is_changed(tmp_path, there):
    real = tmp_path / "dotfiles" / "config.json"
    real.parent.mkdir()
    if there:
        real.write_text("{}")
    link = tmp_path / "config.json"
    link.symlink_to("dotfiles/config.json")
    change(link)
    assert link.is_symlink()
    assert "r.example" in json.loads(real.read_text())["auths"]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("{", InvalidArgument),
        ("[]", InvalidArgument),
        ("[" * 100_000, (InvalidArgument, ResourceExhausted)),
        ('{"auths": []}', FailedPrecondition),
        ('{"auths": "x"}', FailedPrecondition),
        (" " * (LIMIT + 1), ResourceExhausted),
    ],
)
def test_what_cannot_be_read_is_not_written_over(tmp_path, content, error):
    file = tmp_path / "config.json"
    file.write_text(content)
    with pytest.raises(error):
        change(file)
    assert file.read_text() == content
    assert os.listdir(tmp_path) == ["config.json"]


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match="not a regular file"):
        change(tmp_path / "fifo")
    with pytest.raises(FailedPrecondition, match="not a regular file"):
        change(tmp_path)
    with pytest.raises(FailedPrecondition, match="not a folder"):
        change(tmp_path / "file" / "auth.json")


def test_an_error_in_the_block_changes_nothing(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(STRANGE)
    with pytest.raises(AttributeError), changing(str(file), limit=LIMIT, call=Call()) as document:
        section(document, "auths", "test").clear().more()
    assert file.read_text() == STRANGE
    assert os.listdir(tmp_path) == ["config.json"]


def test_changes_side_by_side_are_all_kept(tmp_path):
    file = tmp_path / "auth.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: change(file, f"r{number}.example"), range(16)))
    assert len(json.loads(file.read_text())["auths"]) == 16
    assert os.listdir(tmp_path) == ["auth.json"]


def test_a_wait_for_another_change_ends_with_the_call(tmp_path):
    file = str(tmp_path / "auth.json")
    cancel = CancelToken()
    with changing(file, limit=LIMIT, call=Call()):
        cancel.cancel()
        with pytest.raises(Cancelled), changing(file, limit=LIMIT, call=Call(cancel=cancel)):
            raise AssertionError


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a file of somebody else")
def test_under_sudo_the_file_stays_its_owners(tmp_path):
    file = tmp_path / "config.json"
    file.write_text("{}")
    os.chown(file, 4321, 4322)
    change(file)
    about = file.stat()
    assert (about.st_uid, about.st_gid) == (4321, 4322)


def test_where_a_file_could_be_is_told(tmp_path):
    (tmp_path / "file").touch()
    assert can_be_written(str(tmp_path / "a/b/c.json"))
    assert not can_be_written(str(tmp_path / "file" / "c.json"))
    assert not can_be_written("/proc/1/nowhere/auth.json")


@pytest.mark.parametrize(
    "credential",
    [
        Credential(username="me", password="p:w"),
        Credential(username="é", password="\U0001f511"),
        Credential(username="me", identity_token="t"),
    ],
)
def test_an_entry_says_what_it_was_made_of(credential):
    assert of_entry(entry_of(credential)) == credential


@pytest.mark.parametrize(
    ("text", "key", "in_docker", "server"),
    [
        ("", "docker.io", "https://index.docker.io/v1/", "https://index.docker.io/v1/"),
        ("docker.io", "docker.io", "https://index.docker.io/v1/", "https://index.docker.io/v1/"),
        (
            "https://index.docker.io/v1/",
            "docker.io",
            "https://index.docker.io/v1/",
            "https://index.docker.io/v1/",
        ),
        ("index.docker.io", "docker.io", "https://index.docker.io/v1/", "https://index.docker.io/v1/"),
        ("docker.io/me", "docker.io/me", "docker.io/me", "docker.io/me"),
        ("r.example", "r.example", "r.example", "r.example"),
        ("r.example/", "r.example", "r.example", "r.example"),
        ("https://r.example/v2/", "r.example", "r.example", "r.example"),
        ("r.lan:5000/team/app", "r.lan:5000/team/app", "r.lan:5000/team/app", "r.lan:5000/team/app"),
        ("localhost", "localhost", "localhost", "localhost"),
        ("[::1]:5000", "[::1]:5000", "[::1]:5000", "[::1]:5000"),
    ],
)
def test_what_a_user_types_is_a_registry_or_a_part_of_one(text, key, in_docker, server):
    subject = subject_of(text)
    assert (subject.key, subject.key_in("/h/.docker/config.json"), subject.server) == (key, in_docker, server)
    assert subject.key_in("/h/auth.json") == key
    assert key in subject.spellings()


@pytest.mark.parametrize(
    "text",
    [
        "registry",
        "ftp://r.example",
        "r.example/Team",
        "r.example/a:1",
        "u@r.example",
        "r.example/../x",
        "a b.example",
        "/x",
    ],
)
def test_what_is_no_registry_is_refused(text):
    with pytest.raises(InvalidArgument):
        subject_of(text)


@pytest.mark.hostile(25)
@pytest.mark.parametrize("text", ["https://me:s3cret@r.example", "me:s3cret@r.example/team"])
def test_a_password_that_was_typed_before_a_registry_is_not_repeated(text):
    with pytest.raises(InvalidArgument) as caught:
        subject_of(text)
    assert "s3cret" not in str(caught.value)


def test_a_part_has_one_spelling_and_docker_hub_many():
    assert Subject(registry="r.example", namespace="a").spellings() == ("r.example/a",)
    assert {"docker.io", "index.docker.io", "https://index.docker.io/v1/"} <= set(subject_of("").spellings())


@trials(60)
@given(
    name=st.text(min_size=1).filter(lambda text: ":" not in text),
    password=st.text().filter(lambda text: not text.startswith("\0") and not text.endswith("\0")),
)
def test_what_was_kept_is_what_is_found(name, password):
    kept = Credential(username=name, password=password)
    document = {"auths": {"r.example": entry_of(kept)}}
    assert next(find(document, "r.example", "a", scheme="http")) == kept


@trials(60)
@given(text=st.text(max_size=60) | st.from_regex(r"[a-z.:/@]{0,30}", fullmatch=True))
def test_what_is_typed_is_a_subject_or_refused(text):
    try:
        subject = subject_of(text)
    except InvalidArgument:
        return
    assert subject_of(subject.key) == subject
    assert not any(character.isspace() for character in subject.key)
