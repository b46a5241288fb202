"""Credential helper programs: ``docker-credential-NAME get``.

The server's name goes to its standard input, JSON comes back.  Source: docker-credential-helpers,
"Development".  A secret it prints is never repeated in an error.
"""

from __future__ import annotations

import re
import subprocess

import msgspec

from orlop.errors import Error, InvalidArgument, NotFound, Unavailable
from orlop.linux.programs import find_helper
from orlop.observe import Call
from orlop.registry.credentials import Credential, Helper
from orlop.registry.faults import scrub

__all__ = ["TIMEOUT", "ask_helper"]

TIMEOUT = 60.0  # seconds; a helper may ask the user to unlock a key ring
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NO_CREDENTIALS = "credentials not found"  # the start of the protocol's fixed message
_TOKEN_USER = "<token>"  # noqa: S105 - the protocol's user name for an identity token


class _Answer(msgspec.Struct, rename="pascal"):
    username: str = ""
    secret: str = ""


def ask_helper(helper: Helper, path: str, call: Call) -> Credential | None:
    """Ask a helper found in ``path`` (as in PATH) for a server's credential; None if it has none.

    Raises `NotFound` where there is no such program, `InvalidArgument` for a name that is not one,
    `Unavailable` where it fails or is not done within `TIMEOUT`.
    """
    attempted = f"ask credential helper {helper.name!r} about {helper.server}"
    if not _NAME.fullmatch(helper.name):
        raise InvalidArgument(attempted, "not a helper's name")
    program = find_helper(f"docker-credential-{helper.name}", path)
    if program is None:
        raise NotFound(attempted, f"docker-credential-{helper.name} is not in {path}")
    status, output = _run(program, helper.server, attempted, call)
    if status != 0:
        said = output.decode(errors="replace").strip()
        if said.startswith(_NO_CREDENTIALS):
            return None
        raise Unavailable(attempted, f"it failed with status {status}" + _tell(said))
    try:
        answer = msgspec.json.decode(output, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Unavailable(attempted, "its answer is not the JSON it should be") from None
    if answer.username == _TOKEN_USER:
        return Credential(identity_token=answer.secret)
    return Credential(username=answer.username, password=answer.secret)


def _run(program: str, server: str, attempted: str, call: Call) -> tuple[int, bytes]:
    """Run it to its end; stopped when the call is cancelled or it takes too long."""
    try:
        process = subprocess.Popen(
            [program, "get"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError as exc:
        raise Unavailable(attempted, f"it cannot be started: {exc.strerror}") from exc
    with process:
        try:
            for _ in range(int(TIMEOUT / 0.1)):
                call.check(attempted)
                try:
                    output, _ = process.communicate(f"{server}\n".encode(), timeout=0.1)
                except subprocess.TimeoutExpired:
                    continue
                return process.returncode, output
            raise Unavailable(attempted, f"it has not answered within {TIMEOUT:.0f} s")
        except Error:
            process.kill()
            raise


def _tell(said: str) -> str:
    """A failing helper's words, unless they look like the answer with the secret in it."""
    return f": {scrub(said)}" if said and "{" not in said else ""
