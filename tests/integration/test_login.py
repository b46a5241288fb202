"""Logging in and out: against a registry in memory, then against Debian's with skopeo and podman as judges."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import orlop
from orlop.cli import main
from orlop.config import Settings
from orlop.observe import Call, NullObserver
from orlop.registry.access.credentials import CredentialSources
from orlop.registry.access.login import login_of
from orlop.registry.client import Registry
from orlop.spec.digest import Digest
from orlop.spec.documents import OCI_MANIFEST
from orlop.spec.reference import Reference
from orlop.testing.registry import MemoryRegistry
from support.certificates import make_certificate
from support.images import make_image
from support.layers import Layer
from support.registries import Registry as Debian
from support.registries import serve
from support.tokenserver import TokenServer

PASSWORD = "hunter2-of-the-user"
MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}).encode()
# One file a server; credentials are never in its arguments, so the file has them.
HELPER = """#!/bin/sh
read -r told
echo "$1" >> STATE/log
case $1 in
store) server=$(echo "$told" | sed 's/.*"ServerURL":"\\([^"]*\\)".*/\\1/'); name=$(echo "$server" | tr /: __)
  printf '%s' "$told" > "STATE/$name" ;;
get) name=$(echo "$told" | tr /: __)
  test -e "STATE/$name" && cat "STATE/$name" || { echo credentials not found in native keychain; exit 1; } ;;
erase) name=$(echo "$told" | tr /: __)
  test -e "STATE/$name" && rm "STATE/$name" || { echo credentials not found in native keychain; exit 1; } ;;
