"""`orlop doctor`: what each situation is found to be, and that a problem says what to do."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from orlop.cli import main
from orlop.config import Configuration, ProxySettings, Settings
from orlop.diagnosis import checks, programs
from orlop.diagnosis.configuration import (
    check_configuration,
    faults_of_file,
    faults_of_variables,
    faults_of_what_is_named,
)
from orlop.diagnosis.daemons import check_daemon, findings_of_info
from orlop.diagnosis.findings import Finding, Subject, note, ok, problem, run_checks
from orlop.diagnosis.folders import Disk, check_root, check_run, judge_disk
from orlop.diagnosis.machine import judge_drivers, judge_kernel, nearest
from orlop.diagnosis.process import judge_limits
from orlop.diagnosis.registries import check_registries, registries_of
from orlop.diagnosis.stores import check_store
from orlop.errors import NotFound
from orlop.images.upkeep import DriverInfo, StoreInfo
from orlop.values import replace
from orlop.version import __version__
from support.certificates import Certificate, make_certificate

GIB = 1 << 30
ALL = ("nodev", "overlay", "erofs")


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    """A store that is not there yet, of whoever runs the tests, in an empty environment."""
    return Subject(
        root=str(tmp_path / "root"),
        run=str(tmp_path / "run"),
        settings=Settings(),
        configuration=Configuration(),
        environ={"PATH": os.environ.get("PATH", os.defpath)},
        uid=os.geteuid(),
        timeout=60.0,
    )


def states(found: Any) -> dict[str, str]:
    """The worst state of each check."""
    worst: dict[str, str] = {}
    for one in found:
        if ("ok", "note", "problem").index(one.state) >= ("ok", "note", "problem").index(
            worst.get(one.check, "ok")
        ):
            worst[one.check] = one.state
        assert one.advice or one.state != "problem", f"{one.check}: a problem says what to do"
    return worst


# ------------------------------------------------------------------ what was read, judged


@pytest.mark.parametrize(
    ("release", "known", "found"),
    [
        ("6.18.1-arch", ALL, {"machine.kernel": "ok"}),
        ("6.12.0", ("overlay",), {"machine.kernel": "ok", "machine.erofs": "note"}),
        ("5.15.0-generic", ("overlay",), {"machine.kernel": "note"}),
        ("4.18.0-el8", ("overlay",), {"machine.kernel": "problem"}),
        ("odd", ALL, {"machine.kernel": "problem"}),
    ],
)
def test_a_kernel_is_judged_by_what_it_can_do(release: str, known: Any, found: dict[str, str]) -> None:
    assert states(judge_kernel(release, known)) == found


NO = "Operation not permitted"


@pytest.mark.parametrize(
    ("works", "privilege", "wanted", "found"),
    [
        ("erofs overlay native", "root", "auto", ("ok", "ok", "ok")),
        ("overlay native", "root", "auto", ("note", "ok", "ok")),
        ("overlay native", "root", "erofs", ("problem", "ok", "ok")),
        ("native", "none", "auto", ("note", "note", "ok")),
        ("", "root", "auto", ("problem", "problem", "problem")),
    ],
)
def test_a_driver_that_fails_is_a_problem_where_it_is_wanted(
    works: str, privilege: str, wanted: str, found: tuple[str, ...]
) -> None:
    drivers = [[name, name in works.split(), NO] for name in ("erofs", "overlay", "native")]
    said = states(judge_drivers({"privilege": privilege, "drivers": drivers}, wanted))
    assert tuple(said[f"machine.driver-{name}"] for name in ("erofs", "overlay", "native")) == found


def disk(**changes: Any) -> Disk:
    """A good one, but for some fields."""
    fields: dict[str, Any] = {
        "mount": "/m",
        "type": "ext4",
        "source": "/dev/x",
        "options": (),
        "size": 100 * GIB,
        "free": 50 * GIB,
        "files": 10**7,
        "free_files": 10**6,
        "reflink": False,
        "journal": True,
    }
    return Disk(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "check", "state"),
    [
        ({}, "folders.file-system", "ok"),
        ({"type": "tmpfs"}, "folders.file-system", "note"),
        ({"type": "overlay"}, "folders.file-system", "note"),
        ({"type": "nfs4"}, "folders.file-system", "problem"),
        ({"type": "fuse.sshfs"}, "folders.file-system", "problem"),
        ({"type": "odd"}, "folders.file-system", "note"),
        ({"options": ("ro",)}, "folders.file-system", "problem"),
        ({"options": ("noexec",)}, "folders.noexec", "note"),
        ({"options": ("nosuid",)}, "folders.nosuid", "note"),
        ({"options": ("nodev",)}, "folders.nodev", "note"),
        ({"journal": False}, "folders.journal", "note"),
        ({"free": GIB // 2}, "folders.space", "note"),
        ({"free": 1 << 20}, "folders.space", "problem"),
        ({"free_files": 5_000}, "folders.inodes", "note"),
        ({"free_files": 7}, "folders.inodes", "problem"),
        ({"reflink": True}, "folders.reflink", "ok"),
    ],
)
def test_a_disk_is_judged_by_what_it_lacks(changes: dict[str, Any], check: str, state: str) -> None:
    said = states(judge_disk(disk(**changes), durable=True))
    assert said.pop(check) == state
    assert set(said.values()) <= {"ok"}


def test_a_disk_that_counts_no_inodes_lacks_none_and_a_store_that_does_not_sync_needs_no_journal() -> None:
    assert "folders.inodes" not in states(judge_disk(disk(files=0, free_files=0), durable=True))
    assert "folders.journal" not in states(judge_disk(disk(journal=False), durable=False))


@pytest.mark.parametrize(
    ("files", "size", "memory", "found"),
    [
        (None, None, None, {"process.files": "ok"}),
        (1_000, None, None, {"process.files": "note"}),
        (20, 1 << 20, None, {"process.files": "problem", "process.file-size": "problem"}),
        (4_096, None, 100 << 20, {"process.files": "ok", "process.memory": "note"}),
        (4_096, None, GIB, {"process.files": "ok", "process.memory": "ok"}),
    ],
)
def test_limits_of_a_process_are_judged(
    files: int | None, size: int | None, memory: int | None, found: dict[str, str]
) -> None:
    assert states(judge_limits(files, size, memory)) == found


def test_a_check_that_fails_says_so_and_stops_no_other(subject: Subject) -> None:
    def missing(_: Subject) -> Iterator[Finding]:
        yield ok("one.a", "well")
        raise NotFound("look", "it is gone", hint="find it")

    def buggy(_: Subject) -> Iterator[Finding]:
        raise ZeroDivisionError

    last = problem("three", "bad", "mend it")
    found = list(run_checks({"one": missing, "two": buggy, "three": lambda _: [last]}, subject))
    assert [(one.check, one.state) for one in found] == [
        ("one.a", "ok"),
        ("one", "note"),
        ("two", "note"),
        ("three", "problem"),
    ]
    assert (found[1].text, found[1].advice) == ("could not be looked at: look: it is gone", "find it")
    assert "ZeroDivisionError" in found[2].text


# ------------------------------------------------------------------ configuration


def put(path: Path, text: str, mode: int = 0o644) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_all_that_is_wrong_with_a_file_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    path = put(
        tmp_path / "c.toml",
        'drvier = "x"\ndownloads = 0\nroot = 4\nauth_files = ["/nowhere/a"]\ntls_cert = "/nowhere/c"\n'
        'insecure_registries = ["a b"]\n\n[limits]\ndepht = 1\nname_size = 999\n[proxy]\nhttps = "socks5://x"\n'
        '[daemon]\nquick = 0\nlog_level = "loud"\nlog_format = "xml"\nusers = "root"\n[other]\na = 1\n',
    )
    _, faults = faults_of_file(path)
    assert [(fault.line, fault.state) for fault in faults] == [
        *((1, "problem"), (2, "problem"), (3, "problem"), (4, "note"), (5, "problem"), (6, "problem")),
        *((9, "problem"), (10, "problem"), (12, "problem")),
        *((14, "problem"), (15, "problem"), (16, "problem"), (17, "problem"), (18, "problem")),
    ]
    assert str(faults[0]) == f"{path}:1: there is no setting 'drvier'; did you mean driver?"


@pytest.mark.parametrize(
    ("text", "line"),
    [("a = [\n1,\n", 0), ("driver = 'erofs'\nb ==\n", 2), ("a = 1\na = 2\n", 2), ("[x\n", 1)],
)
def test_what_is_no_toml_is_told_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    given, (fault,) = faults_of_file(put(tmp_path / "c.toml", text))
    assert (given, fault.line) == ({}, line)
    assert "not TOML" in fault.text


def test_lines_are_those_of_keys_and_not_of_what_looks_like_one_in_a_text(tmp_path: Path) -> None:
    text = 'auth_config = """\ndownloads = 0\n[limits]\n"""\n"downloads" = 0\nlimits = {depth = 0}\n'
    _, faults = faults_of_file(put(tmp_path / "c.toml", text))
    assert [(fault.line, fault.text.split()[0]) for fault in faults] == [
        (5, "downloads"),
        (6, "limits.depth"),
    ]


def test_a_secret_of_a_wrong_type_is_not_shown(tmp_path: Path) -> None:
    text = '[auth_config.auths."r.lan"]\nauth = "s3cret"\n[proxy]\nhttps = ["s3cret"]\n'
    _, faults = faults_of_file(put(tmp_path / "c.toml", text))
    assert [fault.text for fault in faults] == ["auth_config takes a text", "proxy.https takes a text"]


def test_a_file_that_is_not_there_or_that_others_may_write_is_a_problem(tmp_path: Path) -> None:
    loose = put(tmp_path / "loose.toml", "downloads = 4", 0o666)
    for path, trusted in ((str(tmp_path / "none"), True), (str(tmp_path), True), (loose, False)):
        _, (fault,) = faults_of_file(path, trusted=trusted)
        assert (fault.state, fault.line) == ("problem", 0)


def test_variables_are_checked_and_one_that_is_nearly_a_keys_is_a_note() -> None:
    environ = {
        "ORLOP_DOWNLOADS": "none",
        "ORLOP_DURABEL": "1",
        "ORLOP_RETRIES": "3",
        "ORLOP_SERVICE_HOST": "kubernetes sets such",
        "ORLOP_LIMITS": "depth=x",
    }
    given, faults = faults_of_variables(environ)
    assert set(given) == {"retries"}
    assert [(fault.source, fault.state) for fault in faults] == [
        ("ORLOP_DOWNLOADS", "problem"),
        ("ORLOP_DURABEL", "note"),
        ("ORLOP_LIMITS", "problem"),
    ]


def test_files_that_are_named_are_parsed_and_credentials_that_others_may_read_are_a_note(
    tmp_path: Path,
) -> None:
    conf = put(tmp_path / "registries.conf", "unqualified-search-registries = 4\n")
    hosts = tmp_path / "certs.d"
    broken = put(hosts / "r.lan_5000_" / "hosts.toml", "server = 4\n")
    put(hosts / "good.lan" / "hosts.toml", 'server = "https://good.lan"\n')
    secret = put(tmp_path / "auth.json", json.dumps({"auths": {"r.lan": {"auth": "YTpi"}}}), 0o644)
    private = put(tmp_path / "own.json", json.dumps({"auths": {"r.lan": {"auth": "YTpi"}}}), 0o600)
    wrong = put(tmp_path / "wrong.json", "{", 0o600)
    settings = Settings(
        registries_conf=(conf,),
        hosts_dirs=(str(hosts),),
        auth_files=(secret, private, wrong, str(tmp_path / "none.json")),
    )
    found = {fault.source: fault.state for fault in faults_of_what_is_named(settings)}
    assert found == {conf: "problem", broken: "problem", secret: "note", wrong: "problem"}


def test_the_doctor_tells_of_a_configuration_without_one(subject: Subject, tmp_path: Path) -> None:
    assert states(check_configuration(subject)) == {"configuration": "ok"}
    path = put(tmp_path / "c.toml", "downlods = 4\n")
    found = list(check_configuration(replace(subject, named_file=path)))
    assert states(found) == {"configuration.file": "problem"}
    assert "did you mean downloads?" in found[0].advice


def test_a_credential_helper_that_is_not_installed_is_a_problem(subject: Subject, tmp_path: Path) -> None:
    path = put(tmp_path / "config.json", json.dumps({"credsStore": "there", "credHelpers": {"r": "gone"}}))
    put(tmp_path / "bin" / "docker-credential-there", "#!/bin/sh\n", 0o755)
    settings = Settings(auth_files=(path,), helper_path=str(tmp_path / "bin"))
    found = [
        one for one in programs.check_helpers(replace(subject, settings=settings)) if one.check != "helpers"
    ]
    assert sorted((one.state, one.text.split()[-1]) for one in found)[1][0] == "problem"
    assert {one.state for one in found} == {"ok", "problem"}


# ------------------------------------------------------------------ folders and stores


def test_folders_that_are_not_there_are_made_by_the_first_use(subject: Subject) -> None:
    assert {*states(check_run(subject)).values()} == {"ok"}
    assert states(check_root(subject))["folders.root"] == "ok"
    assert nearest(subject.root) == str(Path(subject.root).parent)
    assert list(check_store(subject)) == []


def test_folders_that_cannot_serve_are_problems(subject: Subject, tmp_path: Path) -> None:
    file = put(tmp_path / "file", "")
    inside = replace(subject, run=f"{subject.root}/run")
    odd = replace(subject, root=str(tmp_path / "a,b"))
    for one, check in ((replace(subject, root=file), check_root), (odd, check_root), (inside, check_run)):
        assert "problem" in states(check(one)).values()
    assert states(check_run(replace(subject, run="", run_fault="why")))["folders.run"] == "problem"


def test_a_store_behind_a_link_to_a_disk_that_is_not_mounted_is_a_problem(subject: Subject) -> None:
    os.symlink(f"{subject.root}-elsewhere", subject.root)
    assert states(check_root(subject))["folders.root"] == "problem"


def test_a_store_that_others_may_enter_is_a_problem(subject: Subject) -> None:
    os.mkdir(subject.root, 0o755)
    assert states(check_root(subject))["folders.root"] == "problem"
    os.chmod(subject.root, 0o700)
    assert states(check_root(subject))["folders.root"] == "ok"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, {}),
        ({"a": b""}, {"store.format": "problem"}),
        ({"format.json": b"{}"}, {"store.format": "problem", "store.leftovers": "ok"}),
        ({"format.json": b'{"version": 99}'}, {"store.format": "problem", "store.leftovers": "ok"}),
        (
            {"format.json": b'{"version": 1}', "meta.db": b"no database"},
            {"store.format": "ok", "store.database": "problem", "store.leftovers": "ok"},
        ),
        (
            {"format.json": b'{"version": 1}', "layers/x/layer.tar": b""},
            {"store.format": "ok", "store.database": "problem", "store.leftovers": "ok"},
        ),
        (
            {"format.json": b'{"version": 1}', "trash/x": b"", "content/ingest/y/data": b""},
            {"store.format": "ok", "store.leftovers": "note"},
        ),
    ],
)
def test_a_store_is_judged_as_it_lies_there(
    subject: Subject, files: Mapping[str, bytes], found: dict[str, str]
) -> None:
    root = Path(subject.root)
    root.mkdir()
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    assert states(check_store(subject)) == found
    assert {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} == set(files)


# ------------------------------------------------------------------ daemons


def test_a_daemon_without_a_socket_is_none_and_a_dead_socket_is_a_problem(subject: Subject) -> None:
    assert states(check_daemon(subject)) == {"daemon": "ok"}
    place = Path(subject.run) / "socket"
    place.mkdir(parents=True)
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(place)  # the whole path may be longer than a socket's may be
        try:
            server.bind("orlop.sock")
        finally:
            os.chdir(here)
    try:
        os.chdir(place)
        found = list(check_daemon(replace(subject, host="unix:orlop.sock")))
        assert states(found) == {"daemon.socket": "problem"}
        assert "nobody listens" in found[0].text
        assert states(check_daemon(replace(subject, host="unix:none.sock"))) == {"daemon.socket": "problem"}
    finally:
        os.chdir(here)


def test_a_daemon_that_takes_a_connection_and_is_silent_is_given_up(subject: Subject, tmp_path: Path) -> None:
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(tmp_path)  # the whole path may be longer than a socket's may be
        try:
            server.bind("s")
            server.listen()
            found = list(check_daemon(replace(subject, host="unix:s", timeout=0.2)))
        finally:
            os.chdir(here)
    assert states(found) == {"daemon.answer": "problem"}


def test_a_daemon_of_another_version_is_a_note_and_one_without_a_driver_a_problem() -> None:
    info = StoreInfo(
        version=__version__, root="/r", run="/x", driver="overlay", format=1, images=1, prepared=0,
        drivers=(DriverInfo(name="overlay", available=True, reason="it does"),),
    )  # fmt: skip
    assert set(states(findings_of_info(info)).values()) == {"ok"}
    other = states(findings_of_info(replace(info, version="0.0.0", driver="", drivers=())))
    assert (other["daemon.version"], other["daemon.driver"]) == ("note", "problem")


# ------------------------------------------------------------------ registries


def test_registries_are_those_of_settings_files_logins_and_images(subject: Subject, tmp_path: Path) -> None:
    assert registries_of(subject) == [("docker.io", False)]
    conf = put(
        tmp_path / "r.conf",
        'unqualified-search-registries = ["searched.lan"]\n[[registry]]\nprefix = "p.lan/x"\n'
        'location = "l.lan/y"\n[[registry.mirror]]\nlocation = "m.lan"\n',
    )
    put(tmp_path / "certs.d" / "h.lan_5000_" / "hosts.toml", "")
    put(tmp_path / "certs.d" / "_default" / "hosts.toml", "")
    auth = put(
        tmp_path / "auth.json", json.dumps({"auths": {"https://index.docker.io/v1/": {"auth": "YTpi"}}})
    )
    settings = Settings(
        insecure_registries=("i.lan:1",),
        search_registries=True,
        registries_conf=(conf,),
        hosts_dirs=(str(tmp_path / "certs.d"),),
        auth_files=(auth,),
    )
    subject = replace(subject, settings=settings, registries=("named.lan",))
    subject.cache["names"] = ["images.lan/a:1", "localhost/made:2", "images.lan/b:1", "!"]
    assert [host for host, _ in registries_of(subject)] == [
        *("named.lan", "i.lan:1", "searched.lan", "l.lan", "m.lan", "h.lan:5000", "docker.io", "images.lan")
    ]


class Answers(http.server.BaseHTTPRequestHandler):
    """A registry's door: answers a status, with a date."""

    status, date = 200, ""
    timeout = 30

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", "2")
        if self.status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="x"')
        self.end_headers()
        self.wfile.write(b"{}")

    def date_time_string(self, timestamp: float | None = None) -> str:
        return self.date or super().date_time_string(timestamp)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(*, tls: Certificate | None = None, status: int = 200, date: str = "") -> Iterator[str]:
    """A server that answers so, on this machine; its host and port."""
    handler = type("Handler", (Answers,), {"status": status, "date": date})

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Whoever does not like our certificate goes away."""

        def finish_request(self, request: Any, client_address: Any) -> None:
            if tls is not None:  # here, that a handshake holds up nobody else
                request.settimeout(30)
                request = tls.context().wrap_socket(request, server_side=True)
            super().finish_request(request, client_address)

    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join(30)


def looked(subject: Subject, host: str, **settings: Any) -> dict[str, str]:
    """What is found of one registry, by the parts of its checks' names after the host."""
    one = replace(subject, registries=(host,), settings=Settings(**settings))
    return {
        name.removeprefix(f"registries.{host}"): state
        for name, state in states(check_registries(one)).items()
    }


