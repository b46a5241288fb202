"""Configuration files, the environment and flags: what they say, who wins, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import orlop
from orlop import config, errors
from orlop.cli import daemon_main, main
from orlop.cli.configuration import configured, fields_of
from orlop.cli.environment import config_files
from orlop.cli.session import Target
from orlop.config import DEFAULT_LIMITS, DRIVERS, Limits, Settings
from orlop.config.files import MAX_FILE, Given, read_limit, read_table
from orlop.config.keys import keys
from orlop.config.limits import limits_by_name
from orlop.config.values import convert, duration_of, kinds_of, size_of
from orlop.errors import Error, InvalidArgument, NotFound, PermissionDenied
from orlop.facade import Store
from orlop.testing.fake import FakeStore
from support import limits_page


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write a configuration file."""

    def put(text: str, name: str = "config.toml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
        return path

    return put


# ------------------------------------------------------------------ the limits themselves


def test_every_limit_is_described() -> None:
    for limit in limits_by_name().values():
        assert limit.guards, f"{limit.name}: say what it is a limit of, with _limit()"
        assert limit.unit in {"", "bytes", "seconds"}
        assert 1 <= limit.default <= limit.most
        assert not limit.because or limit.most < 2**63 - 1


@pytest.mark.parametrize("name", limits_by_name())
def test_a_limit_that_cannot_be_is_refused_by_name(name: str) -> None:
    most = limits_by_name()[name].most
    for value in (0, -1, most + 1, True, 1.5, "1", None):
        with pytest.raises(InvalidArgument, match=rf"limits\.{name} is") as caught:
            Limits(**{name: value})  # type: ignore[arg-type]
        assert caught.value.details["limit"] == name
    for value in (1, most):
        assert getattr(Limits(**{name: value}), name) == value


def test_the_page_of_limits_is_not_stale() -> None:
    for name in limits_page.PAGES:
        page = (limits_page.DOCS / name).read_text()
        assert page == limits_page.with_tables(page), "run tools/limits-table"


def test_the_page_names_every_limit_and_setting() -> None:
    page = (limits_page.DOCS / "configuration.md").read_text()
    for key in keys().values():
        assert f"| `{key.last}` |" in page
        assert f"`{key.variable}`" in page
        assert key.about, f"{key.name}: say what it does, with setting()"


def test_changed_limits_are_those_that_are_not_the_default() -> None:
    assert DEFAULT_LIMITS.changed() == {}
    assert Limits(depth=5, layers=1_024).changed() == {"depth": 5}


# ------------------------------------------------------------------ files


def test_a_file_says_settings_limits_and_what_a_daemon_takes(write: Callable[..., Path]) -> None:
    path = write("""
        driver = "native"
        durable = false
        downloads = 7
        timeout = "1m30s"
        insecure_registries = ["a:5000", "b"]
        root = "/srv/x"

        [limits]
        layer_size = "2GiB"
        layer_entries = 10_000
        worker_cpu = 60

        [daemon]
        group = "containers"
        quick = 3
    """)
    found = config.load(path)
    settings = found.settings()
    assert (settings.driver, settings.durable, settings.downloads, settings.timeout) == (
        "native",
        False,
        7,
        90.0,
    )
    assert settings.insecure_registries == ("a:5000", "b")
    assert settings.limits == Limits(layer_size=2 << 30, layer_entries=10_000, worker_cpu=60)
    assert settings.retries == Settings().retries
    assert (found.get("root"), found.get("run")) == ("/srv/x", None)
    assert {name: given.value for name, given in found.table("daemon").items()} == {
        "group": "containers",
        "quick": 3,
    }


def test_where_a_value_came_from_is_known(write: Callable[..., Path]) -> None:
    first = write('driver = "native"\n[limits]\ndepth = 5\nlayers = 6', "1.toml")
    second = write("[limits]\ndepth = 7", "2.toml")
    found = config.load(first, second).over(read_limit("layers=9", "--limit"))
    assert found.limits() == Limits(depth=7, layers=9)
    assert found.source("driver") == str(first)
    assert found.source("limits.depth") == str(second)
    assert found.source("limits.layers") == "--limit"
    assert found.source("limits.xattr_count") == "default"


def test_every_setting_can_be_set_in_a_file() -> None:
    samples: dict[str, object] = {
        "pull": "never",
        "driver": "overlay",
        "directio": True,
        "durable": False,
        "keep_blobs": True,
        "downloads": 9,
        "timeout": 2,
        "retries": 0,
        "insecure_registries": ["r"],
        "auth_files": ["/a"],
        "streams": 9,
        "uploads": 9,
        "upload_chunk": 1 << 20,
        "compression": "zstd",
        "compression_level": 9,
        "compression_format": "zstd:chunked",
        "compression_threads": 2,
        "stall_rate": 9,
        "retry_wait": 2,
        "events_kept": 9,
        "events_age": 2,
        "hosts_dirs": ["/d"],
        "registries_conf": ["/c"],
        "search_registries": ["r"],
        "auth_config": "{}",
        "foreign_layers": True,
        "nondistributable": True,
        "content_sharing": "isolated",
        "content_shareable": ["n"],
        "helper_path": "/bin",
    }
    kinds = kinds_of(Settings)
    assert {*samples, "limits", "proxy"} == set(kinds), (
        "a new setting needs a sample here, and docs/limits.md"
    )
    found = config.Configuration(given=read_table(samples, "a test")).settings()
    for name, value in samples.items():
        assert getattr(found, name) == (tuple(value) if isinstance(value, list) else value)
        assert getattr(found, name) != getattr(Settings(), name)


def test_proxies_have_a_table_and_a_search_is_a_flag_or_a_list() -> None:
    document = {"proxy": {"https": "http://p:1", "no": ["a"]}, "search_registries": True}
    settings = config.Configuration(given=read_table(document, "a test")).settings()
    assert (settings.proxy.http, settings.proxy.https, settings.proxy.no) == ("", "http://p:1", ("a",))
    assert settings.search_registries is True
    for wrong in ({"proxy": {"ftp": "x"}}, {"proxy": "x"}, {"search_registries": 1}):
        with pytest.raises(InvalidArgument):
            read_table(wrong, "a test")


@pytest.mark.parametrize("name", limits_by_name())
def test_every_limit_can_be_set_in_a_file_and_by_a_flag(name: str) -> None:
    value = min(limits_by_name()[name].most, 77)
    for given_by in (
        read_table({"limits": {name: value}}, "a test"),
        read_limit(f"{name}={value}", "--limit"),
    ):
        assert config.Configuration(given=given_by).limits().changed() == {name: value}


REFUSED: dict[str, tuple[str, str, str]] = {
    # what the file says: what the error says, and its hint
    "a mistyped setting": ('drvier = "native"', "'drvier'", "did you mean driver?"),
    "a mistyped limit": ("[limits]\nlayer_entires = 4", "'limits.layer_entires'", "limits.layer_entries"),
    "a limit outside its table": ("layer_size = 4", "'layer_size'", "did you mean limits.layer_size?"),
    "a table that is not known": ("[limit]\ndepth = 4", "'limit'", ""),
    "a table for a value": ("[limits.depth]\nx = 4", "limits.depth", ""),
    "a table for what the daemon takes": ("[daemon.quick]\nx = 4", "daemon.quick", ""),
    "a value for a table": ("limits = 4", "[limits]", ""),
    "an unknown driver": ('driver = "natve"', "one of auto, erofs, overlay, native", ""),
    "a number for a choice": ("driver = 4", "driver is 4", ""),
    "a number for a flag": ("durable = 1", "durable is 1; it takes true or false", ""),
    "a text for a flag": ('durable = "yes"', "durable is 'yes'", ""),
    "a flag for a number": ("downloads = true", "downloads is True", ""),
    "a float for a number": ("downloads = 1.5", "downloads is 1.5", ""),
    "a text that is no size": ('[limits]\ndepth = "many"', "limits.depth is 'many'", ""),
    "a size with a decimal suffix": ('[limits]\nlayer_size = "4MB"', "limits.layer_size is '4MB'", ""),
    "a negative number": ("[limits]\ndepth = -4", "limits.depth is -4", ""),
    "a number that is too large": ("[limits]\ndepth = 99999999999999999999", "limits.depth is", ""),
    "a limit of nothing": ("[limits]\ndepth = 0", "limits.depth is 0", ""),
    "more than Linux can have": ("[limits]\nname_size = 256", "limits.name_size is 256", ""),
    "no downloads": ("downloads = 0", "downloads is 0", ""),
    "no time": ("timeout = 0", "timeout is 0", ""),
    "endless time": ("timeout = inf", "timeout is inf", ""),
    "no number": ("timeout = nan", "timeout is nan", ""),
    "a text for a list": ('auth_files = "/a"', "auth_files is '/a'", ""),
    "a number in a list": ("auth_files = [1]", "auth_files is 1", ""),
    "a NUL": ('root = "/a\\u0000b"', "root is", ""),
    "a number for a path": ("root = 4", "root is 4", ""),
    "a date": ("root = 2020-01-01", "root is", ""),
    "a key twice": ("downloads = 1\ndownloads = 2", "not TOML", ""),
    "no TOML": ("{", "not TOML", ""),
    "a deep list": ("auth_files = " + "[" * 100_000, "not TOML", ""),
    "a deep table": ("a = " + "{a=" * 100_000, "not TOML", ""),
    "a huge number": ("downloads = " + "9" * 10_000, "", ""),
    "a file without an end": ("#" * (MAX_FILE + 1), "more than", ""),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_file_cannot_say_is_refused_with_the_keys_name(case: str, write: Callable[..., Path]) -> None:
    text, reason, hint = REFUSED[case]
    path = write(text)
    with pytest.raises(InvalidArgument) as caught:
        config.load(path)
    assert caught.value.attempted == f"read {path}"
    assert reason in caught.value.reason
    assert hint in caught.value.hint
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize("data", [b"root = '\xff'", b"\xff\xfe", b"root = '\xed\xa0\x80'", b"\x00"])
def test_what_is_no_text_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(data)
    with pytest.raises(InvalidArgument, match="not TOML"):
        config.load(path)


@given(st.text(max_size=300))
def test_any_text_is_a_configuration_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(text, errors="surrogatepass")
    try:
        config.load(path)
    except InvalidArgument as exc:
        assert exc.attempted == f"read {path}"  # noqa: PT017 - what it says, where it is refused


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        config.load(tmp_path / "none.toml")
    with pytest.raises(InvalidArgument, match="a folder"):
        config.load(tmp_path)
    assert config.load("/dev/null") == config.Configuration()
    assert config.load() == config.Configuration()


# ------------------------------------------------------------------ values


@pytest.mark.parametrize(
    ("text", "size"),
    [("4MiB", 4 << 20), ("4miB".replace("m", "M"), 4 << 20), ("1TiB", 1 << 40), ("2P", 2 << 50)],
)
def test_a_size_may_have_its_unit_spelled_out(text: str, size: int) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["4MB", "4mb", "4iB", "MiB", "4 MiB", "4MiBs", "4Mi"])
def test_decimal_and_garbled_units_are_no_sizes(text: str) -> None:
    with pytest.raises(InvalidArgument, match="not a size"):
        size_of(text)


def test_durations_have_units() -> None:
    assert duration_of("1h30m") == 5_400
    with pytest.raises(InvalidArgument):
        duration_of("90")


def test_an_optional_field_takes_what_its_type_takes() -> None:
    assert convert(4, int | None, "x", "read it") == 4
    with pytest.raises(InvalidArgument):
        convert("a", int | None, "x", "read it")


# ------------------------------------------------------------------ the command line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numbers:
    """As a daemon might have them."""

    calls: int = 5
    pause: float = 1.5
    names: tuple[str, ...] = ()


OPTIONS = {"group": str, "tracing": bool}


def test_numbers_of_a_daemon_are_fields_of_its_own_dataclass() -> None:
    table = {
        "calls": Given(value="2K", source="--limit"),
        "pause": Given(value=3, source="f"),
        "names": Given(value=["a"], source="f"),
        "group": Given(value="g", source="f"),
        "tracing": Given(value=True, source="f"),
    }
    assert fields_of(Numbers, Numbers(), table, beside=OPTIONS) == Numbers(
        calls=2_048, pause=3.0, names=("a",)
    )
    for name, value, said in (
        ("cals", 4, "did you mean daemon.calls?"),
        ("calls", "x", "daemon.calls"),
        ("pause", True, "daemon.pause"),
        ("group", ["g"], "daemon.group is ['g']; it takes a text"),
        ("tracing", "perhaps", "daemon.tracing"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            fields_of(Numbers, Numbers(), {name: Given(value=value, source="f")}, beside=OPTIONS)
        assert said in f"{caught.value.reason} {caught.value.hint}"
        assert caught.value.attempted == "read f"


def test_the_users_file_speaks_over_the_systems_and_the_environment_over_both(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    system = write('root = "/sys"\ndriver = "native"\n[limits]\ndepth = 2\nlayers = 2\nxattr_count = 2', "s")
    user = write("[limits]\nlayers = 3\nxattr_count = 3", "orlop/config.toml")
    environ = {"XDG_CONFIG_HOME": str(user.parents[1]), "ORLOP_LIMITS": "xattr_count=4, path_size=1K"}
    monkeypatch.setattr("orlop.cli.environment.SYSTEM_CONFIG", str(system))
    found = configured(None, environ, os.geteuid())
    assert found.limits() == Limits(depth=2, layers=3, xattr_count=4, path_size=1_024)
    assert found.get("driver") == "native"
    assert found.source("limits.xattr_count") == "ORLOP_LIMITS"
    assert configured("/dev/null", environ, 0).limits() == Limits(xattr_count=4, path_size=1_024)
    assert configured(None, environ, 1_000).get("root") is None  # a user has folders of his own
    assert configured(None, environ, 0).get("root") == "/sys"


def test_the_users_file_lies_where_xdg_says() -> None:
    assert config_files({"XDG_CONFIG_HOME": "/x", "HOME": "/h"})[1] == "/x/orlop/config.toml"
    assert config_files({"XDG_CONFIG_HOME": "x", "HOME": "/h"})[1] == "/h/.config/orlop/config.toml"


def test_a_file_that_others_may_write_is_refused_unless_it_was_named(write: Callable[..., Path]) -> None:
    path = write("downloads = 9", "orlop/config.toml")
    path.chmod(0o666)
    environ = {"XDG_CONFIG_HOME": str(path.parents[1])}
    with pytest.raises(PermissionDenied, match="--config"):
        configured(None, environ, os.geteuid())
    assert configured(str(path), environ, os.geteuid()).get("downloads") == 9


def test_settings_that_files_do_not_speak_of_stay_as_they_were(write: Callable[..., Path]) -> None:
    base = Settings(downloads=9, retries=1, limits=Limits(depth=4, layers=5))
    found = config.load(write("retries = 2\n[limits]\nlayers = 6")).settings(base)
    assert (found.downloads, found.retries, found.limits) == (9, 2, Limits(depth=4, layers=6))


def test_a_fifo_in_place_of_a_file_does_not_block(tmp_path: Path) -> None:
    (tmp_path / "orlop").mkdir()
    os.mkfifo(tmp_path / "orlop/config.toml")
    with pytest.raises(InvalidArgument, match="not a regular file"):
        configured(None, {"XDG_CONFIG_HOME": str(tmp_path)}, os.geteuid())


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Target]:
    """Run verbs without the machine's own configuration; what they were told is collected here."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.setattr("orlop.cli.environment.SYSTEM_CONFIG", str(tmp_path / "none.toml"))
    for name in [name for name in os.environ if name.startswith("ORLOP_")]:
        monkeypatch.delenv(name)
    return []


def settled(target: Target) -> Store:
    """A store in memory, once the settings are known to be in order."""
    target.settings()
    return Store(FakeStore())


def told(targets: list[Target], *args: str) -> Settings:
    """The settings that a run of the command line ends up with."""

    def opener(target: Target) -> Store:
        targets.append(target)
        return Store(FakeStore())

    assert main([*args, "images"], open_store=opener) == 0
    return targets[-1].settings()


def test_a_flag_beats_a_variable_and_a_variable_a_file(
    targets: list[Target], write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write('driver = "native"\ninsecure_registries = ["f"]\ndurable = false\nroot = "/f"\nrun = "/fr"')
    config_flag = ("--config", str(path))
    assert told(targets).driver == "auto"
    assert told(targets, *config_flag).driver == "native"
    assert told(targets, *config_flag).insecure_registries == ("f",)
    assert not told(targets, *config_flag).durable
    monkeypatch.setenv("ORLOP_CONFIG", str(path))
    monkeypatch.setenv("ORLOP_DRIVER", "overlay")
    monkeypatch.setenv("ORLOP_INSECURE_REGISTRIES", "e")
    monkeypatch.setenv("ORLOP_DURABLE", "1")
    monkeypatch.setenv("ORLOP_ROOT", "/e")
    settings = told(targets)
    assert (settings.driver, settings.durable, settings.insecure_registries) == ("overlay", True, ("e",))
    settings = told(targets, "--driver", "erofs", "--no-durable", "--root", "/c")
    assert (settings.driver, settings.durable) == ("erofs", False)
    target = targets[-1]
    assert (target.root_path, target.run_path) == ("/c", "/fr")
    source = target.configuration.source
    assert [source(name) for name in ("driver", "root", "run", "insecure_registries", "pull")] == [
        "--driver",
        "--root",
        str(path),
        "ORLOP_INSECURE_REGISTRIES",
        "default",
    ]


def test_limits_are_set_by_file_variable_and_flag_one_by_one(
    targets: list[Target], write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("[limits]\ndepth = 2\nlayers = 2\nxattr_count = 2")
    monkeypatch.setenv("ORLOP_LIMITS", "layers=3,xattr_count=3")
    settings = told(targets, "--config", str(path), "--limit", "xattr_count=4", "--limit", "layer_size=1MiB")
    assert settings.limits == Limits(depth=2, layers=3, xattr_count=4, layer_size=1 << 20)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--limit", "depht=4"), "did you mean limits.depth?"),
        (("--limit", "depth"), "not NAME=VALUE"),
        (("--limit", "=4"), "not NAME=VALUE"),
        (("--limit", "depth=x"), "limits.depth is 'x'"),
        (("--limit", "name_size=1000"), "limits.name_size is 1000"),
        (("--config", "/no/such/file"), "No such file"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    args: tuple[str, ...], said: str, targets: list[Target], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*args, "images"], open_store=settled) in (2, 3)
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown


def test_limits_are_the_daemons_business(
    targets: list[Target], capsys: pytest.CaptureFixture[str], write: Callable[..., Path]
) -> None:
    assert main(["--host", "unix:///x", "--limit", "depth=4", "images"]) == 2
    assert "--limit is the daemon's business" in capsys.readouterr().err


@pytest.mark.parametrize("command", [main, daemon_main])
def test_a_daemon_refuses_a_key_that_it_does_not_know(
    command: Callable[..., int],
    targets: list[Target],
    write: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write('host = "unix:///elsewhere"\n[daemon]\nqiuck = 3')
    args = ["--config", str(path), *(["daemon"] if command is main else [])]
    assert command(args) == 2
    shown = capsys.readouterr().err
    assert "there is no setting 'daemon.qiuck'" in shown
    assert "did you mean daemon.quick?" in shown
    assert str(path) in shown


@pytest.mark.parametrize("command", [main, daemon_main])
def test_a_daemon_names_the_key_whose_value_is_of_a_wrong_type(
    command: Callable[..., int],
    targets: list[Target],
    write: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for said, shown in (
        ('users = "root"', "daemon.users is 'root'; it takes a list"),
        ("read_only_groups = 4", "daemon.read_only_groups is 4; it takes a list"),
        ('listen = ["unix:///x"]', "daemon.listen is ['unix:///x']; it takes a text"),
        ("quick = []", "daemon.quick is []; it takes a number"),
    ):
        path = write(f"[daemon]\n{said}")
        args = ["--config", str(path), *(["daemon"] if command is main else [])]
        assert command(args) == 2
        assert shown in capsys.readouterr().err


def test_info_shows_the_limits_that_are_not_the_default(
    targets: list[Target], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--limit", "depth=100", "info"], open_store=settled) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^LIMIT +VALUE +DEFAULT +FROM$", shown, re.MULTILINE)
    assert re.search(r"^depth +100 +4096 +--limit$", shown, re.MULTILINE)
    assert main(["info", "--json"], open_store=settled) == 0
    assert json.loads(capsys.readouterr().out)["limits"] == {"depth": 100}


def test_the_library_takes_limits_as_values() -> None:
    assert orlop.Settings(limits=orlop.Limits(depth=4)).limits.depth == 4
    assert set(get_args(config.Driver)) == {"auto", *DRIVERS}
    assert issubclass(errors.ResourceExhausted, Error)