list) echo '{"HOST":"me"}' ;;
esac
"""


class Words(NullObserver):
    """The warnings of a call."""

    def __init__(self):
        self.told = []

    def warning(self, text):
        self.told.append(text)


@pytest.fixture(params=["basic", "bearer"])
def server(request):
    with MemoryRegistry(auth=request.param, users={"me": PASSWORD, "other": "pw"}) as registry:
        registry.add_manifest("a/b", "1", MANIFEST, OCI_MANIFEST)
        yield registry


@pytest.fixture
def files(tmp_path):
    return [tmp_path / "run/auth.json", tmp_path / "config/auth.json", tmp_path / "docker/config.json"]


def settings_of(files, **more):
    return Settings(auth_files=tuple(map(str, files)), retries=1, timeout=30.0, **more)


def in_plain(name, password):
    return {"auth": base64.b64encode(f"{name}:{password}".encode()).decode()}


def write(file, document):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document))


def read(file):
    return json.loads(file.read_text())


def pulls(server, settings):
    """Whether an image can be resolved by what the files say."""
    sources = CredentialSources(files=settings.auth_files, helper_path=settings.helper_path)
    with contextlib.closing(Registry(settings, sources)) as client:
        try:
            client.resolve(Reference.parse(f"{server.host}/a/b:1"), call=Call())
        except orlop.Unauthenticated:
            return False
        return True


def test_a_login_is_tried_and_then_kept_where_a_pull_finds_it(server, files):
    settings, words = settings_of(files), Words()
    assert not pulls(server, settings)
    kept = orlop.login(server.host, "me", PASSWORD, settings=settings, call=Call(observer=words))
    assert kept == orlop.LoggedIn(registry=server.host, username="me", place=str(files[0]), kind="password")
    assert read(files[0]) == {"auths": {server.host: in_plain("me", PASSWORD)}}
    assert "plain text" in words.told[0]
    assert len(words.told) == 1
    assert pulls(server, settings)
    assert orlop.logins(settings=settings) == [kept]
    assert login_of(server.host, settings=settings, call=Call()) == "me"
    (gone,) = orlop.logout(server.host, settings=settings)
    assert gone == orlop.LoggedOut(registry=server.host, place=str(files[0]))
    assert not pulls(server, settings)
    assert not orlop.logins(settings=settings)
    with pytest.raises(orlop.NotFound, match="not logged in"):
        orlop.logout(server.host, settings=settings)
    with pytest.raises(orlop.NotFound, match="not logged in"):
        login_of(server.host, settings=settings, call=Call())


@pytest.mark.hostile(25)
def test_a_login_that_is_refused_keeps_nothing_and_says_no_password(server, files):
    write(files[1], {"auths": {server.host: in_plain("me", PASSWORD)}})
    before = files[1].read_bytes()
    with pytest.raises(orlop.Unauthenticated, match="is the name right") as caught:
        orlop.login(server.host, "me", "wrong-" + PASSWORD, settings=settings_of(files))
    assert PASSWORD not in str(caught.value)
    assert files[1].read_bytes() == before
    assert not files[0].exists()


@pytest.mark.parametrize(
    ("name", "password"),
    [("", "pw"), ("a:b", "pw"), ("me", "pw\udcff")],
    ids=["no name", "a colon in the name", "not UTF-8"],
)
def test_what_cannot_be_credentials_is_not_tried(server, files, name, password):
    with pytest.raises(orlop.InvalidArgument):
        orlop.login(server.host, name, password, settings=settings_of(files))
    with pytest.raises(orlop.InvalidArgument, match="no file is named"):
        orlop.login(server.host, "me", PASSWORD)
    assert not server.requests


def test_what_would_speak_over_a_login_is_taken_away(server, files):
    other = {"auths": {"r.example": in_plain("x", "y"), f"http://{server.host}/v2/": in_plain("other", "pw")}}
    write(files[0], other)
    write(files[2], {"auths": {}, "credHelpers": {server.host: "keeps"}, "more": 1})
    folder = helper(files[0].parent.parent, server.host)
    settings = settings_of(files, helper_path=f"{folder}:/usr/bin:/bin")
    kept = orlop.login(server.host, "me", PASSWORD, settings=settings)
    assert kept.place == "helper keeps"
    assert list(read(files[0])["auths"]) == ["r.example"]
    assert login_of(server.host, settings=settings, call=Call()) == "me"


def helper(folder, host):
    """A credential helper ``keeps``; the folder that it is in."""
    state = folder / "kept"
    state.mkdir(parents=True)
    program = folder / "docker-credential-keeps"
    program.write_text(HELPER.replace("STATE", str(state)).replace("HOST", host))
    program.chmod(0o755)
    return folder


@pytest.mark.parametrize("where", ["credsStore", "credHelpers"])
def test_a_helper_that_is_named_keeps_the_password_and_no_file_does(server, files, where):
    named = {where: "keeps" if where == "credsStore" else {server.host: "keeps"}, "HttpHeaders": {"X": "y"}}
    write(files[2], named)
    folder = helper(files[0].parent.parent / "bin", server.host)
    settings, words = settings_of(files, helper_path=f"{folder}:/usr/bin:/bin"), Words()
    kept = orlop.login(server.host, "me", PASSWORD, settings=settings, call=Call(observer=words))
    assert kept.place == "helper keeps"
    assert not words.told
    assert read(files[2]) == {**named, "auths": {server.host: {}}}
    assert PASSWORD in "".join(file.read_text() for file in (folder / "kept").iterdir())
    assert pulls(server, settings)
    assert [one.username for one in orlop.logins(settings=settings)] == ["me"]
    (gone,) = orlop.logout(server.host, settings=settings)
    assert gone.place == "helper keeps"
    assert read(files[2]) == {**named, "auths": {}}
    assert not pulls(server, settings)
    # What the helper cannot do is said, and nothing is kept in plain text behind the user's back.
    (folder / "docker-credential-keeps").unlink()
    with pytest.raises(orlop.NotFound, match="docker-credential-keeps"):
        orlop.login(server.host, "me", PASSWORD, settings=settings)
    assert read(files[2]) == {**named, "auths": {}}


def test_a_part_of_a_registry_has_a_login_of_its_own(server, files):
    settings = settings_of(files)
    orlop.login(f"{server.host}/a", "me", PASSWORD, settings=settings)
    orlop.login(server.host, "other", "pw", settings=settings)
    assert set(read(files[0])["auths"]) == {server.host, f"{server.host}/a"}
    names = [login_of(f"{server.host}{part}", settings=settings, call=Call()) for part in ("", "/a/b", "/c")]
    assert names == ["other", "me", "other"]
    (gone,) = orlop.logout(f"{server.host}/a", settings=settings)
    assert gone.registry == f"{server.host}/a"
    assert login_of(f"{server.host}/a", settings=settings, call=Call()) == "other"
    assert len(orlop.logout(None, settings=settings)) == 1
    assert not orlop.logins(settings=settings)
    assert orlop.logout(None, settings=settings) == []


def test_an_identity_token_that_is_offered_is_kept_in_the_passwords_place(files):
    with MemoryRegistry(auth="bearer", users={"me": PASSWORD}) as server:
        server.add_manifest("a/b", "1", MANIFEST, OCI_MANIFEST)
        server.offline = server.rotates = True
        settings = settings_of(files)
        kept = orlop.login(server.host, "me", PASSWORD, settings=settings)
        assert kept.kind == "identity token"
        assert PASSWORD not in files[0].read_text()
        server.users.clear()  # from now on only the token serves, and each only once
        tokens = [read(files[0])["auths"][server.host]["identitytoken"]]
        for _ in range(2):
            assert pulls(server, settings)
            tokens.append(read(files[0])["auths"][server.host]["identitytoken"])
        assert len(set(tokens)) == 3
        assert tokens[-1] in server.refresh_tokens


def test_a_registry_that_asks_for_nothing_is_remarked_on(files):
    words = Words()
    with MemoryRegistry() as server:
        orlop.login(server.host, "me", "pw", settings=settings_of(files), call=Call(observer=words))
        given = json.dumps({"auths": {server.host: in_plain("other", "pw")}})
        settings = settings_of(files, auth_config=given)
        orlop.login(server.host, "me", "pw", settings=settings, call=Call(observer=words))
        assert login_of(server.host, settings=settings, call=Call()) == "other"
    assert sum("kept untried" in text for text in words.told) == 2
    assert sum("DOCKER_AUTH_CONFIG" in text for text in words.told) == 1
    with pytest.raises(orlop.Unavailable):
        orlop.login(server.host, "me", "pw", settings=settings_of(files))


def test_logins_side_by_side_are_all_kept(server, files):
    settings = settings_of(files)
    parts = [f"{server.host}/p{number}" for number in range(8)]
    threads = [
        threading.Thread(target=orlop.login, args=(part, "me", PASSWORD), kwargs={"settings": settings})
        for part in parts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert set(read(files[0])["auths"]) == set(parts)


# ------------------------------------------------------------------ the command line


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """A user with a home and nothing in it."""
    for name in (
        "REGISTRY_AUTH_FILE",
        "DOCKER_CONFIG",
        "DOCKER_AUTH_CONFIG",
        "XDG_CONFIG_HOME",
        "ORLOP_HOST",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path


def say(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


@pytest.mark.hostile(25)
def test_the_command_line_logs_in_lists_and_logs_out(server, at_home, monkeypatch, capsys):
    say(monkeypatch, PASSWORD + "\n")
    assert main(["login", server.host, "-u", "me", "--password-stdin"]) == 0
    out, err = capsys.readouterr()
    file = at_home / "run/containers/auth.json"
    assert out == f"logged in to {server.host} as me: {file}\n"
    assert "plain text" in err
    assert read(file) == {"auths": {server.host: in_plain("me", PASSWORD)}}
    shown = out + err
    for argv, expected in (
        (["login", "--get-login", server.host], "me\n"),
        (
            ["login", "--get-login", "--json", f"{server.host}/team"],
            f'{{\n  "registry": "{server.host}/team"',
        ),
        (["login", "--list"], "KEPT IN"),
        (["login", "--list", "--json"], '"kind": "password"'),
        (["logout", server.host], f"logged out of {server.host}: {file}\n"),
    ):
        assert main(argv) == 0
        out, err = capsys.readouterr()
        assert expected in out
        shown += out + err
    assert main(["logout", server.host]) == 3
    say(monkeypatch, "wrong-" + PASSWORD)
    assert main(["login", server.host, "-u", "me", "--password-stdin"]) == 7
    other = at_home / "elsewhere.json"
    assert main(["login", server.host, "-u", "me", "-p", PASSWORD, "--authfile", str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["place"] == str(other)
    assert main(["logout", "--all", "--authfile", str(other)]) == 0
    out, err = capsys.readouterr()
    assert PASSWORD not in shown + out + err


@pytest.mark.parametrize(
    ("argv", "text", "words"),
    [
        (["login", "r.example", "-u", "me"], "", "no terminal"),
        (["login", "r.example", "--password-stdin"], "x", "whose password"),
        (["login", "r.example", "-u", "me", "--password-stdin"], "", "no password"),
        (["login", "r.example", "-u", "me", "--password-stdin"], "x" * 70_000, "no password"),
        (["login", "r.example", "-u", "me", "--password-stdin", "-p", "x"], "x", "leave out one"),
        (["login", "--list", "r.example"], "", "all registries"),
        (["login", "registry", "-u", "me", "--password-stdin"], "x", "not a registry"),
        (["logout", "--all", "r.example"], "", "every registry"),
    ],
)
def test_what_makes_no_sense_on_the_command_line_is_refused(at_home, monkeypatch, capsys, argv, text, words):
    say(monkeypatch, text)
    assert main(argv) == 2
    assert words in capsys.readouterr().err
    assert not list(at_home.iterdir())


@pytest.mark.hostile(25)
@pytest.mark.parametrize("server", ["basic"], indirect=True)
def test_at_a_terminal_the_password_is_asked_for_and_not_shown(server, at_home):
    master, slave = pty.openpty()
    # setsid: getpass opens the terminal that the session has, whatever standard input is
    command = ["setsid", "--ctty", "--wait", sys.executable, "-m", "orlop", "login", server.host]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=False)
    os.close(slave)
    try:
        shown = until(master, b"Name at")
        os.write(master, b"me\n")
        shown += until(master, b"assword:")
        os.write(master, PASSWORD.encode() + b"\n")
        shown += until(master, b"logged in to")
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert PASSWORD.encode() not in shown
    assert read(at_home / "run/containers/auth.json")["auths"] == {server.host: in_plain("me", PASSWORD)}


def until(fd, words):
    """Read a terminal until some words are there."""
    seen, poller = b"", select.poll()
    poller.register(fd, select.POLLIN)
    for _ in range(1_000):
        if words in seen:
            return seen
        assert poller.poll(120_000), seen
        seen += os.read(fd, 65_536)
    raise AssertionError(seen)


# ------------------------------------------------------------------ judges


skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo as the judge")
podman = pytest.mark.skipif(shutil.which("podman") is None, reason="needs podman as the judge")


def judge(*command, told=""):
    """Run a command; its exit code and what it wrote."""
    done = subprocess.run(command, input=told, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.root
@skopeo
@podman
@pytest.mark.parametrize("tool", ["skopeo", "podman"])
def test_others_read_what_orlop_kept_and_orlop_reads_what_they_kept(
    registry_auth: Debian, tmp_path: Path, tool: str
) -> None:
    host, user, password = registry_auth.host, registry_auth.user, registry_auth.password
    file = str(tmp_path / "auth.json")
    settings = Settings(auth_files=(file,), retries=1)
    with pytest.raises(orlop.Unauthenticated):
        orlop.login(host, user, "wrong", settings=settings)
    orlop.login(host, user, password, settings=settings)
    where = (f"--authfile={file}", host)
    assert judge(tool, "login", "--get-login", *where) == (0, f"{user}\n")
    # With what is in the file alone it can log in again, and then log out.
    again = (tool, "login", "--tls-verify=false", "-u", user, "--password-stdin", *where)
    assert judge(*again, told=password)[0] == 0
    assert [one.username for one in orlop.logins(settings=settings)] == [user]
    sources = CredentialSources(files=settings.auth_files)
    with contextlib.closing(Registry(settings, sources)) as client:
        assert client.ping(host, call=Call())
    assert judge(tool, "logout", *where)[0] == 0
    assert not orlop.logins(settings=settings)
    assert judge(*again, told=password)[0] == 0
    assert login_of(host, settings=settings, call=Call()) == user
    orlop.logout(host, settings=settings)
    assert judge(tool, "login", "--get-login", *where)[0] != 0


@pytest.mark.root
@skopeo
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
@pytest.mark.skipif(shutil.which("docker-registry") is None, reason="needs docker-registry as the server")
def test_a_token_server_is_asked_without_a_scope_and_its_identity_token_serves_pushes_and_pulls(
    tmp_path: Path,
) -> None:
    """Against a real registry that believes only what the token server signed."""
    made = make_image([Layer().file("file", b"x").tar()])
    with (
        TokenServer(make_certificate(tmp_path / "keys"), users={"me": PASSWORD}) as tokens,
        serve(tmp_path / "registry", token=tokens) as registry,
    ):
        file = tmp_path / "auth.json"
        settings = Settings(auth_files=(str(file),), retries=1)
        with pytest.raises(orlop.Unauthenticated, match="is the name right"):
            orlop.login(registry.host, "me", "wrong", settings=settings)
        assert orlop.login(registry.host, "me", PASSWORD, settings=settings).kind == "identity token"
        assert [(one.user, one.scopes) for one in tokens.issued] == [("me", ())]
        assert PASSWORD not in file.read_text()
        tokens.users.clear()  # from now on only the identity token serves
        sources = CredentialSources(files=settings.auth_files)
        ref = Reference.parse(f"{registry.host}/a/b:1")
        with contextlib.closing(Registry(settings, sources)) as client:
            for data in made.blobs.values():
                client.upload_blob(ref, [data], digest=Digest.of(data), size=len(data), call=Call())
            client.put_manifest(ref, made.document, made.media_type, call=Call())
            assert client.resolve(ref, call=Call()).data == made.document
        where = ("--tls-verify=false", f"--authfile={file}", f"docker://{ref}")
        assert judge("skopeo", "inspect", "--raw", *where) == (0, made.document.decode())
