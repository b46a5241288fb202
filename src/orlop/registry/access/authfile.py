"""Changing a file of credentials that other programs read and write too.

Invariants: the file is always the old one or the new one, whole, and nobody's but its owner's (0600); what is
not changed stays, in its order, also keys that nobody here knows; two of us do not lose each other's changes
(others take no lock, so the time between reading and renaming is kept short); a symbolic link stays one, and
what it points at is changed; a file that cannot be read is not written over.
"""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from orlop.errors import FailedPrecondition, from_oserror
from orlop.linux.files import write_durably
from orlop.linux.flock import FileLock
from orlop.observe import Call
from orlop.registry.access.credentials import Credential, of_entry, read_document

__all__ = ["can_be_written", "changing", "entry_of", "keep_token", "section"]

Document = dict[str, Any]


@contextmanager
def changing(path: str, *, limit: int, call: Call) -> Iterator[Document]:
    """The document of a file, to be changed within the block, and written at its end if it was.

    A file and folders that are not there are made.  Raises `InvalidArgument` for a file that is not one of
    credentials, `FailedPrecondition` for what is no file, and what the file system says.
    """
    attempted = f"change credentials {path}"
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    try:
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
        except FileExistsError as exc:
            raise FailedPrecondition(attempted, f"{exc.filename} is not a folder") from exc
        lock = FileLock(os.path.join(folder, f".{name}.orlop-lock"), unlink_on_release=True)
        lock.acquire(call=call, attempted=attempted)
        try:
            about = _regular(target, attempted)
            document = read_document(target, limit) if about is not None else {}
            before = json.dumps(document)
            yield document
            if json.dumps(document) != before:
                _write(target, document, about)
        finally:
            lock.release()
    except OSError as exc:
        raise from_oserror(attempted, exc) from exc


def section(document: Document, name: str, attempted: str) -> MutableMapping[str, Any]:
    """A table of a document, made where there is none."""
    found = document.setdefault(name, {})
    if found is None:
        found = document[name] = {}
    if not isinstance(found, dict):
        raise FailedPrecondition(attempted, f"{name} is no table there")
    return found


def entry_of(credential: Credential) -> dict[str, str]:
    """The entry of ``auths`` that keeps a credential, as Docker and podman write it."""
    text = f"{credential.username}:{'' if credential.identity_token else credential.password}"
    entry = {"auth": base64.b64encode(text.encode()).decode()}
    if credential.identity_token:
        entry["identitytoken"] = credential.identity_token
    return entry


def keep_token(credential: Credential, token: str, *, limit: int, call: Call) -> None:
    """Put a new identity token where ``credential`` was found, unless another is there by now.

    Raises as `changing` does.
    """
    if credential.place is None:
        return
    path, key = credential.place
    with changing(path, limit=limit, call=call) as document:
        auths = section(document, "auths", f"change credentials {path}")
        found = of_entry(auths.get(key))
        if found is not None and found.identity_token == credential.identity_token:
            auths[key]["identitytoken"] = token


def can_be_written(path: str) -> bool:
    """Whether this process could change a file, or make it; no more than a guess, for choosing among some."""
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    while not os.path.isdir(folder) and folder != "/":
        if not os.path.lexists(folder):
            folder = os.path.dirname(folder)
        elif not os.path.isdir(folder):  # else somebody has made it since
            return False
    return os.access(folder, os.W_OK | os.X_OK)


def _regular(target: str, attempted: str) -> os.stat_result | None:
    try:
        about = os.lstat(target)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(about.st_mode):
        raise FailedPrecondition(attempted, "it is not a regular file")
    return about


def _write(target: str, document: Document, before: os.stat_result | None) -> None:
    data = json.dumps(document, indent="\t", ensure_ascii=False).encode(errors="surrogatepass") + b"\n"
    write_durably(target, data, mode=0o600)
    if before is not None and os.geteuid() == 0 and (before.st_uid, before.st_gid) != (0, 0):
        os.chown(target, before.st_uid, before.st_gid, follow_symlinks=False)  # under sudo it stays theirs
