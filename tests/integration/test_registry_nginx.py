"""Pulls and pushes through a real nginx that cuts, delays, throttles and refuses; TLS, and a token server.

Behind it is Debian's docker-registry.  No test here asserts a time: a wait that has no end ends with pytest's own
timeout.
"""

from __future__ import annotations

import base64
import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.observe import Progress
from support import images
from support.certificates import Certificate, make_certificate
from support.layers import Layer
from support.nginx import Front, front
from support.registries import Registry, serve
from support.tokenserver import TokenServer

pytestmark = pytest.mark.root

# nginx sends a second's worth at once: the rest of such a blob is still to come when the first bytes are seen.
SIZE, RATE = 4_000_000, "300k"


class Watching:
    """An observer that acts once, as soon as some bytes have moved; and keeps the warnings."""

    def __init__(self, phase: str, act: Callable[[], None], *, after: int = 100_000) -> None:
        self._phase, self._act, self._after = phase, act, after
        self._lock = threading.Lock()
        self.acted = False
        self.warnings: list[str] = []

    def progress(self, event: Progress) -> None:
        with self._lock:
            if event.phase != self._phase or event.done < self._after or self.acted:
                return
            self.acted = True
            self._act()

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def image(size: int = SIZE, *, layers: int = 1, seed: int = 7) -> images.Image:
    chaos = random.Random(seed)
    return images.make_image([Layer().file(f"file{at}", chaos.randbytes(size)).tar() for at in range(layers)])


@contextmanager
def opened(dirs: StoreDirs, **settings: object) -> Iterator[orlop.Store]:
    with orlop.open(dirs.root, dirs.run, settings=orlop.Settings(**settings)) as store:  # type: ignore[arg-type] # a test's
        yield store


