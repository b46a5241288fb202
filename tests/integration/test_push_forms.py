"""What a push makes of layers: the form that was asked for, the same bytes each time, and nothing twice."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.observe import Call, CancelToken
from orlop.testing.registry import Fault, MemoryRegistry
from support import daemons, images
from support.layers import Layer

pytestmark = [pytest.mark.root, pytest.mark.any_kernel]

CREATED = 1_700_000_000
UPLOADS = "/blobs/uploads/"
# Whoever is given up in a process of its own has time for its last requests, however slow the machine
PATIENT = (
    "import sys, orlop.registry.blobs.sessions as s; s.CANCEL_SECONDS = s.HURRIED_SECONDS = 120.0;"
    "from orlop.cli import main; sys.exit(main())"
)


class Log:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def progress(self, event: orlop.Progress) -> None:
        pass

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def server() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        registry.single_post = True
        yield registry


@pytest.fixture
def base(server: MemoryRegistry) -> images.Image:
    tar = Layer().folder("d").file("d/a", b"a" * 5000).file("d/b", os.urandom(3000)).tar()
    image = images.make_image([tar])
    for data in image.blobs.values():
        server.add_blob("base", data)
    server.add_manifest("base", "v1", image.document, image.media_type)
    return image


@contextmanager
def opened(dirs: StoreDirs, *, sub: str = "", **settings: object) -> Iterator[orlop.Store]:
    root, run = (dirs.root / sub, dirs.run / sub) if sub else (dirs.root, dirs.run)
    for folder in (root, run) if sub else ():
        folder.parent.mkdir(exist_ok=True)
    options = {"durable": False, "retries": 1, "timeout": 60.0, **settings}
    with orlop.open(root, run, settings=orlop.Settings(**options)) as store:
        yield store


def commit(
    store: orlop.Store, server: MemoryRegistry, work: Path, name: str, *, created: int | None = CREATED
) -> orlop.ImageInfo:
    """The same change each time, but for what ``created`` leaves open."""
    with store.prepare(f"{server.host}/base:v1", work, mount=True) as root:
        for number in (2, 1):
            (work / f"d/new{number}").write_bytes(bytes([number]) * 50_000 + bytes(range(256)) * 400)
            os.utime(work / f"d/new{number}", ns=(0, number * 1_000_000_001))
        (work / "d/b").unlink()
        os.utime(work / "d", ns=(0, 7_000_000_007))
        os.utime(work, ns=(0, 8_000_000_008))
        return root.commit(name, created=created)


def manifest_of(server: MemoryRegistry, repository: str, tag: str = "1") -> dict[str, object]:
    found: dict[str, object] = json.loads(server.manifests[repository, tag][1])
    return found


def kinds(server: MemoryRegistry, repository: str) -> list[str]:
    """The layers' compressions."""
    layers: list[dict[str, str]] = manifest_of(server, repository)["layers"]  # type: ignore[assignment]  # of a manifest
    return [layer["mediaType"].rpartition("tar")[2].lstrip("+.") for layer in layers]


# ------------------------------------------------------------------ the form that was asked for


def test_the_form_is_for_layers_made_here_and_with_recompress_for_all(
    store_dirs: StoreDirs, server: MemoryRegistry, base: images.Image
) -> None:
    with opened(store_dirs) as store:
        store.pull(f"{server.host}/base:v1")
        commit(store, server, store_dirs.work / "root", "localhost/mine:1")
        first = store.push("localhost/mine:1", f"{server.host}/a:1", compression="zstd", level=5)
        assert kinds(server, "a") == ["gzip", "zstd"]
        assert manifest_of(server, "a")["layers"][0]["digest"] in base.blobs  # type: ignore[index]  # of a manifest
        # What is known is what was asked for: nothing is sent; another form is refused, and nothing sent
        sent = server.received
        assert store.push("localhost/mine:1", f"{server.host}/a:1", compression="zstd") == first
        assert store.push("localhost/mine:1", f"{server.host}/a:1") == first
        for other in (
            {"compression": "gzip"},
            {"level": 6},
            {"format": "estargz"},
            {"format": "zstd:chunked"},
        ):
            with pytest.raises(orlop.FailedPrecondition) as caught:
                store.push("localhost/mine:1", f"{server.host}/a:1", **other)  # type: ignore[arg-type]  # of a table
            assert "--recompress" in caught.value.hint
        assert server.received == sent
        second = store.push("localhost/mine:1", f"{server.host}/b:1", compression="gzip", recompress=True)
        third = store.push("localhost/mine:1", f"{server.host}/c:1", compression="zstd", recompress=True)
        fourth = store.push("localhost/mine:1", f"{server.host}/e:1", compression="none", recompress=True)
        assert [kinds(server, name) for name in "bce"] == [["gzip", "gzip"], ["zstd", "zstd"], ["", ""]]
        assert len({first.digest, second.digest, third.digest, fourth.digest}) == 4
        # The image that was pulled keeps its digest, unless asked
        with pytest.raises(orlop.FailedPrecondition):
            store.push(f"{server.host}/base:v1", f"{server.host}/f:1", compression="zstd")
        same = store.push(f"{server.host}/base:v1", f"{server.host}/f:1", compression="gzip")
        assert same.digest == base.digest
        store.pull(f"{server.host}/c:1")


