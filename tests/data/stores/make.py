"""Make a small store with the code of an older commit, for the tests of migrations: as root, in a repository.

    python tests/data/stores/make.py schema-1 <commit>

Writes ``<name>.tar.xz`` and ``<name>.json``, what is in it, beside this file.  The store is made on a disk of
its own under /srv of a private mount namespace, so nothing of this machine is in it but the kernel's doing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]


def main(name: str, commit: str) -> None:
    commit = _run("git", "-C", REPOSITORY, "rev-parse", "--short=12", commit).strip()
    with tempfile.TemporaryDirectory() as scratch:
        code = Path(scratch, "code")
        code.mkdir()
        archive = subprocess.run(
            ["git", "-C", REPOSITORY, "archive", commit, "src", "tests/support"],
            check=True,
            capture_output=True,
        ).stdout
        subprocess.run(["tar", "-x", "-C", code], input=archive, check=True)
        script = Path(scratch, "inside.sh")
        script.write_text(_INSIDE)
        inside = Path(scratch, "inside.py")
        inside.write_text(_MAKE)
        out = Path(scratch, "out")
        out.mkdir()
        environment = {
            **os.environ,
            "PYTHONPATH": f"{code}/src:{code}/tests",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHON": sys.executable,
        }
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-e", script, inside, out, scratch]
        subprocess.run(command, check=True, env=environment)
        described = {"commit": commit, **json.loads((out / "made.json").read_text())}
        (HERE / f"{name}.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")
        (HERE / f"{name}.tar.xz").write_bytes((out / "store.tar.xz").read_bytes())


def _run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


_INSIDE = """\
inside=$1 out=$2 scratch=$3
truncate -s 512M "$scratch/disk.img"
mkfs.ext4 -q -F "$scratch/disk.img"
mount -o loop "$scratch/disk.img" /srv
mkdir /srv/roots
"$PYTHON" "$inside" "$out/made.json"
for place in $(findmnt -rno TARGET | grep ^/srv/ | tac); do umount "$place"; done
rm -f /srv/orlop/locks/*
tar --sort=name --numeric-owner --xattrs --xattrs-include='*' --format=posix \\
    --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime \\
    -C /srv -c orlop | xz -9e > "$out/store.tar.xz"
umount /srv
"""

_MAKE = """\
import dataclasses, json, os, shutil, sqlite3, sys
from pathlib import Path
import orlop
from support import images
from support.layers import Layer

ROOT, RUN, ROOTS = Path("/srv/orlop"), Path("/srv/run"), Path("/srv/roots")
one = Layer().folder("etc").file("etc/motd", b"one\\n").file("bin/tool", b"x" * 5000, mode=0o755)
two = Layer().file("etc/two", b"two\\n", uid=1000, gid=1000).whiteout("etc/motd").symlink("latest", "etc/two")
three = Layer().folder("var").file("var/data", bytes(range(256)) * 20).hardlink("var/again", "var/data")
image = images.make_image([layer.tar() for layer in (one, two, three)], platform="linux/amd64",
                          config={"config": {"Cmd": ["/bin/tool"], "Env": ["A=1"]}})
layout = images.write_layout(Path("/srv/layout"), {"latest": image})
commit = orlop.CommitOptions(created=0)
with orlop.open(ROOT, RUN) as store:
    name = store.load(layout, name="localhost/base").pop().name
    store.tag(name, "registry.example.com/team/base:1")
    made = store.prepare(name, ROOTS / "made", mount=True)
    (ROOTS / "made/etc/new").write_text("committed")
    (ROOTS / "made/bin/tool").unlink()
    made.commit("localhost/changed", created=0)
    made.cleanup()
    active = store.prepare("localhost/changed", ROOTS / "active", mount=True, labels={"owner": "me", "é": "ü"})
    (ROOTS / "active/etc/two").write_text("changed")
    shutil.rmtree(ROOTS / "active/var")
    os.mkdir(ROOTS / "active/var")
    (ROOTS / "active/var/fresh").write_text("fresh")
    os.unlink(ROOTS / "active/latest")
    active.unmount()
    store.prepare(name, ROOTS / "view", view=True, labels={"owner": "you"})
    if "driver" in store.prepare.__kwdefaults__:
        extra = (orlop.ExtraMount(type="tmpfs", target="/scratch", options=("size=64k",)),)
        stacked = store.prepare(name, ROOTS / "stacked", mount=True, driver="overlay", extra=extra)
        (ROOTS / "stacked/stacked").write_text("stacked")
        stacked.unmount()
    found = {"images": [dataclasses.asdict(info) for info in store.images()], "roots": [], "commits": {}}
    for info in store.prepared():
        found["roots"].append({"path": info.path, "image": info.image, "image_id": info.image_id,
            "kind": info.kind, "driver": info.driver, "labels": dict(info.labels)})
        if info.kind == "active":  # what a commit of it is, then and ever after
            taken = store.get(info.path).commit("localhost/taken", created=0)
            found["commits"][info.path] = taken.id
            store.remove("localhost/taken")
    store.collect()
    shutil.rmtree(layout)
with sqlite3.connect(ROOT / "meta.db") as db:
    found["schema"] = db.execute("PRAGMA user_version").fetchone()[0]
Path(sys.argv[1]).write_text(json.dumps(found))
"""

if __name__ == "__main__":
    main(*sys.argv[1:])
