"""Whether registries can be reached, step by step: name, connection, certificate, answer, login, clock.

Those are looked at that are configured, that images here came from, and that were named; side by side, each
step within a timeout.  Nothing is sent but ``GET /v2/``, and what a login takes; nothing is tried twice.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from email.utils import parsedate_to_datetime

from orlop.diagnosis.findings import Finding, Subject, note, ok, problem
from orlop.errors import Error, PermissionDenied, Unauthenticated
from orlop.observe import Call
from orlop.registry.access.login import LoggedIn, login_of, logins
from orlop.registry.client import Registry
from orlop.registry.finding.hostfiles.folders import in_force
from orlop.registry.finding.hosts import DOCKER_HUB, Endpoint
from orlop.registry.finding.places import Places
from orlop.registry.net.certificates import Contexts
from orlop.registry.net.connections import NETWORK, resolve
from orlop.registry.net.proxies import Proxies, Proxy
from orlop.registry.net.sockets import connect
from orlop.spec.reference import Reference
from orlop.values import replace
from orlop.version import __version__

__all__ = ["check_registries", "examine", "registries_of"]

_MOST = 16  # registries that are looked at, unless they are named
_AT_A_TIME = 8
_SOON = 14 * 86_400  # seconds before a certificate's end from which on it is told
_SKEW = 300  # seconds by which clocks may differ: tokens and certificates allow no more
_MAX_HEAD = 65_536
_EXPIRED, _NOT_YET, _SELF_SIGNED, _SELF_SIGNED_CHAIN, _NO_ISSUER, _WRONG_NAME = 10, 9, 18, 19, 20, 62


def registries_of(subject: Subject) -> list[tuple[str, bool]]:
    """The registries to look at, and whether somebody wants each: Docker Hub alone is only what is usual."""
    settings = subject.settings
    wanted: dict[str, None] = dict.fromkeys(subject.registries)
    wanted |= dict.fromkeys(settings.insecure_registries)
    search = settings.search_registries
    wanted |= dict.fromkeys(search if isinstance(search, tuple) else ())
    with suppress(Error):  # `configuration` tells what is wrong with it
        conf = Places(registries_conf=settings.registries_conf).conf
        wanted |= dict.fromkeys(conf.search or ()) if search is True else {}
        for one in conf.namespaces.values():
            places = [one.location.place or one.prefix, *(mirror.place for mirror in one.mirrors)]
            wanted |= dict.fromkeys(place.partition("/")[0] for place in places if place and "*" not in place)
    for path in in_force(settings.hosts_dirs, ()):
        name = path.removesuffix("/hosts.toml").rpartition("/")[2]
        if not name.startswith("_"):
            wanted[re.sub(r"_([0-9]+)_$", r":\1", name)] = None
    with suppress(Error):
        wanted |= dict.fromkeys(one.registry for one in _logins(subject))
    known = subject.cache.get("names")
    for name in known if isinstance(known, list) else ():
        with suppress(Error):
            registry = Reference.parse(name).registry
            if registry != "localhost":  # what commits are called, which came from nowhere
                wanted[registry] = None
    hosts = list(dict.fromkeys(host for name in wanted if (host := _host(name))))
    return [(host, True) for host in hosts] or [(DOCKER_HUB, False)]


def _logins(subject: Subject) -> list[LoggedIn]:
    settings = subject.settings
    return logins(settings=settings, call=_bounded(subject)) if settings.auth_files else []


def _host(name: str) -> str:
    """A registry's host out of what files say."""
    host = name.rpartition("://")[2].partition("/")[0].lower()
    return DOCKER_HUB if host in {"index.docker.io", "registry-1.docker.io"} else host


def check_registries(subject: Subject) -> Iterable[Finding]:
    """All of them, side by side."""
    if subject.offline:
        yield ok("registries", "not looked at, as was asked for")
        return
    found = registries_of(subject)
    left = max(len(found) - max(_MOST, len(subject.registries)), 0)
    found = found[: len(found) - left]
    with ThreadPoolExecutor(min(_AT_A_TIME, len(found)), "doctor") as pool:
        tasks = [pool.submit(_examined, host, subject, wanted) for host, wanted in found]
        for task in tasks:
            yield from task.result()
    if left:
        yield note("registries", f"{left} more are not looked at", "name one: orlop doctor --registry HOST")


def _examined(host: str, subject: Subject, wanted: bool) -> list[Finding]:
    try:
        found = list(examine(host, subject))
    except Error as exc:
        found = [problem(f"registries.{host}", f"{host}: {exc.reason}", exc.hint or "orlop config check")]
    if wanted:
        return found
    weaker = [replace(one, state="note") if one.state == "problem" else one for one in found]
    return [
        replace(one, text=f"{one.text} (no registry is configured; it is the usual one)") for one in weaker
    ]


