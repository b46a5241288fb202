"""Every key: documented, and heard from a file, the environment and the command line, in that order."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
import pytest

from orlop.cli import declared, main
from orlop.cli.app import VERBS, app, found_verb
from orlop.cli.configuration import configured, fields_of
from orlop.cli.daemon import daemon_verb
from orlop.cli.session import Target
from orlop.config import Configuration, Settings
from orlop.config.files import read_set
from orlop.config.keys import OWN_OPTIONS, Key, example, keys, toml_of, variable_of
from orlop.config.limits import limits_by_name
from orlop.config.service import DaemonOptions, ServiceLimits
from orlop.errors import InvalidArgument
from orlop.facade import Store
from orlop.testing.fake import FakeStore
from orlop.values import fields


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's own counts."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.setattr("orlop.cli.environment.SYSTEM_CONFIG", str(tmp_path / "none.toml"))
    for name in os.environ:
        if name.startswith("ORLOP_") or name.upper().endswith("_PROXY") or name in _FOREIGN:
            monkeypatch.delenv(name)


_FOREIGN = ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "DOCKER_AUTH_CONFIG", "CONTAINERS_REGISTRIES_CONF")


def samples(key: Key) -> list[Any]:
    """Three values that the key takes, none of them its default."""
    if get_origin(key.kind) is Literal:
        found = [value for value in get_args(key.kind) if value != key.default]
        return [*found, *found, *found][:3]
    if key.name in limits_by_name() or key.table == "limits":
        most = limits_by_name()[key.last].most
        return [min(most, value) for value in (11, 12, 13)]
    if key.name == "daemon.log_level":
        return ["DEBUG", "ERROR", "WARNING"]
    if key.name == "daemon.log_format":
        return ["json", "json", "json"]
    if key.table == "proxy" and key.kind is str:
        return ["http://a:1", "http://b:2", "http://c:3"]
    if key.kind is bool:
        return [not key.default] * 3
    if key.kind in (int, float):
        return [21, 22, 23]
    if key.kind is str:
        return ["/a", "/b", "/c"]
    return [["a"], ["b"], ["c", "d"]]


def worded(value: Any) -> str:
    """A value as a variable or an option has it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(value) if isinstance(value, list) else str(value)


def settled(configuration: Configuration, key: Key) -> Any:
    """What comes of a key where it is used; as TOML has it."""
    target = Target(configuration=configuration)
    if key.table == "daemon":
        options = {item.name: bool if item.name == "tracing" else str for item in fields(DaemonOptions)}
        limits = fields_of(ServiceLimits, ServiceLimits(), configuration.table("daemon"), beside=options)
        found = getattr(limits, key.last, configuration.get(key.name))
    elif key.table == "":
        found = getattr(target.settings(), key.last, configuration.get(key.name))
    else:
        found = getattr(getattr(target.settings(), key.table), key.last)
    return list(found) if isinstance(found, tuple) else found


@pytest.mark.parametrize("name", [name for name in keys() if name not in OWN_OPTIONS])
def test_a_key_is_heard_from_a_file_a_variable_over_it_and_an_option_over_both(
    name: str, tmp_path: Path
) -> None:
    key = keys()[name]
    first, second, third = samples(key)
    path = tmp_path / "c.toml"
    head = f"[{key.table}]\n" if key.table else ""
    path.write_text(f"{head}{key.last} = {toml_of(first)}\n")
    found = configured(str(path), {}, 0)
    assert (settled(found, key), found.place(name)) == (first, f"{path}:{2 if head else 1}")
    found = configured(str(path), {key.variable: worded(second)}, 0)
    assert (settled(found, key), found.source(name)) == (second, key.variable)
    found = found.over(read_set(f"{name}={worded(third)}"))
    assert (settled(found, key), found.source(name)) == (third, "--set")


OWN = {
    "root": (("/f", "/e", "/c"), lambda target: target.root_path),
    "run": (("/f", "/e", "/c"), lambda target: target.run_path),
    "host": (("unix:///f", "unix:///e", "unix:///c"), lambda target: target.host),
    "tls_cert": (("/f", "/e", "/c"), lambda target: target.tls_cert),
    "tls_key": (("/f", "/e", "/c"), lambda target: target.tls_key),
    "tls_ca": (("/f", "/e", "/c"), lambda target: target.tls_ca),
    "driver": (("native", "overlay", "erofs"), lambda target: target.settings().driver),
    "insecure_registries": (("f", "e", "c"), lambda target: target.settings().insecure_registries[0]),
    "durable": (("false", "false", "false"), lambda target: str(target.settings().durable).lower()),
}