def test_a_registry_that_answers_is_well_and_its_login_and_clock_are_told(
    subject: Subject, tmp_path: Path
) -> None:
    with serving() as host:
        assert looked(subject, host) == {"": "ok", ".login": "ok"}
    with serving(status=401) as host:
        assert looked(subject, host) == {"": "ok", ".login": "note"}
        auth = put(tmp_path / "auth.json", json.dumps({"auths": {host: {"auth": "YTpi"}}}), 0o600)
        assert looked(subject, host, auth_files=(auth,)) == {"": "ok", ".login": "problem"}
    with serving(status=404) as host:
        assert looked(subject, host)[""] == "problem"
    with serving(date="Wed, 01 Jan 2020 00:00:00 GMT") as host:
        assert looked(subject, host)[".clock"] == "problem"


def test_a_registry_that_is_down_or_has_no_name_is_a_problem(subject: Subject) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused, and nobody else's
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        assert looked(subject, host) == {"": "problem"}
        proxy = ProxySettings(http=f"http://{host}", https=f"http://{host}")
        (found,) = check_registries(
            replace(subject, registries=("r.invalid",), settings=Settings(proxy=proxy))
        )
        assert (found.state, f"connect to {host}" in found.text) == ("problem", True)
        assert "(the proxy to r.invalid)" in found.text
    assert states(check_registries(replace(subject, registries=("a b",))))["registries.a b"] == "problem"
    assert states(check_registries(replace(subject, offline=True))) == {"registries": "ok"}


