"""Credential files and helper programs."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
from functools import partial

import pytest

from orlop.config import Settings
from orlop.errors import (
    Cancelled,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from orlop.observe import Auth, Call, CancelToken, NullObserver
from orlop.registry.access.authfile import can_be_written, keep_token
from orlop.registry.access.credentials import (
    Credential,
    CredentialSources,
    Helper,
    Keychain,
    find,
    own,
    read_document,
    usual_sources,
)
from orlop.registry.access.helpers import MAX_OUTPUT, ask_helper, erase_helper, list_helper, store_helper


def auth(name, password="pw"):
    return {"auth": base64.b64encode(f"{name}:{password}".encode()).decode()}


def first(document, registry="r.example", repository="a/b", scheme="https"):
    return next(find(document, registry, repository, scheme=scheme), None)


@pytest.mark.hostile(21)
@pytest.mark.parametrize(
    ("keys", "registry", "repository", "expected"),
    [
        (["r.example"], "r.example", "a/b", "r.example"),
        (["r.example:5000"], "r.example", "a/b", None),
        (["r.example"], "r.example:5000", "a/b", None),
        (["r.example", "r.example/a", "r.example/a/b"], "r.example", "a/b", "r.example/a/b"),
        (["r.example", "r.example/a"], "r.example", "a/b", "r.example/a"),
        (["r.example/a"], "r.example", "ab/c", None),
        (["r.example/a/b/c"], "r.example", "a/b", None),
        (["https://r.example/v2/"], "r.example", "a/b", "https://r.example/v2/"),
        (["https://r.example"], "r.example", "a/b", "https://r.example"),
        (["http://r.example"], "r.example", "a/b", None),
        (["https://index.docker.io/v1/"], "docker.io", "library/a", "https://index.docker.io/v1/"),
        (["docker.io"], "docker.io", "library/a", "docker.io"),
        (["docker.io/me"], "docker.io", "me/x", "docker.io/me"),
        (["docker.io/me"], "docker.io", "library/a", None),
        (["r.example.evil"], "r.example", "a/b", None),
        (["index.docker.io"], "r.example", "a/b", None),
    ],
)
def test_the_longest_key_that_fits_wins_and_no_other_hosts(keys, registry, repository, expected):
    found = first({"auths": {key: auth(key) for key in keys}}, registry, repository)
    # A user name ends at its first colon, so the key is put together again here.
    assert (f"{found.username}:{found.password}".removesuffix(":pw") if found else None) == expected


@pytest.mark.hostile(24)
def test_a_key_for_https_is_not_used_in_the_clear():
    document = {"auths": {"https://r.example": auth("me")}}
    assert first(document, scheme="https").username == "me"
    assert first(document, scheme="http") is None


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (auth("me", "p:w"), Credential(username="me", password="p:w")),
        (auth("me", "pw\0\0"), Credential(username="me", password="pw")),
        ({"username": "me", "password": "pw"}, Credential(username="me", password="pw")),
        ({**auth("me"), "identitytoken": "t"}, Credential(username="me", password="pw", identity_token="t")),
        ({"registrytoken": "t"}, Credential(registry_token="t")),
        ({}, None),
        ({"auth": ""}, None),
        ({"auth": "%%%"}, None),
        ({"auth": base64.b64encode(b"nocolon").decode()}, None),
        ({"auth": 7}, None),
        ("text", None),
    ],
)
def test_an_entry_is_read_or_passed_over(entry, expected):
    found = first({"auths": {"r.example": entry}})
    assert found == expected
    assert found is None or "pw" not in repr(found)


ME = Credential(username="me", password="pw")
HUB = "https://index.docker.io/v1/"


def asks(name, server="r.example"):
    return Helper(name=name, server=server)


@pytest.mark.parametrize(
    ("helpers", "store", "keys", "registry", "expected"),
    [
        ({"r.example": "one"}, "all", ["r.example"], "r.example", [asks("one"), ME]),
        ({"other.example": "one"}, "all", ["r.example"], "r.example", [asks("all"), ME]),
        ({"https://r.example": "one"}, "all", [], "r.example", [asks("one")]),
        ({"http://r.example": "one"}, "all", [], "r.example", [asks("all")]),
        ({"r.example": ""}, "all", ["r.example"], "r.example", [ME]),
        ({"r.example": 7}, "all", [], "r.example", [asks("all")]),
        (
            {"r.example/a": "one", "r.example": "two"},
            "",
            [],
            "r.example",
            [asks("one", "r.example/a"), asks("two")],
        ),
        ({"r.example": "one"}, "all", ["r.example/a"], "r.example", [ME, asks("one")]),
        (
            {"r.example/a": "one"},
            "all",
            ["r.example/a"],
            "r.example",
            [asks("one", "r.example/a"), ME, asks("all")],
        ),
        ({}, "all", [HUB], "docker.io", [asks("all", HUB), asks("all", "docker.io"), ME]),
        ({HUB: "one"}, "all", [], "docker.io", [asks("one", HUB), asks("one", "docker.io")]),
    ],
)
def test_particular_keys_go_first_and_a_registrys_helper_in_place_of_the_store(
    helpers, store, keys, registry, expected
):
    document = {"credHelpers": helpers, "credsStore": store, "auths": {key: auth("me") for key in keys}}
    assert list(find(document, registry, "a/b", scheme="https")) == expected


@pytest.mark.hostile(25)
def test_dockers_headers_for_its_daemon_are_nobodys():
    document = {"HttpHeaders": {"Authorization": "Basic x", "X-Meta": "y"}, "auths": {}}
    assert not list(find(document, "r.example", "a", scheme="https"))


@pytest.mark.parametrize("document", [{}, {"auths": []}, {"auths": None, "credHelpers": 3, "credsStore": {}}])
def test_a_strange_document_offers_nothing(document):
    assert first(document) is None


def test_the_usual_places_are_podmans_then_dockers():
    sources = usual_sources({"HOME": "/h", "XDG_RUNTIME_DIR": "/run/user/7", "PATH": "/bin"}, uid=7)
    assert sources.files == (
        "/run/user/7/containers/auth.json",
        "/h/.config/containers/auth.json",
        "/h/.docker/config.json",
    )
    assert sources.helper_path == "/bin"
    assert usual_sources({}, uid=0).files == ("/run/containers/0/auth.json",)
    assert usual_sources({"DOCKER_CONFIG": "/d"}, uid=0).files[-1] == "/d/config.json"
    assert usual_sources({"REGISTRY_AUTH_FILE": "/x", "HOME": "/h"}, uid=0).files == ("/x",)
    given = usual_sources({"DOCKER_AUTH_CONFIG": '{"auths":{}}', "REGISTRY_AUTH_FILE": "/x"}, uid=0)
    assert given.document == '{"auths":{}}'
    assert "auths" not in repr(given)


def test_a_document_that_is_given_whole_goes_before_files_and_names_no_programs(tmp_path):
    file = write(tmp_path / "a", {"auths": {"r.example": auth("filed"), "s.example": auth("filed")}})
    given = {
        "auths": {"r.example": auth("given")},
        "credsStore": "none",
        "credHelpers": {"r.example": "none"},
    }
    sources = CredentialSources(files=(file,), document=json.dumps(given))
    asked = []
    keychain = Keychain(sources, lambda helper, path, call: asked.append(helper))
    found = [keychain(host, "a", scheme="https", call=Call()) for host in ("r.example", "s.example")]
    assert [one.username for one in found] == ["given", "filed"]
    assert not asked
    warnings = Warnings()
    broken = Keychain(CredentialSources(files=(file,), document="{s3cret"), ask_helper)
    assert broken("r.example", "a", scheme="https", call=Call(observer=warnings)).username == "filed"
    assert len(warnings.texts) == 1
    assert "s3cret" not in warnings.texts[0]
    assert "s3cret" not in repr(Settings(auth_config="{s3cret")) + repr(sources) + repr(broken)


def test_a_credential_of_the_call_is_for_the_registry_that_it_names_alone():
    auth = Auth(username="me", password="hunter2", registry="r.example")
    assert own(auth, "r.example") == Credential(username="me", password="hunter2")
    for other in ("s.example", "r.example:5000", ""):
        assert own(auth, other) is None
    assert own(Auth(registry="r.example"), "r.example") is None
    assert own(None, "r.example") is None
    assert "hunter2" not in repr(Call(auth=auth))


def test_a_renewed_identity_token_is_used_and_kept_in_its_file(tmp_path):
    document = {"auths": {"r.example": {**auth("me", ""), "identitytoken": "old"}}, "more": [1]}
    file = write(tmp_path / "config.json", document)
    keep = partial(keep_token, limit=1 << 20)
    keychain = Keychain(CredentialSources(files=(file,)), ask_helper, keep)
    for old, new in (("old", "new"), ("new", "newer")):
        found = keychain("r.example", "a", scheme="https", call=Call())
        assert found.identity_token == old
        keychain.renewed(found, new, call=Call())
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "auths": {"r.example": {**auth("me", ""), "identitytoken": "newer"}},
        "more": [1],
    }
    # Where the file cannot be changed, the new one is remembered all the same.
    warnings = Warnings()
    (tmp_path / "config.json").write_text(json.dumps(document))
    frozen = Keychain(CredentialSources(files=(file,)), ask_helper, no_change)
    found = frozen("r.example", "a", scheme="https", call=Call())
    frozen.renewed(found, "new", call=Call(observer=warnings))
    assert frozen("r.example", "a", scheme="https", call=Call()).identity_token == "new"
    assert len(warnings.texts) == 1


def no_change(credential, token, *, call):
    raise PermissionDenied("change credentials", "it is read-only")


class Warnings(NullObserver):
    def __init__(self):
        self.texts = []

    def warning(self, text):
        self.texts.append(text)


def write(path, document):
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(path)


@pytest.mark.parametrize("entry", [{"auth": "!!!"}, {"auth": "bm9jb2xvbg=="}, {"auth": 7}, "s3cret", None])
def test_a_broken_entry_is_warned_of_and_the_next_file_serves(tmp_path, entry):
    warnings = Warnings()
    files = []
    for number, found in enumerate((entry, {}, {"auth": "dTpw"})):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps({"auths": {"r.example/a": found, "other.example": "broken"}}))
        files.append(str(path))
    keychain = Keychain(CredentialSources(files=tuple(files)), ask_helper)
    found = keychain("r.example", "a", scheme="https", call=Call(observer=warnings))
    assert (found.username, found.password) == ("u", "p")
    (text,) = warnings.texts
    assert files[0] in text
    assert "r.example/a" in text
    assert "s3cret" not in text


def test_a_broken_file_is_warned_of_and_the_next_one_serves(tmp_path):
    files = (
        str(tmp_path / "missing"),
        write(tmp_path / "empty", ""),
        write(tmp_path / "broken", "{"),
        write(tmp_path / "good", {"auths": {"r.example": auth("me")}}),
    )
    warnings = Warnings()
    keychain = Keychain(CredentialSources(files=files), ask_helper)
    found = keychain("r.example", "a", scheme="https", call=Call(observer=warnings))
    assert found.username == "me"
    assert len(warnings.texts) == 1
    assert "broken" in warnings.texts[0]


def helper_program(folder, name, script):
    path = folder / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


ANSWERS = 'read server; printf \'{"ServerURL":"%s","Username":"me","Secret":"for %s"}\' "$server" "$server"'


def test_a_helper_is_told_the_server_and_its_answer_is_used(tmp_path):
    helper_program(tmp_path, "good", ANSWERS)
    path = f"{tmp_path}{os.pathsep}{os.defpath}"
    assert ask_helper(Helper(name="good", server="r.example"), path, Call()) == Credential(
        username="me", password="for r.example"
    )


def test_a_helpers_token_user_means_an_identity_token(tmp_path):
    helper_program(tmp_path, "token", 'echo \'{"Username":"<token>","Secret":"t"}\'')
    found = ask_helper(Helper(name="token", server="r"), str(tmp_path), Call())
    assert found == Credential(identity_token="t")


def test_a_helper_without_the_credential_says_so(tmp_path):
    helper_program(tmp_path, "none", "echo credentials not found in native keychain; exit 1")
    assert ask_helper(Helper(name="none", server="r"), str(tmp_path), Call()) is None


@pytest.mark.hostile(25)
@pytest.mark.parametrize(
    ("name", "script", "error", "words"),
    [
        ("fails", "echo no key ring here; exit 3", Unavailable, "no key ring here"),
        ("leaks", 'echo \'{"Secret":"hunter2"}\'; exit 3', Unavailable, "status 3"),
        ("garbles", "echo hunter2", Unavailable, "not the JSON"),
        ("../x", "", InvalidArgument, "not a helper's name"),
        ("missing", None, NotFound, "docker-credential-missing"),
    ],
)
def test_a_failing_helper_is_named_without_what_it_knows(tmp_path, name, script, error, words):
    if script and "/" not in name:
        helper_program(tmp_path, name, script)
    with pytest.raises(error, match=words) as caught:
        ask_helper(Helper(name=name, server="r"), str(tmp_path), Call())
    assert "hunter2" not in str(caught.value)


def test_a_broken_helper_is_warned_of_and_the_file_serves(tmp_path):
    document = {"credsStore": "missing", "auths": {"r.example": auth("me")}}
    warnings = Warnings()
    sources = CredentialSources(files=(write(tmp_path / "c", document),), helper_path=str(tmp_path))
    found = Keychain(sources, ask_helper)("r.example", "a", scheme="https", call=Call(observer=warnings))
    assert found.username == "me"
    assert "docker-credential-missing" in warnings.texts[0]


def test_a_helper_that_hangs_is_ended_with_the_call(tmp_path):
    helper_program(tmp_path, "hangs", "exec tail -f /dev/null")
    cancel = CancelToken()
    cancel.cancel()
    path = f"{tmp_path}{os.pathsep}{os.defpath}"
    with pytest.raises(Cancelled):
        ask_helper(Helper(name="hangs", server="r"), path, Call(cancel=cancel))


def ran_by(folder):
    """A helper that writes down how it was run."""
    helper_program(
        folder,
        "spy",
        f"""pwd > {folder}/pwd; env > {folder}/env; echo "$*" > {folder}/args; cat > {folder}/told