@pytest.mark.parametrize("name", OWN)
def test_so_is_a_key_with_an_option_of_its_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, second, third), get = OWN[name]
    path, targets = tmp_path / "c.toml", list[Target]()
    value = f'["{first}"]' if name == "insecure_registries" else first if name == "durable" else f'"{first}"'
    path.write_text(f"{name} = {value}\n")

    def opened(target: Target) -> Store:
        targets.append(target)
        return Store(FakeStore())

    def told(*args: str) -> tuple[str, str]:
        assert main(["--config", str(path), *args, "images"], open_store=opened) == 0
        return get(targets[-1]), targets[-1].configuration.source(name)

    assert told() == (first, str(path))
    monkeypatch.setenv(variable_of(name), second)
    assert told() == (second, variable_of(name))
    option = OWN_OPTIONS[name]
    given = ("--no-durable",) if name == "durable" else (option, third)
    assert told(*given) == (third, "--durable" if name == "durable" else option)
    with pytest.raises(InvalidArgument, match="an option of its own"):
        read_set(f"{name}={third}")


def test_every_key_has_one_of_these_ways() -> None:
    assert {*OWN, "progress", "color"} == set(OWN_OPTIONS)


def commands(command: click.Command, ctx: click.Context) -> list[tuple[str, ...]]:
    """The words of all verbs that show progress."""
    found: list[tuple[str, ...]] = []
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            inner = command.get_command(ctx, name)
            assert inner is not None
            found += [
                (name, *words) for words in commands(inner, click.Context(inner, parent=ctx, info_name=name))
            ]
    elif any(param.name == "progress" for param in command.params):
        found.append(())
    return found