def examine(host: str, subject: Subject) -> Iterator[Finding]:
    """One registry.  Raises `Error` for what is no registry, and for files about it that are broken."""
    check = f"registries.{host}"
    settings = subject.settings
    places = Places(
        insecure=settings.insecure_registries,
        hosts_dirs=settings.hosts_dirs,
        registries_conf=settings.registries_conf,
    )
    ways = places.home(host, "", f"reach {host}").ways
    proxies = Proxies(settings.proxy)
    failure: Finding | None = None
    for endpoint in ways:
        trial = _Trial(check, host, endpoint, proxies.of(endpoint.origin), subject.timeout)
        found = list(trial.findings())
        failed = [one for one in found if one.state == "problem"]
        if not failed or not trial.may_be_other:
            yield from found
            failure = None
            break
        failure = failure or failed[0]
    if failure is not None:
        yield failure
    elif not failed:
        yield from _login(check, host, subject)


class _Trial:
    """One way to speak to one registry, tried."""

    def __init__(
        self, check: str, host: str, endpoint: Endpoint, proxy: Proxy | None, timeout: float
    ) -> None:
        self.check, self.host, self.endpoint = check, host, endpoint
        self._proxy, self._timeout = proxy, timeout
        self.may_be_other = False  # it failed as one does that speaks plain http

    def findings(self) -> Iterator[Finding]:
        """All steps, up to the one that fails."""
        origin = self.endpoint.origin
        target = self._proxy.origin if self._proxy is not None else origin
        through = f" through the proxy {target.netloc}" if self._proxy is not None else ""
        whose = f" (the proxy to {origin.netloc})" if self._proxy is not None else ""
        end = time.monotonic() + self._timeout

        def tick() -> None:
            if time.monotonic() > end + self._timeout:
                raise TimeoutError

        try:
            infos = resolve(target.host, target.port, seconds=self._timeout, check=tick)
        except (OSError, UnicodeError) as exc:
            said = getattr(exc, "strerror", None) or str(exc)
            yield problem(self.check, f"the name {target.host}{whose} cannot be resolved: {said}", _NAMES)
            return
        try:
            sock = connect(infos, seconds=self._timeout, check=tick)
        except OSError as exc:
            said = exc.strerror or "no answer"
            text = f"cannot connect to {target.netloc}{whose}: {said}"
            yield problem(self.check, text, self._on_connect())
            self.may_be_other = True
            return
        with closing(sock):
            sock.settimeout(self._timeout)
            try:
                with _cut_after(sock, 4 * self._timeout):
                    yield from self._spoken(sock, through)
            except ssl.SSLCertVerificationError as exc:
                yield self._certificate(exc)
            except ssl.SSLError as exc:
                self.may_be_other = True
                text = f"TLS with {origin.netloc}{through} failed: {exc.reason or exc}"
                yield problem(self.check, text, f"if it speaks plain http: --insecure-registry {self.host}")
            except (*NETWORK, ValueError) as exc:
                self.may_be_other = True
                said = getattr(exc, "strerror", None) or str(exc) or "it is silent"
                yield problem(
                    self.check, f"{origin.netloc}{through}: {said}", "is it a registry? see its log"
                )

    def _on_connect(self) -> str:
        if self._proxy is not None:
            return "see the table [proxy] of the configuration, or HTTPS_PROXY"
        return "is it up, and is a firewall or a proxy in between? docs/troubles.md"

    def _spoken(self, sock: socket.socket, through: str) -> Iterator[Finding]:
        origin = self.endpoint.origin
        path = f"{self.endpoint.base}/"
        stream: socket.socket = sock
        if self._proxy is not None and origin.scheme == "https":
            _tunnel(sock, f"{origin.host}:{origin.port}", self._proxy)
        elif self._proxy is not None:
            path = f"{origin}{path}"
        if origin.scheme == "https":
            _, context = Contexts().get(
                verify=self.endpoint.verify,
                ca=self.endpoint.ca,
                client=self.endpoint.client,
                attempted=f"reach {self.host}",
            )
            stream = context.wrap_socket(sock, server_hostname=origin.host)
        with closing(stream):
            yield from self._lifetime(stream)
            status, headers = _get(stream, origin.netloc, path, self._proxy)
        how = "over TLS" if origin.scheme == "https" else "in the clear"
        if not self.endpoint.verify and origin.scheme == "https":
            how += ", its certificate unverified"
        if status in {200, 401}:
            yield ok(self.check, f"{origin.netloc} answers {status} {how}{through}")
        elif status in {403, 429} or status >= 500:
            text = f"{origin.netloc} answers {status}{through}"
            yield problem(self.check, text, "it is there, and does not serve you now: docs/troubles.md")
        else:
            text = f"{origin.netloc} answers {status} to GET {self.endpoint.base}/{through}: not a registry"
            yield problem(self.check, text, "is the name right, and its port? docs/registries.md")
        yield from self._skew(headers)

    def _lifetime(self, stream: socket.socket) -> Iterator[Finding]:
        """How long its certificate is valid; of one that was not verified Python tells nothing."""
        if not isinstance(stream, ssl.SSLSocket) or not (about := stream.getpeercert()):
            return
        end = ssl.cert_time_to_seconds(str(about["notAfter"]))
        days = int((end - time.time()) // 86_400)
        shown = time.strftime("%Y-%m-%d", time.gmtime(end))
        if end - time.time() < _SOON:
            text = f"the certificate of {self.endpoint.origin.netloc} ends on {shown}, in {days} days"
            yield note(f"{self.check}.certificate", text, "have it renewed")
        else:
            yield ok(f"{self.check}.certificate", f"the certificate is valid until {shown}")

    def _certificate(self, exc: ssl.SSLCertVerificationError) -> Finding:
        netloc = self.endpoint.origin.netloc
        folder = f"/etc/orlop/certs.d/{netloc}/ca.crt"
        advice = {
            _EXPIRED: f"have it renewed, or set the clock; or go without: --insecure-registry {self.host}",
            _NOT_YET: "is this machine's clock right? timedatectl set-ntp true",
            _WRONG_NAME: "use a name that the certificate has, or have one made for this name",
        }.get(
            exc.verify_code, f"put its authority into {folder}, or add it to the system's: docs/registries.md"
        )
        text = f"the certificate of {netloc} is not valid: {exc.verify_message}"
        return problem(f"{self.check}.certificate", text, advice)

    def _skew(self, headers: http.client.HTTPMessage) -> Iterator[Finding]:
        try:
            said = parsedate_to_datetime(headers.get("Date", "")).timestamp()
        except (ValueError, TypeError):
            return
        off = time.time() - said
        if abs(off) > _SKEW:
            way = "ahead of" if off > 0 else "behind"
            text = f"this machine's clock is {abs(off) / 60:.0f} minutes {way} that of {self.host}"
            yield problem(f"{self.check}.clock", text, "set the clock: timedatectl set-ntp true")


@contextmanager
def _cut_after(sock: socket.socket, seconds: float) -> Iterator[None]:
    """Cut a connection after a time, with TimeoutError: whoever sends a byte now and then is never silent."""
    late = threading.Event()
    with sock.dup() as twin:  # TLS takes the other for its own

        def cut() -> None:
            late.set()
            with suppress(OSError):  # it ended by itself
                twin.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(seconds, cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
    if late.is_set():  # or what came until then would be the answer
        raise TimeoutError(f"its answer takes longer than {seconds:g} s")


_NAMES = "is the name right? see /etc/resolv.conf, and [proxy] if names are a proxy's business"


def _tunnel(sock: socket.socket, target: str, proxy: Proxy) -> None:
    """Have a proxy connect us.  Raises OSError with its words."""
    head = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{_authorization(proxy)}\r\n"
    sock.sendall(head.encode("latin-1"))
    answer = b""
    while b"\r\n\r\n" not in answer:
        more = sock.recv(1)  # byte by byte: what follows is TLS
        if not more or len(answer) > _MAX_HEAD:
            raise OSError("the proxy cut the connection")
        answer += more
    line = answer.split(b"\r\n")[0].decode("latin-1")
    if not re.match(r"HTTP/1\.[01] 2\d\d", line):
        raise OSError(f"the proxy answered {line[:100]!r}")


def _authorization(proxy: Proxy | None) -> str:
    return (
        f"Proxy-Authorization: {proxy.authorization}\r\n" if proxy is not None and proxy.authorization else ""
    )


def _get(
    stream: socket.socket, host: str, path: str, proxy: Proxy | None
) -> tuple[int, http.client.HTTPMessage]:
    """Ask for a path; the status and the headers of the answer."""
    plain = _authorization(proxy) if path.startswith("http://") else ""
    head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: orlop/{__version__}\r\n{plain}"
    stream.sendall(f"{head}Connection: close\r\n\r\n".encode("latin-1"))
    response = http.client.HTTPResponse(stream, method="GET")
    try:
        response.begin()
        return response.status, response.headers
    finally:
        response.close()


def _login(check: str, host: str, subject: Subject) -> Iterator[Finding]:
    """Whether the credentials that are kept for it are taken."""
    settings = replace(subject.settings, retries=0, timeout=subject.timeout)
    check = f"{check}.login"
    user = ""
    if settings.auth_files:
        with suppress(Error):
            user = login_of(host, settings=settings, call=_bounded(subject))
    try:
        with closing(Registry.of(settings)) as registry:
            asked = registry.ping(host, call=_bounded(subject))
    except (Unauthenticated, PermissionDenied) as exc:
        if user:
            yield problem(
                check, f"the credentials of {user} are refused: {exc.reason}", f"orlop login {host}"
            )
        else:
            text = f"{host} wants a login for some or all that it has"
            yield note(check, text, f"orlop login {host}")
        return
    except Error as exc:
        yield note(check, f"whether a login is taken could not be found out: {exc.reason}", exc.hint)
        return
    if user and asked:
        yield ok(check, f"{host} takes the credentials of {user}")
    elif user:
        yield ok(check, f"{host} asks for no login; there are credentials of {user}")
    else:
        yield ok(check, f"{host} serves without a login")


def _bounded(subject: Subject) -> Call:
    return Call(deadline=time.monotonic() + 2 * subject.timeout)
