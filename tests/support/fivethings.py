"""The five things that people try first, done with commands as they would, and timed: `tools/five-things`.

No daemon runs.  What is pulled comes from a registry of our own that wants a password, and finds it in the
``config.json`` that docker has.  Sizes are chosen by who calls: a test has small ones, the tool larger ones.
"""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support import disks, images, users
from support.layers import Layer
from support.registries import Registry, serve

TREE = Path(__file__).resolve().parents[2]
TOOLS = ("sh", "cat", "echo", "ls", "mkdir", "touch")
LIMIT = 300  # seconds for one command


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """One thing: what it was, how long it took, and what there is to say."""

    thing: str
    seconds: float
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody with a store, and a folder to work in; ``as_them`` makes a command theirs."""

    name: str
    store: Path
    work: Path
    as_them: Callable[[list[str], Mapping[str, str]], list[str]]
    env: Mapping[str, str]

    def command(self, *words: str | Path) -> list[str]:
        """``orlop WORDS``, to be started."""
        own = [sys.executable, "-m", "orlop", *map(os.fspath, words)]
        return self.as_them(own, self.env)

    def orlop(self, *words: str | Path) -> str:
        """What ``orlop WORDS`` prints; it has to go well."""
        done = subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=LIMIT,
            check=False,
            env={**os.environ, **self.env},
        )
        assert done.returncode == 0, f"orlop {words}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def disk(self) -> int:
        """Bytes that the store takes, as du counts them."""
        said = subprocess.run(["du", "-s", "-B1", self.store], capture_output=True, text=True, check=True)
        return int(said.stdout.split()[0])


def five_things(person: Person, registry: Registry, *, forks: int = 100) -> list[Done]:
    """Do them."""
    things = (_run_twice, _fork_many, _change_twice, _killed_pull, _large_pull)
    return [thing(person, registry, forks) for thing in things]


def _noise(size: int) -> bytes:
    """Bytes that do not compress, always the same; one call of randbytes has 256 MB at most."""
    source, part = random.Random(1), 16 << 20
    return b"".join(source.randbytes(min(part, size - at)) for at in range(0, size, part))


def push_images(registry: Registry, *, files: int, large: int) -> None:
    """The two images: ``tool`` with so many small files, ``model`` with a layer of so many random bytes."""
    layer = Layer()
    for folder in ("bin", "dev", "etc", "lib", "proc", "opt"):
        layer.folder(folder)
    layer.folder("tmp", mode=0o1777).file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)
    for name in TOOLS:
        layer.symlink(f"bin/{name}", "/bin/busybox")
    for number in range(files):
        layer.file(f"lib/{number}", bytes(4_000))
    images.push(
        registry, "tool", "1", images.make_image([layer.tar()], config={"config": {"Env": ["PATH=/bin"]}})
    )
    model = Layer().file("weights", _noise(large)).tar()
    images.push(registry, "model", "1", images.make_image([model], compression="none"))


def _timed(work: Callable[[], object]) -> float:
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


def _run_twice(person: Person, registry: Registry, forks: int) -> Done:
    words = ("run", f"{registry.host}/tool:1", "sh", "-c", "echo hello")
    first = _timed(lambda: _is(person.orlop(*words), "hello\n"))
    second = _timed(lambda: _is(person.orlop(*words), "hello\n"))
    return Done(
        thing="run a command in an image, and again",
        seconds=first + second,
        note=f"with the pull {first:.2f} s, then {second:.2f} s",
    )


def _is(said: str, wanted: str) -> None:
    assert said == wanted, said


def _fork_many(person: Person, registry: Registry, forks: int) -> Done:
    base, names = person.work / "base", [person.work / f"try-{number}" for number in range(1, forks + 1)]
    person.orlop("prepare", f"{registry.host}/tool:1", base)
    before = person.disk()
    took = _timed(lambda: person.orlop("fork", base, *names))
    more = person.disk() - before
    assert len(person.orlop("ps", "-q").split()) == forks + 1
    person.orlop("cleanup", base, *names)
    return Done(
        thing=f"{forks} forks, and du",
        seconds=took,
        note=f"{took / forks * 1000:.1f} ms each; {more >> 10} KiB of disk for all",
    )


def _change_twice(person: Person, registry: Registry, forks: int) -> Done:
    script = "mkdir /opt/tool; echo 1.0 > /opt/tool/version"
    digests: list[str] = []

    def change() -> None:
        for number in (1, 2):
            root = person.work / f"change-{number}"
            person.orlop("run", "--path", root, f"{registry.host}/tool:1", "sh", "-c", script)
            person.orlop("commit", root, f"{registry.host}/changed:{number}")
            digests.append(
                person.orlop("push", f"{registry.host}/changed:{number}").strip().rpartition("@")[2]
            )
            person.orlop("cleanup", root)

    took = _timed(change)
    assert digests[0] == digests[1], digests
    with tempfile.TemporaryDirectory() as folder:
        source = f"docker://{registry.host}/changed:1"
        access = ["--src-tls-verify=false", f"--src-creds={registry.user}:{registry.password}"]
        subprocess.run(
            ["skopeo", "copy", "-q", *access, source, f"oci:{folder}:1"], check=True, timeout=LIMIT
        )
        layout = json.loads((Path(folder) / "index.json").read_bytes())
    assert layout["manifests"][0]["digest"] == digests[0]
    return Done(
        thing="change, commit, push; twice",
        seconds=took,
        note="the same digest both times, and for skopeo",
    )


def _killed_pull(person: Person, registry: Registry, forks: int) -> Done:
    name, killed = f"{registry.host}/model:1", 0

    def pull() -> None:
        nonlocal killed
        process = subprocess.Popen(
            person.command("pull", name),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **person.env},
            start_new_session=True,
        )
        with process:
            try:
                killed = _bytes_come(person.store, process)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        person.orlop("pull", name)

    took = _timed(pull)
    person.orlop("check")
    person.orlop("gc", "--dry-run")
    how = f"killed at {killed >> 10} KiB" if killed else "too quick to be killed"
    return Done(thing="a pull, killed, and again", seconds=took, note=f"{how}; check is clean")


def _bytes_come(store: Path, process: subprocess.Popen[bytes]) -> int:
    """Wait until a download is under way; its bytes, or 0 if the pull has ended."""
    deadline = time.monotonic() + LIMIT
    while process.poll() is None and time.monotonic() < deadline:
        for file in store.glob("content/ingest/*/*"):
            try:
                size = file.stat().st_blocks * 512
            except FileNotFoundError:
                continue
            if size > 1 << 20:
                return size
        time.sleep(0.002)
    return 0


def _large_pull(person: Person, registry: Registry, forks: int) -> Done:
    name = f"{registry.host}/model:1"
    person.orlop("rmi", name)
    took = _timed(lambda: person.orlop("pull", name))
    size = json.loads(person.orlop("images", "--json"))
    bytes_ = max(int(image["size"]) for image in size)
    return Done(
        thing="a large image, with the config.json that is there",
        seconds=took,
        note=f"{bytes_ / 1e6:.0f} MB, {bytes_ / took / 1e6:.0f} MB/s, verified and durable",
    )


# ------------------------------------------------------------------ who does them


def root_person(folder: Path, registry: Registry) -> Person:
    """Root, with a store in a folder."""
    folder.mkdir()
    return Person(
        name="root",
        store=folder / "store",
        work=_folder(folder / "work"),
        as_them=lambda command, env: command,
        env=_environment(folder, registry) | {"ORLOP_ROOT": f"{folder}/store", "ORLOP_RUN": f"{folder}/run"},
    )


def user_person(folder: Path, registry: Registry) -> Person:
    """A user with subordinate ids, and a store where users have it."""
    user = users.make(folder, "subids")
    env = _environment(user.home, registry)
    work = _folder(user.home / "work")
    for path in (work, user.home / "docker", user.home / "docker/config.json"):
        os.chown(path, users.UID, users.GID)
    return Person(
        name="user",
        store=user.data / "orlop",
        work=work,
        as_them=lambda command, env: user.command(*command, env=env),
        env=env,
    )


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _environment(folder: Path, registry: Registry) -> dict[str, str]:
    secret = base64.b64encode(f"{registry.user}:{registry.password}".encode()).decode()
    (_folder(folder / "docker") / "config.json").write_text(
        json.dumps({"auths": {registry.host: {"auth": secret}}})
    )
    return {
        "DOCKER_CONFIG": f"{folder}/docker",
        "ORLOP_INSECURE_REGISTRIES": registry.host,
        "SOURCE_DATE_EPOCH": "1577836800",  # a commit's time is its own otherwise, and so its digest
    }


@contextmanager
def _place() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="orlop-five-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        disks.end(folder)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Do them as root and as a user; print the table, and write it to build/five-things.md."""
    files, large = int(os.environ.get("FILES", "5000")), int(os.environ.get("LARGE_MB", "1000")) << 20
    rows: dict[str, list[Done]] = {}
    with _place() as folder, serve(folder / "registry", auth=True) as registry:
        push_images(registry, files=files, large=large)
        for person in (root_person(folder / "root", registry), user_person(folder / "user", registry)):
            rows[person.name] = five_things(person, registry)
    lines = ["| | as root | | without root | |", "| --- | ---: | --- | ---: | --- |"]
    for mine, theirs in zip(rows["root"], rows["user"], strict=True):
        lines.append(
            f"| {mine.thing} | {mine.seconds:.2f} s | {mine.note} | {theirs.seconds:.2f} s | {theirs.note} |"
        )
    (TREE / "build").mkdir(exist_ok=True)
    (TREE / "build/five-things.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))  # noqa: T201 - what it is for
    return 0