@contextmanager
def meanwhile(until: Callable[[], object], act: Callable[[], object]) -> Iterator[None]:
    """Act, in a thread, as soon as something is so."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            if until():
                act()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(30)


def has(registry: Registry, repository: str, digest: str) -> bool:
    accept = {"Accept": images.OCI_MANIFEST}
    return registry.request(f"/v2/{repository}/manifests/{digest}", headers=accept)[0] == 200


def log_in(folder: Path, host: str, user: str, password: str) -> str:
    path = folder / "auth.json"
    secret = base64.b64encode(f"{user}:{password}".encode()).decode()
    path.write_text(json.dumps({"auths": {host: {"auth": secret}}}))
    return str(path)


@pytest.mark.hostile(38)
@pytest.mark.distribution("pull.blob.range")
def test_a_pull_goes_on_after_the_server_was_killed_in_the_middle(
    store_dirs: StoreDirs, registry: Registry, workdir: Path
) -> None:
    digest = images.push(registry, "nginx/cut", "v1", image())
    with front(workdir / "nginx", registry.host, limit_rate=RATE) as nginx, opened(store_dirs) as store:
        watching = Watching("fetching", nginx.restart)
        pulled = store.pull(f"{nginx.host}/nginx/cut:v1", call=orlop.Call(observer=watching))
        assert pulled.digest == digest
        assert watching.acted
        assert nginx.asked("GET", "/blobs/", status=206)


@pytest.mark.hostile(38)
@pytest.mark.distribution("errors.too-many-requests", "warning.header", "warning.once")
def test_a_pull_waits_as_long_as_a_rate_limit_asks_and_shows_warnings_once(
    store_dirs: StoreDirs, registry: Registry, workdir: Path
) -> None:
    digest = images.push(registry, "nginx/rate", "v1", image(20_000))
    with front(workdir / "nginx", registry.host) as nginx, opened(store_dirs, retries=20) as store:
        nginx.turn("warn")
        nginx.turn("refuse")
        watching = Watching("", lambda: None)
        with meanwhile(lambda: nginx.asked(status=429), lambda: nginx.turn("refuse", False)):
            pulled = store.pull(f"{nginx.host}/nginx/rate:v1", call=orlop.Call(observer=watching))
        assert pulled.digest == digest
        said = [text for text in watching.warnings if "going away" in text]
        assert said == [f"{nginx.host} warns: this registry is going away"]


@pytest.mark.hostile(38)
@pytest.mark.distribution("errors.codes", "errors.too-many-requests")
def test_a_limit_that_ends_much_later_is_told_at_once(
    store_dirs: StoreDirs, registry: Registry, workdir: Path
) -> None:
    with front(workdir / "nginx", registry.host, retry_after="7200") as nginx, opened(store_dirs) as store:
        nginx.turn("refuse")
        with pytest.raises(orlop.Unavailable, match=r"429.*slow down.*asked again in 2 h, at .* UTC"):
            store.pull(f"{nginx.host}/nginx/none:v1")
        assert len(nginx.asked("/manifests/")) == 1


@pytest.mark.hostile(38)
def test_a_pull_sits_out_a_server_that_fails_hangs_up_and_refuses(
    store_dirs: StoreDirs, registry: Registry, workdir: Path
) -> None:
    digest = images.push(registry, "nginx/trouble", "v1", image(1_000))
    with front(workdir / "nginx", registry.host) as nginx, opened(store_dirs, retries=20) as store:
        nginx.turn("fail")
        with (
            meanwhile(
                lambda: nginx.asked(status=503), lambda: (nginx.turn("drop"), nginx.turn("fail", False))
            ),
            meanwhile(
                lambda: nginx.asked(status=444),
                lambda: (nginx.turn("refuse-bare"), nginx.turn("drop", False)),
            ),
            meanwhile(lambda: nginx.asked(status=429), lambda: nginx.turn("refuse-bare", False)),
        ):
            assert store.pull(f"{nginx.host}/nginx/trouble:v1").digest == digest


@pytest.mark.hostile(38)
def test_a_server_that_freezes_is_given_up_and_what_came_is_kept(
    store_dirs: StoreDirs, registry: Registry, workdir: Path
) -> None:
    digest = images.push(registry, "nginx/frozen", "v1", image())
    with front(workdir / "nginx", registry.host, limit_rate=RATE) as nginx:
        name = f"{nginx.host}/nginx/frozen:v1"
        with opened(store_dirs, timeout=0.5, retries=0) as store:
            watching = Watching("fetching", nginx.freeze)
            with pytest.raises(orlop.Unavailable):
                store.pull(name, call=orlop.Call(observer=watching))
            nginx.thaw()
        with opened(store_dirs) as store:
            assert store.pull(name).digest == digest
        if watching.acted:  # it may have been given up before, where the machine is slow
            assert nginx.asked("GET", "/blobs/", status=206)


@pytest.mark.distribution("push.monolithic.post-put", "push.manifest.put")
def test_tls_and_ipv6_and_basic_authentication_go_together(
    store_dirs: StoreDirs, registry: Registry, registry_auth: Registry, workdir: Path
) -> None:
    digest = images.push(registry, "nginx/tls", "v1", image(300_000))
    with front(workdir / "nginx", registry_auth.host, tls=make_certificate(workdir / "tls")) as nginx:
        auth = log_in(workdir, nginx.host6, registry_auth.user, registry_auth.password)
        insecure = (registry.host, nginx.host6)
        with opened(store_dirs, insecure_registries=insecure, auth_files=(auth,)) as store:
            pulled = store.pull(f"{registry.host}/nginx/tls:v1")
            store.push(pulled.name, f"{nginx.host6}/nginx/tls:v2")
            assert has(registry_auth, "nginx/tls", digest)
            assert store.pull(f"{nginx.host6}/nginx/tls:v2").digest == digest


# ------------------------------------------------------------------ tokens


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Certificate, Certificate]:
    folder = tmp_path_factory.mktemp("tokens")
    return make_certificate(folder / "one"), make_certificate(folder / "two")


@contextmanager
def token_registries(
    folder: Path, tokens: TokenServer, certificates: tuple[Certificate, Certificate]
) -> Iterator[tuple[Registry, Front, Callable[[], None]]]:
    """An open registry, and an nginx before one that takes tokens, with the same storage.

    The function ends all tokens that are out: it puts a registry that takes only newer ones in its place.
    """
    with serve(folder / "open") as free, serve(folder / "one", token=tokens, storage=free.storage) as one:
        tokens.certificate = certificates[1]
        with serve(folder / "two", token=tokens, storage=free.storage) as two:
            tokens.certificate = certificates[0]
            with front(folder / "nginx", one.host, limit_rate=RATE) as nginx:

                def end() -> None:
                    at = certificates.index(tokens.certificate)
                    tokens.certificate = certificates[1 - at]
                    nginx.upstream = (two, one)[at].host
                    nginx.restart()

                yield free, nginx, end


@pytest.mark.distribution("errors.unauthorized")
def test_tokens_that_end_in_the_middle_of_a_pull_and_a_push_are_fetched_anew(
    store_dirs: StoreDirs, workdir: Path, certificates: tuple[Certificate, Certificate]
) -> None:
    with (
        TokenServer(certificates[0], users={"me": "pw"}) as tokens,
        token_registries(workdir, tokens, certificates) as (free, nginx, end),
    ):
        digest = images.push(free, "token/image", "v1", image())
        name = f"{nginx.host}/token/image:v1"
        with opened(store_dirs) as store, pytest.raises(orlop.Unauthenticated, match="log in"):
            store.pull(name)
        auth = log_in(workdir, nginx.host, "me", "pw")
        with opened(store_dirs, auth_files=(auth,), keep_blobs=True) as store:
            watching = Watching("fetching", end)
            pulled = store.pull(name, call=orlop.Call(observer=watching))
            assert (pulled.digest, watching.acted) == (digest, True)
            asked = [one for one in tokens.issued if one.scopes == ("repository:token/image:pull",)]
            assert len(asked) == 2
            assert {one.granted for one in asked} == {("repository:token/image:pull",)}
            assert nginx.asked("GET", "/blobs/", status=401)
            other = images.push(free, "token/second", "v1", image(seed=8))  # not known to be behind nginx
            name = store.pull(f"{free.host}/token/second:v1").name
            watching = Watching("pushing", end)
            target = f"{nginx.host}/token/other:v1"
            store.push(name, target, call=orlop.Call(observer=watching))
            assert watching.acted
            assert has(free, "token/other", other)
            asked = [one for one in tokens.issued if "repository:token/other:pull,push" in one.scopes]
            assert len(asked) >= 2


@pytest.mark.distribution("errors.unauthorized")
def test_a_token_that_allows_too_little_is_told_from_wrong_credentials(
    store_dirs: StoreDirs, workdir: Path, certificates: tuple[Certificate, Certificate]
) -> None:
    with (
        TokenServer(certificates[0], users={"me": "pw"}, anonymous=True, told_life=None) as tokens,
        serve(workdir / "registry", token=tokens) as closed,
        serve(workdir / "open", storage=closed.storage) as free,
    ):
        tokens.may["me"] = {"repository:token/image:pull"}
        images.push(free, "token/image", "v1", image(1_000))
        name = f"{closed.host}/token/image:v1"
        with opened(store_dirs) as store:
            store.pull(name)  # as anybody
            with pytest.raises(orlop.Unauthenticated, match="log in"):
                store.push(name, f"{closed.host}/token/other:v1")
        for password, error, words in (
            ("pw", orlop.PermissionDenied, "may not do this"),
            ("wrong", orlop.Unauthenticated, "incorrect username or password"),
        ):
            auth = log_in(workdir, closed.host, "me", password)
            with opened(store_dirs, auth_files=(auth,)) as store, pytest.raises(error, match=words):
                store.push(name, f"{closed.host}/token/other:v1")
        assert tokens.refused >= 1