def test_settings_say_the_form_where_nobody_asks(
    store_dirs: StoreDirs, server: MemoryRegistry, base: images.Image
) -> None:
    with opened(store_dirs, compression="zstd", compression_format="zstd:chunked") as store:
        store.pull(f"{server.host}/base:v1")
        commit(store, server, store_dirs.work / "root", "localhost/mine:1")
        store.push("localhost/mine:1", f"{server.host}/a:1")
        assert kinds(server, "a") == ["gzip", "zstd"]
        annotations = [layer.get("annotations", {}) for layer in manifest_of(server, "a")["layers"]]  # type: ignore[attr-defined]  # of a manifest
        assert [len(one) for one in annotations] == [0, 4]
        assert store.push(f"{server.host}/base:v1", f"{server.host}/b:1").digest == base.digest


def test_what_a_seekable_form_cannot_say_goes_plain_with_a_warning(
    store_dirs: StoreDirs, server: MemoryRegistry, base: images.Image
) -> None:
    log = Log()
    with opened(store_dirs) as store:
        store.pull(f"{server.host}/base:v1")
        with store.prepare(f"{server.host}/base:v1", store_dirs.work / "root", mount=True) as root:
            (store_dirs.work / 'root/quo"ted').touch()
            root.commit("localhost/mine:1")
        for number, form in enumerate(("zstd:chunked", "estargz")):
            to = f"{server.host}/a{number}:1"
            store.push("localhost/mine:1", to, format=form, recompress=True, call=Call(observer=log))
            layers: list[dict[str, object]] = manifest_of(server, f"a{number}")["layers"]  # type: ignore[assignment]  # of a manifest
            assert ["annotations" in layer for layer in layers] == [True, False]
    assert len([text for text in log.warnings if "needs escapes" in text]) == 2


@pytest.mark.parametrize("form", ["zstd:chunked", "estargz"])
@pytest.mark.parametrize("recompress", [False, True])
def test_what_had_to_go_plain_is_what_was_asked_for_the_next_time(
    store_dirs: StoreDirs, server: MemoryRegistry, base: images.Image, form: str, recompress: bool
) -> None:
    with opened(store_dirs) as store:
        store.pull(f"{server.host}/base:v1")
        with store.prepare(f"{server.host}/base:v1", store_dirs.work / "root", mount=True) as root:
            (store_dirs.work / 'root/quo"ted').touch()
            root.commit("localhost/mine:1")
        to = f"{server.host}/a:1"
        first = store.push("localhost/mine:1", to, format=form, recompress=recompress)  # type: ignore[arg-type]  # of a table
        sent = server.received
        assert store.push("localhost/mine:1", to, format=form, recompress=recompress) == first  # type: ignore[arg-type]  # of a table
        assert server.received == sent
        # A layer that could have the form, and was pushed without it, is no such case
        if not recompress:
            commit(store, server, store_dirs.work / "root", "localhost/other:1")
            compression = {"zstd:chunked": "zstd", "estargz": "gzip"}[form]
            store.push("localhost/other:1", f"{server.host}/b:1", compression=compression)  # type: ignore[arg-type]  # of a table
            with pytest.raises(orlop.FailedPrecondition, match="another form"):
                store.push("localhost/other:1", f"{server.host}/b:1", format=form)  # type: ignore[arg-type]  # of a table