def test_every_verb_that_shows_progress_hears_the_key(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('progress = "json"\n')
    root = declared.clicks(app) if not isinstance(app, click.Command) else app
    words = commands(root, click.Context(root, info_name="orlop"))
    assert len(words) > 8
    from orlop.cli.configuration import _of_verbs

    defaults = _of_verbs(configured(str(path), {}, 0))
    for one in words:
        found: Any = defaults
        for word in one:
            found = found[word]
        assert found["progress"] == "json", f"orlop {' '.join(one)}"


def test_the_keys_of_a_daemon_are_its_options_and_what_it_asks_of_clients() -> None:
    options = {param.name for param in declared.clicks(daemon_verb).params} - {"help"}
    limits = {item.name for item in fields(ServiceLimits)}
    assert {item.name for item in fields(DaemonOptions)} == options - limits
    for key in keys().values():
        if key.option.startswith("orlop daemon "):
            assert any(key.option.split()[2] in param.opts for param in declared.clicks(daemon_verb).params)


def test_an_option_of_the_daemon_can_be_set_before_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    found = configured("/dev/null", {"ORLOP_DAEMON_GROUP": "g", "ORLOP_DAEMON_USERS": "a,b"}, 0)
    assert (found.get("daemon.group"), found.get("daemon.users")) == ("g", ("a", "b"))


def test_what_is_the_machines_own_speaks_over_files_and_under_what_is_orlops(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        'auth_files = ["/f"]\nauth_config = "f"\nhelper_path = "/f"\n[proxy]\nhttps = "http://f"\n'
    )
    for name, value in (
        ("REGISTRY_AUTH_FILE", "/m"),
        ("DOCKER_AUTH_CONFIG", "m"),
        ("HTTPS_PROXY", "http://m"),
    ):
        monkeypatch.setenv(name, value)
    settings = Target(configuration=configured(str(path), {}, 0)).settings()
    assert (settings.auth_files, settings.auth_config) == (("/m",), "m")
    assert (settings.helper_path, settings.proxy.https) == ("/f", "http://f")
    own = configured(str(path), {"ORLOP_AUTH_FILES": "/o", "ORLOP_AUTH_CONFIG": "o"}, 0)
    settings = Target(configuration=own).settings()
    assert (settings.auth_files, settings.auth_config) == (("/o",), "o")


# ------------------------------------------------------------------ the verbs


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Run ``orlop --config FILE ARGS``; gives the exit code and both outputs."""

    def orlop(text: str, *args: str) -> tuple[int, str, str]:
        path = tmp_path / "c.toml"
        path.write_text(text)
        code = main(["--config", str(path), *args])
        return code, *capsys.readouterr()

    return orlop


def test_show_says_where_each_value_came_from_and_hides_secrets(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ORLOP_RETRIES", "7")
    text = 'driver = "native"\nauth_config = "{secret}"\n[limits]\ndepth = 9\n[proxy]\nhttps = "http://me:secret@p:1"\n'
    code, out, _ = run(text, "--set", "daemon.quick=3", "config", "show", "--changed", "--json")
    path = str(tmp_path / "c.toml")
    found = {one["key"]: (one["value"], one["source"], one["line"]) for one in json.loads(out)}
    assert (code, found) == (
        0,
        {
            "driver": ("native", path, 1),
            "auth_config": ("(hidden)", path, 2),
            "retries": (7, "ORLOP_RETRIES", 0),
            "proxy.https": ("http://me:(hidden)@p:1", path, 6),
            "limits.depth": (9, path, 4),
            "daemon.quick": (3, "--set", 0),
        },
    )
    assert "secret" not in run(text, "config", "show")[1].replace("{secret}", "")
    lines = run(text, "config", "show", "limits", "pull")[1].splitlines()
    assert lines[1].split() == ["pull", "missing", "default"]
    assert len(lines) == 2 + len(limits_by_name())
    assert (
        run(text, "config", "show", "driver", "--format", "{{.value}} {{.source}}")[1] == f"native {path}\n"
    )
    code, _, said = run(text, "config", "show", "limts")
    assert (code, "did you mean limits?" in said) == (3, True)


def test_all_keys_are_shown_in_the_order_of_the_reference(run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("", "config", "show", "-q")[1].split() == list(keys())
    assert [one["name"] for one in json.loads(run("", "config", "keys", "--json")[1])] == list(keys())


def test_check_tells_all_and_ends_with_2_where_something_is_wrong(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, out, _ = run("drvier = 1\n[limits]\ndepth = 0\n", "config", "check")
    path = tmp_path / "c.toml"
    assert (code, [line.split(": ")[0] for line in out.splitlines()]) == (2, [f"{path}:1", f"{path}:3"])
    code, out, said = run("downloads = 4\n", "config", "check")
    assert (code, out, "nothing is wrong" in said) == (0, "", True)
    code, out, _ = run('auth_files = ["/nowhere"]\n', "config", "check", "--json")
    assert (code, json.loads(out)[0]["state"]) == (0, "note")
    other = tmp_path / "other.toml"
    other.write_text("downloads = 'x'\n")
    code, out, _ = run("", "config", "check", str(other))
    assert (code, out.partition(": ")[0]) == (2, f"{other}:1")


def test_a_broken_file_stops_all_verbs_but_those_that_tell(run: Callable[..., tuple[int, str, str]]) -> None:
    for verb in (("images",), ("config", "show"), ("info",)):
        code, out, said = run("drvier = 1\n", *verb)
        assert (code, out) == (2, "")
        assert "line 1: there is no setting 'drvier'" in said
        assert "did you mean driver?" in said


def test_the_example_is_a_file_of_all_keys_that_parses_with_and_without_its_marks(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    text = run("", "config", "example")[1]
    assert text == example()
    assert tomllib.loads(text) == {"proxy": {}, "limits": {}, "daemon": {}}
    bare = "\n".join(
        line.removeprefix("#") if line.startswith("#") and line[1:2].isalpha() else line
        for line in text.splitlines()
    )
    document = tomllib.loads(bare)
    names = [name for name in document if not isinstance(document[name], dict)]
    for table in ("proxy", "limits", "daemon"):
        names += [f"{table}.{name}" for name in document[table]]
    assert names == list(keys())
    path = tmp_path / "c.toml"
    path.write_text(bare)
    assert configured(str(path), {}, 0).settings() == Settings()


@pytest.mark.parametrize("name", ["ORLOP_DRIVER", "ORLOP_DURABLE", "ORLOP_COLOR"])
def test_a_variable_that_is_wrong_is_named_and_not_the_option_that_nobody_gave(
    name: str, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "odd")
    code, _, said = run("", "images")
    assert (code, said.partition(": 'odd' is not ")[0]) == (2, f"orlop: error: invalid value of {name}")


def test_the_daemons_settings_are_refused_where_a_daemon_is_asked(
    run: Callable[..., tuple[int, str, str]],
) -> None:
    code, _, said = run("", "--host", "unix:///nowhere", "--set", "downloads=3", "images")
    assert (code, "downloads is the daemon's business" in said) == (2, True)


def test_the_verbs_are_there() -> None:
    for verb in ("config", "doctor", "info"):
        assert any(verb in table for table in VERBS.values())
        assert found_verb(verb) is not None
