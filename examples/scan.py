"""An image scanner that never mounts: packages, setuid files and where each came from, as JSON.

    python examples/scan.py debian:stable-slim
    python examples/scan.py --pull never localhost/best:1 | jq '.packages | length'

Everything is read from the layers' tars through their indexes, so it needs no root, no namespace and no
driver, and nothing of the image is executed or interpreted but the text of its package databases.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

import orlop

STORE = str(Path.home() / ".cache/orlop-examples")
DPKG = "/var/lib/dpkg/status"
DPKG_PARTS = "/var/lib/dpkg/status.d"  # of distroless images: a file for each package
APK = "/lib/apk/db/installed"
LARGEST = 64 << 20  # bytes of a database that are read; a stranger wrote it

Package = dict[str, str]


def read(store: orlop.Store, image: str, path: str | bytes) -> str:
    """A file's text, or nothing where there is none."""
    data = bytearray()
    try:
        with closing(store.cat(image, path)) as chunks:
            for chunk in chunks:
                data += chunk
                if len(data) > LARGEST:
                    raise SystemExit(f"{os.fsdecode(path)} is larger than {LARGEST} bytes")
    except orlop.NotFound:
        return ""
    return data.decode("utf-8", "replace")


def dpkg(text: str) -> Iterator[Package]:
    """The packages of a dpkg status file (deb-control(5))."""
    for stanza in text.split("\n\n"):
        fields = HeaderParser().parsestr(stanza.strip())
        if fields["Package"] and "deinstall" not in (fields["Status"] or ""):
            yield {"type": "deb", "name": fields["Package"], "version": fields["Version"] or ""}


def apk(text: str) -> Iterator[Package]:
    """The packages of an apk database: a letter, a colon and a value to a line."""
    for stanza in text.split("\n\n"):
        fields = dict(line.split(":", 1) for line in stanza.splitlines() if line[1:2] == ":")
        if "P" in fields:
            yield {"type": "apk", "name": fields["P"], "version": fields.get("V", "")}


def python(store: orlop.Store, image: str) -> Iterator[Package]:
    """The Python distributions: their METADATA, wherever it lies."""
    with closing(store.find("/**/*.dist-info/METADATA", image)) as hits:
        for hit in hits:
            fields = HeaderParser().parsestr(read(store, image, b"/" + hit.file.path))
            if fields["Name"]:
                yield {"type": "python", "name": fields["Name"], "version": fields["Version"] or ""}


def packages(store: orlop.Store, image: str) -> Iterator[Package]:
    """All of them."""
    yield from dpkg(read(store, image, DPKG))
    try:
        with closing(store.ls(image, DPKG_PARTS)) as parts:
            names = [b"/" + part.path for part in parts if part.kind == "file"]
    except orlop.NotFound:
        names = []
    for name in names:
        yield from dpkg(read(store, image, name))
    yield from apk(read(store, image, APK))
    yield from python(store, image)


def privileged(files: Iterable[orlop.FileInfo]) -> Iterator[dict[str, object]]:
    """Programs that give rights away: setuid, setgid, capabilities."""
    for file in files:
        names = [name for name, _ in file.xattrs]
        set_id = file.mode & (stat.S_ISUID | stat.S_ISGID)
        if file.kind == "file" and (set_id or b"security.capability" in names):
            yield {
                "path": "/" + os.fsdecode(file.path),
                "mode": stat.filemode(file.mode),
                "owner": f"{file.uid}:{file.gid}",
                "capabilities": b"security.capability" in names,
            }


def scan(store: orlop.Store, image: str) -> dict[str, Any]:
    """What is to be said of an image."""
    details = store.inspect(image)
    with closing(store.ls(image, recursive=True)) as files:
        setuid = list(privileged(files))
    for one in setuid:  # the last layer that wrote it
        steps = store.blame(image, str(one["path"])).steps
        one["layer"] = steps[-1].line.layer if steps else None
    found = sorted(packages(store, image), key=lambda package: (package["type"], package["name"]))
    return {
        "image": details.info.name,
        "digest": details.info.digest or details.info.id,
        "packages": found,
        "privileged": setuid,
    }


def main() -> None:
    """Read the command line, and go."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("image")
    parser.add_argument("--pull", choices=["missing", "never", "always"], default="missing")
    parser.add_argument("--store", default=STORE, help="the store's folder (default: %(default)s)")
    parser.add_argument("--insecure-registry", action="append", default=[], metavar="HOST")
    args = parser.parse_args()
    settings = orlop.Settings(insecure_registries=tuple(args.insecure_registry))
    try:
        with orlop.open(args.store, f"{args.store}.run", settings=settings) as store:
            known = args.pull == "never" or (args.pull == "missing" and held(store, args.image))
            name = args.image if known else store.pull(args.image).name
            json.dump(scan(store, name), sys.stdout, indent=2)
            print()
    except orlop.Error as exc:
        raise SystemExit(f"scan: {exc}") from exc


def held(store: orlop.Store, image: str) -> bool:
    """Whether the store has it."""
    try:
        store.inspect(image)
    except orlop.NotFound:
        return False
    return True


if __name__ == "__main__":
    main()