def test_an_estargz_image_has_another_id_and_the_one_here_stays(
    store_dirs: StoreDirs, server: MemoryRegistry, base: images.Image
) -> None:
    log = Log()
    with opened(store_dirs) as store:
        store.pull(f"{server.host}/base:v1")
        here = commit(store, server, store_dirs.work / "root", "localhost/mine:1")
        call = Call(observer=log)
        pushed = store.push("localhost/mine:1", f"{server.host}/a:1", format="estargz", call=call)
        manifest = manifest_of(server, "a")
        assert store.inspect("localhost/mine:1").info == here  # without a manifest, as before
        config = json.loads(server.blobs[manifest["config"]["digest"]])  # type: ignore[index]  # of a manifest
        known = json.loads(store.inspect("localhost/mine:1").config)
        assert config["history"] == known["history"]
        blobs = [server.blobs[layer["digest"]] for layer in manifest["layers"]]  # type: ignore[attr-defined]  # of a manifest
        inside = [images.digest_of(gzip.decompress(blob)) for blob in blobs]
        assert config["rootfs"]["diff_ids"] == inside
        assert [one == other for one, other in zip(inside, known["rootfs"]["diff_ids"], strict=True)] == [
            True,  # the base is there as it is
            False,
        ]
        assert any(manifest["config"]["digest"] in text for text in log.warnings)  # type: ignore[index]  # of a manifest
        sent = server.received
        assert store.push("localhost/mine:1", f"{server.host}/a:1", format="estargz") == pushed
        assert server.received == sent
        pulled = store.pull(f"{server.host}/a:1")  # and comes back as an image of its own
        assert (pulled.digest, pulled.id) == (pushed.digest, manifest["config"]["digest"])  # type: ignore[index]  # of a manifest


@pytest.mark.parametrize("recipe", ["gzip-zlib-6", "zstd-3", "a-recipe-of-tomorrow"])
def test_a_recipe_that_makes_other_bytes_now_is_not_believed(
    store_dirs: StoreDirs, server: MemoryRegistry, base: images.Image, recipe: str
) -> None:
    """As when another version of a library compresses otherwise: the digest that is known decides."""
    with opened(store_dirs, retries=0) as store:
        store.pull(f"{server.host}/base:v1")
        commit(store, server, store_dirs.work / "root", "localhost/mine:1")
        digest = store.push("localhost/mine:1", f"{server.host}/a:1").digest
        made = manifest_of(server, "a")["layers"][1]["digest"]  # type: ignore[index]  # of a manifest
        core = store.verbs._core  # type: ignore[attr-defined]  # to make what only a new version would
        core.db.write(
            lambda tx: tx.execute("UPDATE layer_blobs SET recipe = ? WHERE digest = ?", (recipe, made))
        )
        with MemoryRegistry() as other:
            assert store.push("localhost/mine:1", f"{other.host}/a:1").digest == digest  # from where it is
            assert made in other.blobs
        server.misbehave(Fault(method="GET", path=f"/blobs/{made}", status=404))
        with MemoryRegistry() as other:
            with pytest.raises(orlop.FailedPrecondition) as caught:
                store.push("localhost/mine:1", f"{other.host}/a:1")
            assert caught.value.details["blob"] == made
            assert made not in other.blobs


# ------------------------------------------------------------------ reproducible


