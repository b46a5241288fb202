"""One process of `test_stress`: operations at random, by the library, a daemon or the command line.

    python stress_actor.py JSON

What it makes it names after itself; the images of the registry and a few shared names are anybody's, so
with them, and only with them, it may be too late.  In the end it writes down what must be there then.
It is killed if it takes too long, and shows where it was.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import orlop
from orlop.images.api import PrepareOptions

MOST_ROOTS = 3
WEIGHTS = {
    "prepare": 6, "write": 6, "commit": 4, "cleanup": 4, "mount": 3, "unmount": 3, "load": 2, "pull": 2,
    "tag": 3, "share": 1, "look_at_shared": 1, "remove": 3, "remove_remote": 1, "collect": 1, "list": 2,
    "inspect": 2,
}  # fmt: skip
SHARED = [f"localhost/shared:{number}" for number in range(3)]
TOO_LATE = (orlop.NotFound, orlop.Aborted)
EXITS = {3: orlop.NotFound, 4: orlop.AlreadyExists, 5: orlop.FailedPrecondition}

Contents = dict[str, str]


class Face(Protocol):
    """The verbs that an actor uses."""

    def pull(self, name: str) -> object: ...
    def load(self, source: str, name: str) -> object: ...
    def tag(self, name: str, new: str) -> object: ...
    def prepare(self, name: str, path: str, *, mount: bool, view: bool) -> object: ...
    def mount(self, path: str) -> object: ...
    def unmount(self, path: str) -> object: ...
    def commit(self, path: str, name: str) -> object: ...
    def cleanup(self, path: str) -> object: ...
    def remove(self, name: str) -> object: ...
    def inspect(self, name: str) -> object: ...
    def collect(self) -> object: ...
    def images(self) -> set[str]: ...
    def prepared(self) -> set[str]: ...


class ByStore:
    """The library in this process, or a client of a daemon."""

    def __init__(self, store: orlop.Store) -> None:
        self._store = store
        verbs = store.verbs
        self.pull, self.tag, self.mount, self.unmount = verbs.pull, verbs.tag, verbs.mount, verbs.unmount
        self.commit, self.cleanup, self.remove, self.inspect = (
            verbs.commit,
            verbs.cleanup,
            verbs.remove,
            verbs.inspect,
        )
        self.collect = store.collect

    def load(self, source: str, name: str) -> object:
        return self._store.load(source, name=name)

    def prepare(self, name: str, path: str, *, mount: bool, view: bool) -> object:
        return self._store.verbs.prepare_root(name, path, options=PrepareOptions(mount=mount, view=view))

    def images(self) -> set[str]:
        return {info.name for info in self._store.images()}

    def prepared(self) -> set[str]:
        return {info.path for info in self._store.prepared()}


class ByCommand:
    """The command line, a process for each verb."""

    def __init__(self, options: list[str]) -> None:
        self._options = options

    def _run(self, *words: str) -> str:
        command = [sys.executable, "-m", "orlop", *self._options, *words]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise EXITS.get(done.returncode, orlop.Internal)(" ".join(words), done.stderr)
        return done.stdout

    def pull(self, name: str) -> object:
        return self._run("pull", "-q", name)

    def load(self, source: str, name: str) -> object:
        return self._run("import", "-q", "--name", name, source)

    def tag(self, name: str, new: str) -> object:
        return self._run("tag", name, new)

    def prepare(self, name: str, path: str, *, mount: bool, view: bool) -> object:
        options = ["--mount"] * mount + ["--view"] * view
        return self._run("prepare", "-q", *options, name, path)

    def mount(self, path: str) -> object:
        return self._run("mount", path)

    def unmount(self, path: str) -> object:
        return self._run("unmount", path)

    def commit(self, path: str, name: str) -> object:
        return self._run("commit", "-q", path, name)

    def cleanup(self, path: str) -> object:
        return self._run("cleanup", path)

    def remove(self, name: str) -> object:
        return self._run("rmi", name)

    def inspect(self, name: str) -> object:
        return self._run("inspect", name)

    def collect(self) -> object:
        return self._run("gc")

    def images(self) -> set[str]:
        return {line["name"] for line in json.loads(self._run("images", "--json"))}

    def prepared(self) -> set[str]:
        return {line["path"] for line in json.loads(self._run("ps", "--json"))}


@dataclass(slots=True)
class RootState:
    contents: Contents
    view: bool
    mounted: bool


@dataclass(slots=True)
class Actor:
    """What it has, and what it may do."""

    name: str
    face: Face
    dice: random.Random
    work: Path
    remote: dict[str, Contents]  # anybody's
    layouts: dict[str, Contents]
    images: dict[str, Contents] = field(default_factory=dict)
    roots: dict[str, RootState] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    _next: int = 0

    def run(self, operations: int) -> None:
        words, weights = zip(*WEIGHTS.items(), strict=True)
        done = 0
        while done < operations:
            (word,) = self.dice.choices(words, weights)
            if getattr(self, word)():
                self.counts[word] += 1
                done += 1
        self.list()

    def new(self, what: str) -> str:
        self._next += 1
        return (
            f"{self.work}/{self.name}-{self._next}"
            if what == "root"
            else f"localhost/{self.name}:{self._next}"
        )

    def pick(self, things: dict[str, Any]) -> str | None:
        return self.dice.choice(sorted(things)) if things else None

    def if_not_too_late(self, verb: Any, *words: str) -> bool:
        try:
            verb(*words)
        except TOO_LATE:
            self.counts["too late"] += 1
            return False
        return True

    def patiently(self, verb: Any, path: str) -> None:
        """Give a root back; other tests on this machine may have copied its mount for some seconds."""
        for _ in range(4):
            try:
                verb(path)
            except orlop.FailedPrecondition as exc:
                if "in use" not in str(exc):
                    raise
                self.counts["in use"] += 1
            else:
                return
        verb(path)

    # -- each says whether there was anything to do

    def pull(self) -> bool:
        self.face.pull(self.dice.choice(sorted(self.remote)))
        return True

    def load(self) -> bool:
        source, name = self.dice.choice(sorted(self.layouts)), self.new("image")
        self.face.load(source, name)
        self.images[name] = self.layouts[source]
        return True

    def tag(self) -> bool:
        name, new = self.pick({**self.images, **self.remote}), self.new("image")
        assert name is not None
        if name in self.images:
            self.face.tag(name, new)
            self.images[new] = self.images[name]
        elif self.if_not_too_late(self.face.tag, name, new):
            self.images[new] = self.remote[name]
        return True

    def share(self) -> bool:
        name = self.pick(self.images)
        if name is None:
            return False
        self.face.tag(name, self.dice.choice(SHARED))
        return True

    def look_at_shared(self) -> bool:
        verb = self.dice.choice([self.face.inspect, self.face.remove])
        self.if_not_too_late(verb, self.dice.choice(SHARED))
        return True

    def prepare(self) -> bool:
        if len(self.roots) >= MOST_ROOTS:
            return self.cleanup()
        name, path = self.pick({**self.images, **self.remote}), self.new("root")
        assert name is not None
        state = RootState(
            contents=dict(self.images.get(name) or self.remote[name]),
            view=self.dice.random() < 0.2,
            mounted=self.dice.random() < 0.6,
        )
        try:
            self.face.prepare(name, path, mount=state.mounted, view=state.view)
        except TOO_LATE:
            if name in self.images:
                raise
            self.counts["too late"] += 1
            return True
        self.roots[path] = state
        if state.mounted:
            self.check(path)
        return True

    def check(self, path: str) -> None:
        expected = self.roots[path].contents
        try:
            found = {file: Path(path, file).read_text() for file in expected}
        except OSError as exc:
            raise AssertionError(f"{path} {self.roots[path]}: {_mounted_at(path)}") from exc
        assert found == expected, (path, found, expected)

    def mount(self) -> bool:
        path = self.pick(self.roots)
        if path is None:
            return False
        self.face.mount(path)
        self.roots[path].mounted = True
        self.check(path)
        return True

    def unmount(self) -> bool:
        path = self.pick(self.roots)
        if path is None:
            return False
        self.patiently(self.face.unmount, path)
        self.roots[path].mounted = False
        assert not Path(path, "base").exists()
        return True

    def write(self) -> bool:
        path = self.pick({path: root for path, root in self.roots.items() if root.mounted and not root.view})
        if path is None:
            return False
        file = f"{self.name}-{self.dice.randrange(4)}"
        text = f"{path} {self.dice.random()}"
        Path(path, file).write_text(text)
        self.roots[path].contents[file] = text
        return True

    def commit(self) -> bool:
        path = self.pick({path: root for path, root in self.roots.items() if not root.view})
        if path is None:
            return False
        name = self.new("image")
        self.face.commit(path, name)
        self.images[name] = dict(self.roots[path].contents)
        return True

    def cleanup(self) -> bool:
        path = self.pick(self.roots)
        if path is None:
            return False
        self.patiently(self.face.cleanup, path)
        del self.roots[path]
        assert not Path(path, "base").exists()
        return True

    def remove(self) -> bool:
        name = self.pick(self.images)
        if name is None:
            return False
        self.face.remove(name)
        del self.images[name]
        return True

    def remove_remote(self) -> bool:
        self.if_not_too_late(self.face.remove, self.dice.choice(sorted(self.remote)))
        return True

    def collect(self) -> bool:
        self.face.collect()
        return True

    def list(self) -> bool:
        assert set(self.images) <= self.face.images()
        assert set(self.roots) <= self.face.prepared()
        return True

    def inspect(self) -> bool:
        name = self.pick(self.images)
        if name is None:
            return False
        self.face.inspect(name)
        return True


def _mounted_at(path: str) -> list[str]:
    """What is there, for those who look into a failure."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    found = [line for line in lines if path in line.split()]
    for line in found:
        for option in line.split(" ")[-1].split(","):
            if option.startswith(("lowerdir", "upperdir")):
                place = option.partition("=")[2]
                found.append(f"{place}: {os.listdir(place) if os.path.isdir(place) else 'gone'}")
    return [*found, f"{path}: {os.listdir(path) if os.path.isdir(path) else 'gone'}"]


NOT_OPERATIONS = ("too late", "in use")  # counts of what came of some


def main(task: dict[str, Any]) -> None:
    settings = orlop.Settings(insecure_registries=(task["registry"],))
    options = ["--root", task["root"], "--run", task["run"], "--insecure-registry", task["registry"]]
    store: orlop.Store | None = None
    if task["face"] == "command":
        face: Face = ByCommand(options)
    else:
        if task["face"] == "daemon":
            store = orlop.connect(task["address"])
        else:
            store = orlop.open(task["root"], task["run"], settings=settings)
        face = ByStore(store)
    actor = Actor(
        task["name"],
        face,
        random.Random(task["seed"]),
        Path(task["work"]),
        task["remote"],
        task["layouts"],
    )
    actor.run(task["operations"])
    if store is not None:
        store.close()
    state = {
        "images": actor.images,
        "roots": {path: root.contents for path, root in actor.roots.items()},
        "counts": actor.counts,
    }
    Path(task["result"]).write_text(json.dumps(state))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