ps -o sid= -p $$ > {folder}/sid; echo $$ > {folder}/pid
echo '{{"Username":"me","Secret":"x"}}'""",
    )
    return f"{folder}{os.pathsep}.{os.pathsep}{os.defpath}"


@pytest.mark.hostile(31)
def test_a_helper_runs_in_the_root_folder_in_a_session_of_its_own_and_not_by_anothers_leave(
    tmp_path, monkeypatch
):
    path = ran_by(tmp_path)
    for name, value in {
        "LD_PRELOAD": "",
        "LD_LIBRARY_PATH": "/image",
        "PYTHONPATH": "/image",
        "BASH_ENV": "/image",
        "ORLOP_HOST": "x",
        "DOCKER_AUTH_CONFIG": "s3cret",
        "GNUPGHOME": "/keys",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    secret = Credential(username="me", password="hunter2")
    store_helper(Helper(name="spy", server="r.example"), secret, path, Call())
    seen = {name: (tmp_path / name).read_text() for name in ("pwd", "env", "args", "told", "sid", "pid")}
    passed = dict(line.partition("=")[::2] for line in seen["env"].splitlines())
    assert seen["pwd"] == "/\n"
    assert seen["sid"].strip() == seen["pid"].strip()
    assert passed["GNUPGHOME"] == "/keys"
    assert "." not in passed["PATH"].split(os.pathsep)
    for name in (
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "PYTHONPATH",
        "BASH_ENV",
        "ORLOP_HOST",
        "DOCKER_AUTH_CONFIG",
    ):
        assert name not in passed
    assert seen["args"] == "store\n"  # and no secret
    assert json.loads(seen["told"]) == {"ServerURL": "r.example", "Username": "me", "Secret": "hunter2"}


KEEPS = """
read -r told
case $1 in
store) printf '%s\\n' "$told" > STATE ;;
get) test -e STATE && cat STATE || { echo credentials not found in native keychain; exit 1; } ;;
erase) test -e STATE && rm STATE || { echo credentials not found in native keychain; exit 1; } ;;
list) echo '{"r.example":"me"}' ;;
esac
"""


def test_a_helper_keeps_gives_back_lists_and_forgets(tmp_path):
    helper_program(tmp_path, "keeps", KEEPS.replace("STATE", f"{tmp_path}/state"))
    path, one = f"{tmp_path}{os.pathsep}{os.defpath}", Helper(name="keeps", server="r.example")
    assert ask_helper(one, path, Call()) is None
    assert not erase_helper(one, path, Call())
    for kept in (Credential(username="m\u00e9", password='p"w\\'), Credential(identity_token="t")):
        store_helper(one, kept, path, Call())
        assert ask_helper(one, path, Call()) == kept
    assert list_helper("keeps", path, Call()) == {"r.example": "me"}
    assert erase_helper(one, path, Call())
    assert ask_helper(one, path, Call()) is None


@pytest.mark.hostile(25)
def test_a_helper_that_repeats_what_it_was_told_is_not_repeated(tmp_path):
    helper_program(tmp_path, "echoes", 'echo "cannot store hunter2 today"; exit 1')
    secret = Credential(username="me", password="hunter2")
    with pytest.raises(Unavailable, match="status 1") as caught:
        store_helper(Helper(name="echoes", server="r"), secret, str(tmp_path), Call())
    assert "hunter2" not in str(caught.value)


def test_a_helper_that_never_stops_talking_is_ended(tmp_path):
    helper_program(tmp_path, "talks", "exec cat /dev/zero")
    path = f"{tmp_path}{os.pathsep}{os.defpath}"
    with pytest.raises(ResourceExhausted, match=str(MAX_OUTPUT)):
        ask_helper(Helper(name="talks", server="r"), path, Call())


def test_what_a_helper_leaves_running_is_not_waited_for(tmp_path):
    helper_program(tmp_path, "leaves", f"tail -f /dev/null & echo $! > {tmp_path}/pid; {ANSWERS}")
    path = f"{tmp_path}{os.pathsep}{os.defpath}"
    try:
        found = ask_helper(Helper(name="leaves", server="r.example"), path, Call())
        assert found.username == "me"
    finally:
        os.kill(int((tmp_path / "pid").read_text()), 9)


def test_a_helper_that_reads_nothing_holds_nobody_up(tmp_path):
    helper_program(tmp_path, "deaf", "exit 0")
    big = Credential(username="me", password="x" * 300_000)
    store_helper(Helper(name="deaf", server="r"), big, f"{tmp_path}{os.pathsep}{os.defpath}", Call())


@pytest.mark.parametrize(
    ("named", "registry", "meant"),
    [
        ("index.docker.io", "docker.io", True),
        ("docker.io", "docker.io", True),
        ("R.Example:5000", "r.example:5000", True),
        ("r.example", "r.example:5000", False),
        ("docker.io", "r.example", False),
        ("r.example", "docker.io", False),
    ],
)
def test_a_call_names_a_registry_as_images_names_do(named, registry, meant):
    assert bool(own(Auth(username="user", password="pw", registry=named), registry)) is meant


def test_a_file_of_credentials_that_is_no_regular_file_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")  # opening it would wait for somebody who writes, for ever
    (tmp_path / "link").symlink_to("fifo")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(tmp_path / "socket"))
    answers = {}

    def read(name):
        try:
            answers[name] = read_document(os.fspath(tmp_path / name), 1 << 20)
        except Exception as exc:  # noqa: BLE001 - looked at below
            answers[name] = exc

    names = ["fifo", "link", "folder", "socket"]
    readers = [threading.Thread(target=read, args=(name,), daemon=True) for name in names]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)
    assert set(answers) == set(names)
    for answer in answers.values():
        assert isinstance(answer, InvalidArgument)
        assert "not a regular file" in str(answer)
    keychain = Keychain(CredentialSources(files=(os.fspath(tmp_path / "fifo"),)), ask_helper)
    assert keychain("r.example", "a/b", scheme="https", call=Call()) is None
    assert read_document(os.devnull, 1 << 20) == {}  # says that there are none


def test_a_folder_that_somebody_makes_at_this_moment_can_be_written_to(tmp_path, monkeypatch):
    """Else of two first logins side by side one would go to another file."""
    is_folder = os.path.isdir

    def look(path):
        found = is_folder(path)
        if not found and path == str(tmp_path / "run"):
            os.mkdir(path)
        return found

    monkeypatch.setattr(os.path, "isdir", look)
    assert can_be_written(str(tmp_path / "run" / "auth.json"))


def test_a_file_is_no_folder_to_write_to(tmp_path):
    (tmp_path / "file").touch()
    assert can_be_written(str(tmp_path / "new" / "auth.json"))
    assert not can_be_written(str(tmp_path / "file" / "auth.json"))