def test_a_registry_that_never_comes_to_an_end_is_given_up(subject: Subject) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def trickle() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # it was closed
                    return
                with connection, suppress(OSError):
                    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                    while not ended.wait(0.01):  # less than the timeout of a step
                        connection.sendall(b"x")

        ended = threading.Event()
        thread = threading.Thread(target=trickle, daemon=True)
        thread.start()
        try:
            host = f"127.0.0.1:{server.getsockname()[1]}"
            assert looked(replace(subject, timeout=0.05), host) == {"": "problem"}
        finally:
            ended.set()
            server.shutdown(socket.SHUT_RDWR)
            thread.join(30)


def test_the_certificate_is_looked_at(subject: Subject, tmp_path: Path) -> None:
    good, late, other = (tmp_path / name for name in ("good", "late", "other"))
    valid = make_certificate(good)
    expired = make_expired(late, valid.key)
    foreign = make_certificate(other, names=("DNS:elsewhere.invalid",))
    found = {}
    for name, tls in (("short", valid), ("expired", expired), ("other name", foreign)):
        with serving(tls=tls) as host:
            hosts = tmp_path / name
            put(hosts / host / "ca.crt", tls.cert.read_text())
            found[name] = looked(subject, host, hosts_dirs=(str(hosts),))
    with serving(tls=valid) as host:
        hosts = tmp_path / "wrong authority"
        put(hosts / host / "ca.crt", foreign.cert.read_text())
        found["other authority"] = looked(subject, host, hosts_dirs=(str(hosts),))
        found["unverified"] = looked(subject, host)
    assert found == {
        "short": {"": "ok", ".certificate": "note", ".login": "ok"},
        "expired": {".certificate": "problem"},
        "other name": {".certificate": "problem"},
        "other authority": {".certificate": "problem"},
        "unverified": {"": "ok", ".login": "ok"},
    }