def test_one_change_is_one_manifest_whatever_the_driver_the_threads_and_the_locale(
    store_dirs: StoreDirs, server: MemoryRegistry, base: images.Image
) -> None:
    digests = set()
    elsewhere = {**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "tr_TR.UTF-8"}
    for number, (driver, threads, options) in enumerate(
        [("overlay", 1, {}), ("native", 3, {"uploads": 1, "upload_chunk": 7000}), ("overlay", 2, {})]
    ):
        to = f"{server.host}/a{number}:1"
        with opened(
            store_dirs, sub=f"s{number}", driver=driver, compression_threads=threads, **options
        ) as store:
            store.pull(f"{server.host}/base:v1")
            commit(store, server, store_dirs.work / f"root{number}", "localhost/mine:1")
            if number < 2:
                digests.add(store.push("localhost/mine:1", to).digest)
    where = ["--root", store_dirs.root / "s2", "--run", store_dirs.run / "s2", "--no-durable"]
    done = subprocess.run(
        [sys.executable, "-m", "orlop", *where, "push", "-q", "localhost/mine:1", to, "--threads", "2"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=elsewhere,
    )
    digests.add(done.stdout.strip().partition("@")[2])
    assert len(digests) == 1


def test_the_same_commit_pushed_again_sends_nothing(
    store_dirs: StoreDirs, server: MemoryRegistry, base: images.Image
) -> None:
    with opened(store_dirs) as store:
        store.pull(f"{server.host}/base:v1")
        one = commit(store, server, store_dirs.work / "root", "localhost/mine:1")
        first = store.push("localhost/mine:1", f"{server.host}/a:1")
        sent, asked = server.received, len(server.requests)
        two = commit(store, server, store_dirs.work / "root", "localhost/mine:2")
        assert (two.id, two.layers) == (one.id, one.layers)
        assert store.push("localhost/mine:2", f"{server.host}/a:1").digest == first.digest
        assert server.received == sent
        assert {seen.method for seen in server.requests[asked:]} == {"HEAD"}
        # Without a time of its own: another config, and with it another manifest; the layer is the same
        commit(store, server, store_dirs.work / "root", "localhost/mine:3", created=None)
        third = store.push("localhost/mine:3", f"{server.host}/a:2")
        manifest = manifest_of(server, "a", "2")
        assert manifest["layers"] == manifest_of(server, "a")["layers"]
        config = server.blobs[manifest["config"]["digest"]]  # type: ignore[index]  # of a manifest
        assert server.received == sent + len(config) + len(server.manifests["a", "2"][1])
        assert third.digest != first.digest


# ------------------------------------------------------------------ given up


@pytest.fixture
def big(store_dirs: StoreDirs, server: MemoryRegistry, base: images.Image) -> str:
    """An image whose push is held at the registry in the middle of a layer, by its name here."""
    with opened(store_dirs) as store:
        store.pull(f"{server.host}/base:v1")
        with store.prepare(f"{server.host}/base:v1", store_dirs.work / "root", mount=True) as root:
            (store_dirs.work / "root/big").write_bytes(os.urandom(8 << 20))
            root.commit("localhost/big:1")
    server.misbehave(
        *(Fault(method=method, path=UPLOADS, hold_request=100_000) for method in ("PATCH", "PUT"))
    )
    return "localhost/big:1"


def held(server: MemoryRegistry) -> bool:
    return bool(server.seen("PATCH", UPLOADS) or server.seen("PUT", UPLOADS))


def answers(address: str) -> bool:
    try:
        with orlop.connect(address) as store:
            store.info()
    except orlop.Unavailable:
        return False
    return True


def until(condition: Callable[[], object], process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process is None or process.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def expect_given_up(server: MemoryRegistry) -> None:
    """Of the sessions that were opened none is left, and the last was cancelled."""
    until(lambda: not server.uploads)
    assert server.seen("DELETE", UPLOADS)
    assert ("big", "1") not in server.manifests


@pytest.mark.parametrize("signum", [signal.SIGINT], ids=lambda signum: signum.name)
def test_an_interrupted_push_cancels_its_upload_at_the_registry(
    store_dirs: StoreDirs, server: MemoryRegistry, big: str, workdir: Path, signum: signal.Signals
) -> None:
    config = workdir / "config.toml"
    config.write_text("uploads = 1\n")  # no other session is being opened at that moment
    config.chmod(0o600)
    where = ["--config", config, "--root", store_dirs.root, "--run", store_dirs.run, "--no-durable"]
    command = [sys.executable, "-c", PATIENT, *where, "push", "-q", big, f"{server.host}/big:1"]
    with daemons.Crew(workdir / "crew") as crew:
        process = crew.start("push", command)
        until(lambda: held(server), process)
        process.send_signal(signum)
        try:
            code = process.wait(240)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            process.wait(60)
            pytest.fail(f"it goes on: {crew.said('push')}")
        assert code == 128 + signum, crew.said("push")
        expect_given_up(server)


@pytest.mark.parametrize("how", ["cancelled", "killed"])
def test_a_push_call_that_its_client_gives_up_cancels_its_upload_at_the_registry(
    store_dirs: StoreDirs, server: MemoryRegistry, big: str, workdir: Path, how: str
) -> None:
    address = f"unix://{workdir}/sock"
    config = workdir / "config.toml"
    config.write_text("uploads = 1\n")
    config.chmod(0o600)
    where = ["--config", config, "--root", store_dirs.root, "--run", store_dirs.run, "--no-durable"]
    with daemons.Crew(workdir / "crew") as crew:
        crew.start("daemon", [sys.executable, "-c", PATIENT, *where, "daemon", "--listen", address])
        until(lambda: answers(address))
        if how == "killed":
            command = [sys.executable, "-m", "orlop", "--host", address]
            client = crew.start("client", [*command, "push", "-q", big, f"{server.host}/big:1"])
            until(lambda: held(server), client)
            client.kill()
        else:
            call, raised = Call(cancel=CancelToken()), []

            def push(store: orlop.Store) -> None:
                try:
                    store.push(big, f"{server.host}/big:1", call=call)
                except orlop.Error as exc:
                    raised.append(exc)

            with orlop.connect(address) as store:
                thread = threading.Thread(target=push, args=[store], daemon=True)
                thread.start()
                until(lambda: held(server) or raised)
                call.cancel.cancel()
                thread.join(120)
            assert [type(exc) for exc in raised] == [orlop.Cancelled]
        expect_given_up(server)
