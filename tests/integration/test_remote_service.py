"""The verbs on registries through a daemon: same results, same errors, and who may ask for what."""

from __future__ import annotations

import inspect
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import orlop
from orlop import errors
from orlop.cli import main
from orlop.client.registries import RemoteRegistries
from orlop.observe import Auth, Call, CancelToken, NullObserver, Progress
from orlop.proto.orlop.v1 import types_pb2
from orlop.remote import api
from orlop.service import Daemon
from orlop.service.calls import with_auth
from orlop.service.table import LOOKS
from orlop.spec.digest import Digest
from orlop.spec.documents import OCI_INDEX
from orlop.testing.fake import FakeStore
from orlop.testing.fake_registries import FakeRegistries
from orlop.testing.registry import Fault, MemoryRegistry

IMAGE = json.dumps({"schemaVersion": 2}).encode()
SIGNATURE = json.dumps({"artifactType": "a/b", "subject": {"digest": Digest.of(IMAGE)}}).encode()
Step = Callable[[api.Registries, Call], object]


class Log(NullObserver):
    """What an observer is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def progress(self, event: Progress) -> None:
        self.told.append(event)

    def warning(self, text: str) -> None:
        self.told.append(text)


def stocked() -> FakeRegistries:
    made = FakeRegistries()
    for tag in "123":
        made.publish(f"localhost/app:{tag}", IMAGE, OCI_INDEX)
    made.publish(f"localhost/app@{Digest.of(SIGNATURE)}", SIGNATURE)
    return made


@contextmanager
def daemon_with(registries: api.Registries | None) -> Iterator[RemoteRegistries]:
    folder = Path(tempfile.mkdtemp(prefix="orlop-", dir="/var/tmp"))  # sockets need short paths
    try:
        store = FakeStore(str(folder / "root"), str(folder / "run"))
        with Daemon(store, f"unix://{folder}/socket/s", registries=registries) as daemon:
            remote = RemoteRegistries.connect(str(daemon.address))
            try:
                yield remote
            finally:
                remote.close()
                daemon.stop(grace=0.0)
    finally:
        shutil.rmtree(folder)


STEPS: list[Step] = [
    lambda r, c: r.tags("localhost/app", call=c),
    lambda r, c: r.tags("localhost/app", last="1", count=1, call=c),
    lambda r, c: r.tags("localhost/app:1", call=c),
    lambda r, c: r.tags("localhost/none", call=c),
    lambda r, c: r.manifest("localhost/app:1", call=c),
    lambda r, c: r.manifest("localhost/app:1", platform="linux/arm64", config=True, call=c),
    lambda r, c: r.manifest("localhost/app:1", platform="no platform", call=c),
    lambda r, c: r.manifest("localhost/app:9", call=c),
    lambda r, c: r.referrers("localhost/app:1", call=c),
    lambda r, c: r.referrers("localhost/app:1", artifact_type="c/d", call=c),
    lambda r, c: r.copy("localhost/app:1", "localhost/b/c:1", tags=("2",), referrers=True, call=c),
    lambda r, c: r.copy("localhost/app:1", f"localhost/d@{Digest.of(IMAGE)}", all_platforms=True, call=c),
    lambda r, c: r.copy("localhost/app:1", "localhost/b", platform="arm64", all_platforms=True, call=c),
    lambda r, c: r.copy("localhost/app:1", "localhost/b", tags=("a/b",), call=c),
    lambda r, c: r.copy("localhost/app:9", "localhost/b", call=c),
    lambda r, c: r.delete("localhost/app:1", call=c),
    lambda r, c: r.delete("localhost/app:2", manifest=True, call=c),
    lambda r, c: r.delete("localhost/app:3", call=c),
]


def outcome(step: Step, registries: api.Registries) -> tuple[object, list[object]]:
    log = Log()
    try:
        value = step(registries, Call(observer=log))
    except errors.Error as exc:
        return (type(exc), str(exc), exc.hint, exc.details), log.told
    return value, log.told


def test_every_verb_gives_the_same_through_a_daemon() -> None:
    direct = stocked()
    with daemon_with(stocked()) as remote:
        assert remote.tags("localhost/app", count=2**70) == ["1", "2", "3"]
        for number, step in enumerate(STEPS):
            assert outcome(step, remote) == outcome(step, direct), f"step {number}"
    verbs = {name for name, _ in inspect.getmembers(api.Registries, inspect.isfunction) if name[0] != "_"}
    source = inspect.getsource(inspect.getmodule(outcome))  # type: ignore[arg-type]
    assert all(f"r.{verb}(" in source for verb in verbs - {"close"})


def test_a_calls_own_credentials_go_along() -> None:
    known = stocked()
    auth = Auth(registry="localhost", username="user", password="secret")
    call = Call(auth=auth)
    with daemon_with(known) as remote:
        for ask in (
            lambda: remote.tags("localhost/app", call=call),
            lambda: remote.manifest("localhost/app:1", call=call),
            lambda: remote.referrers("localhost/app:1", call=call),
            lambda: remote.copy("localhost/app:1", "localhost/app:4", call=call),
            lambda: remote.delete("localhost/app:4", call=call),
        ):
            known.calls.clear()
            ask()
            assert [seen.auth for seen in known.calls] == [auth]


def test_credentials_for_no_registry_are_refused_and_not_passed_over() -> None:
    with pytest.raises(errors.InvalidArgument, match="which registry"):
        Call(auth=Auth(username="user", password="secret"))
    with pytest.raises(errors.InvalidArgument, match="which registry") as caught:
        with_auth(Call(), types_pb2.Auth(username="user", password="secret"))
    assert "secret" not in str(caught.value)
    assert with_auth(Call(), types_pb2.Auth()).auth is None


def test_a_daemon_that_asks_no_registries_says_so() -> None:
    with daemon_with(None) as remote:
        for step in STEPS[:1] + STEPS[4:5] + STEPS[8:9] + STEPS[10:11] + STEPS[15:16]:
            with pytest.raises(errors.Unimplemented, match="for images alone"):
                step(remote, Call())


@pytest.mark.hostile(6)
def test_names_that_are_none_do_not_reach_the_verbs() -> None:
    known = stocked()
    with daemon_with(known) as remote:
        for name in ("", "UPPER", "a\0b", "x" * 5000, "a@sha256:../../x"):
            for ask in (
                lambda: remote.tags(name),  # noqa: B023 - called before it changes
                lambda: remote.manifest(name),  # noqa: B023
                lambda: remote.referrers(name),  # noqa: B023
                lambda: remote.delete(name),  # noqa: B023
                lambda: remote.copy(name, "localhost/b"),  # noqa: B023
                lambda: remote.copy("localhost/app:1", name),  # noqa: B023
            ):
                with pytest.raises(errors.InvalidArgument):
                    ask()
        with pytest.raises(errors.InvalidArgument):
            remote.tags("localhost/app", count=-1)
    assert not known.calls


def test_who_may_only_look_may_not_delete_or_copy() -> None:
    ours = {look.rpartition("/")[2] for look in LOOKS if look.startswith("/orlop.v1.Registries/")}
    assert ours == {"Tags", "Manifest", "Referrers"}


def test_the_command_line_has_a_daemon_do_it(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with daemon_with(stocked()) as remote:

        def run(*arguments: str, code: int = 0) -> bytes:
            assert main(["--host", str(remote.address), *arguments]) == code
            return capfdbinary.readouterr().out

        assert run("tags", "localhost/app") == b"1\n2\n3\n"
        assert run("manifest", "--raw", "localhost/app:1") == IMAGE
        (referrer,) = json.loads(run("referrers", "--json", "localhost/app:1"))
        assert referrer["artifact_type"] == "a/b"
        digest = Digest.of(IMAGE)
        names = [f"localhost/b:{tag}" for tag in ("1", "x")]
        assert json.loads(run("copy", "--json", "--tag", "x", "localhost/app:1", names[0]))["names"] == names
        assert run("delete-remote", "localhost/app:1").decode() == "localhost/app:1\n"
        assert run("delete-remote", "--manifest", "localhost/app:2").decode() == f"localhost/app@{digest}\n"
        run("delete-remote", "localhost/app:3", code=3)
        run("delete-remote", "--force", "localhost/app:3")
        run("artifact", "pull", "localhost/app:1", code=2)


def test_a_copy_by_a_daemon_tells_its_progress_and_ends_with_its_client() -> None:
    data = bytes(range(256)) * 8_000
    with MemoryRegistry() as one, MemoryRegistry() as two, orlop.registries() as real:
        digest = one.add_blob("app", data)
        config = one.add_blob("app", b"{}")
        document = {
            "schemaVersion": 2,
            "config": {"mediaType": "a/b", "digest": config, "size": 2},
            "layers": [{"mediaType": "a/b", "digest": digest, "size": len(data)}],
        }
        manifest = json.dumps(document).encode()
        one.add_manifest("app", "1", manifest, "application/vnd.oci.image.manifest.v1+json")
        held = Fault(method="GET", path=digest, hold_after=500_000, times=1)
        one.misbehave(held)
        source, target, cancel = f"{one.host}/app:1", f"{two.host}/b:1", CancelToken()

        class Stop(Log):
            def progress(self, event: Progress) -> None:
                super().progress(event)
                if event.item == digest:
                    cancel.cancel()

        with daemon_with(real) as remote:
            with pytest.raises(errors.Cancelled):
                remote.copy(source, target, call=Call(observer=Stop(), cancel=cancel))
            held.release.set()
            log = Log()
            done = remote.copy(source, target, call=Call(observer=log))
            assert done.digest == Digest.of(manifest)
            assert {event.phase for event in log.told if isinstance(event, Progress)} >= {"resolving", "done"}
            assert remote.manifest(target).data == manifest
            assert remote.tags(f"{two.host}/b") == ["1"]
        assert two.blobs[digest] == data