def make_expired(folder: Path, key: Path) -> Certificate:
    """A certificate that was good for a day of 2020."""
    folder.mkdir()
    put(
        folder / "ca.conf",
        "[ca]\ndefault_ca=d\n[d]\ndatabase=index\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\n"
        "x509_extensions=e\n[p]\ncommonName=supplied\n[e]\nsubjectAltName=IP:127.0.0.1\n"
        "basicConstraints=CA:TRUE\n",
    )
    put(folder / "index", "")
    put(folder / "serial", "01\n")
    request = ["openssl", "req", "-new", "-key", str(key), "-subj", "/CN=late", "-out", "late.csr"]
    sign = [
        "openssl",
        "ca",
        "-batch",
        "-selfsign",
        "-config",
        "ca.conf",
        "-keyfile",
        str(key),
        "-in",
        "late.csr",
    ]
    sign += ["-startdate", "20200101000000Z", "-enddate", "20200102000000Z", "-notext", "-out", "cert.pem"]
    for command in (request, sign):
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    return Certificate(cert=folder / "cert.pem", key=key)


# ------------------------------------------------------------------ the verb


@pytest.fixture
def doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run the verb with checks of our own; gives the exit code and standard output."""

    def run(found: list[Finding], *args: str) -> tuple[int, str]:
        monkeypatch.setattr(checks, "HERE", {"all": lambda _: found})
        code = main(["--root", "/nonexistent/r", "--run", "/nonexistent/x", "doctor", *args])
        return code, capsys.readouterr().out

    return run


def test_the_exit_code_is_5_where_there_is_a_problem_and_advice_is_shown(
    doctor: Callable[..., tuple[int, str]],
) -> None:
    found = [
        ok("store.a", "fine"),
        note("folders.b", "odd", "perhaps this"),
        problem("store.c", "bad", "do this"),
    ]
    code, out = doctor(found)
    assert code == 5
    assert out == (
        "Folders and disk\n  note     odd\n           -> perhaps this\n\n"
        "Store\n  ok       fine\n  PROBLEM  bad\n           -> do this\n\n"
        "1 problem, 1 note, 1 ok\n"
    )
    assert "fine" not in doctor(found, "--problems")[1]
    assert doctor(found, "-q")[1] == "store.c\n"
    assert json.loads(doctor(found, "--json")[1])[2] == {
        "check": "store.c",
        "state": "problem",
        "text": "bad",
        "advice": "do this",
    }
    assert doctor(found[:2])[0] == 0
    assert doctor(found, "--offline", "--registry", "a")[0] == 2


def test_every_section_has_a_heading() -> None:
    sections = {name.partition(".")[0] for name in checks.HERE}
    assert sections == set(checks.SECTIONS) - {"process"} | {"process"}
    assert set(checks.THERE) <= set(checks.HERE)
