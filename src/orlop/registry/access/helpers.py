"""Credential helper programs: ``docker-credential-NAME get``, ``store``, ``erase`` and ``list``.

What a program is told goes to its standard input, never to its arguments; what it answers comes back as JSON,
bounded in size and time.  It runs in ``/`` and in a session of its own, with the caller's environment but for
what changes a program into another, and is found by absolute folders only, as are the programs that it runs:
never inside an image's root (HOSTILE.md 31).  A secret it prints is never repeated in an error.
Source: docker-credential-helpers, "Development".
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import IO

import msgspec

from orlop.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable
from orlop.linux.programs import find_helper
from orlop.observe import Call
from orlop.registry.access.credentials import Credential, Helper
from orlop.registry.faults import scrub

__all__ = ["MAX_OUTPUT", "TIMEOUT", "ask_helper", "erase_helper", "list_helper", "store_helper"]

TIMEOUT = 60.0  # seconds; a helper may ask the user to unlock a key ring
MAX_OUTPUT = 1 << 20  # bytes; a token has a few thousand, a list some more
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NO_CREDENTIALS = "credentials not found"  # the start of the protocol's fixed message
_TOKEN_USER = "<token>"  # noqa: S105 - the protocol's user name for an identity token
# What makes a program run other code, and what is ours: it is kept from helpers.
_KEPT_BACK = (  # compiled when a helper is run
    r"LD_.*|PYTHON.*|PERL5.*|RUBY.*|NODE_OPTIONS|GCONV_PATH|BASH_ENV|BASH_FUNC_.*|ENV|IFS|SHELLOPTS|PS4"
    r"|_?ORLOP_.*|DOCKER_AUTH_CONFIG|PWD|OLDPWD"
)


class _Answer(msgspec.Struct, rename="pascal"):
    username: str = ""
    secret: str = ""


def ask_helper(helper: Helper, path: str, call: Call) -> Credential | None:
    """Ask a helper found in ``path`` (as in PATH) for a server's credential; None if it has none.

    Raises `NotFound` where there is no such program, `InvalidArgument` for a name that is not one,
    `Unavailable` where it fails or is not done within `TIMEOUT`.
    """
    attempted = f"ask credential helper {helper.name!r} about {helper.server}"
    output = _run(helper.name, "get", helper.server.encode(), path, attempted, call)
    if output is None:
        return None
    try:
        answer = msgspec.json.decode(output, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Unavailable(attempted, "its answer is not the JSON it should be") from None
    if answer.username == _TOKEN_USER:
        return Credential(identity_token=answer.secret)
    return Credential(username=answer.username, password=answer.secret)


def store_helper(helper: Helper, credential: Credential, path: str, call: Call) -> None:
    """Have a helper keep a server's credential.  Raises as `ask_helper` does."""
    attempted = f"store credentials for {helper.server} with helper {helper.name!r}"
    token = credential.identity_token
    told = {
        "ServerURL": helper.server,
        "Username": _TOKEN_USER if token else credential.username,
        "Secret": token or credential.password,
    }
    _run(helper.name, "store", msgspec.json.encode(told), path, attempted, call)


def erase_helper(helper: Helper, path: str, call: Call) -> bool:
    """Have a helper forget a server's credential; False if it had none.  Raises as `ask_helper` does."""
    attempted = f"erase credentials for {helper.server} with helper {helper.name!r}"
    return _run(helper.name, "erase", helper.server.encode(), path, attempted, call) is not None


def list_helper(name: str, path: str, call: Call) -> Mapping[str, str]:
    """The servers that a helper keeps credentials for, and their users.  Raises as `ask_helper` does."""
    attempted = f"list what credential helper {name!r} keeps"
    output = _run(name, "list", b"", path, attempted, call)
    try:
        return msgspec.json.decode(output or b"{}", type=dict[str, str])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Unavailable(attempted, "its answer is not the JSON it should be") from None


def _run(name: str, action: str, told: bytes, path: str, attempted: str, call: Call) -> bytes | None:
    """Run a helper to its end; None where it says that it has no such credential."""
    if not _NAME.fullmatch(name):
        raise InvalidArgument(attempted, "not a helper's name")
    program = find_helper(f"docker-credential-{name}", path)
    if program is None:
        raise NotFound(attempted, f"docker-credential-{name} is not in {path}")
    status, output = _spawn([program, action], told, _environment(path), attempted, call)
    if status == 0:
        return output
    said = output.decode(errors="replace").strip()
    if said.startswith(_NO_CREDENTIALS):
        return None
    raise Unavailable(attempted, f"it failed with status {status}" + _tell(said, told))


def _environment(path: str) -> dict[str, str]:
    """The caller's own, passed on and not read: key rings are found by it."""
    passed = {name: value for name, value in os.environ.items() if not re.fullmatch(_KEPT_BACK, name)}
    passed["PATH"] = os.pathsep.join(filter(os.path.isabs, path.split(os.pathsep))) or os.defpath
    return passed


def _spawn(
    argv: list[str], told: bytes, environment: Mapping[str, str], attempted: str, call: Call
) -> tuple[int, bytes]:
    """Run a program; ended, with all that it started, when the call is cancelled or it takes too long."""
    call.check(attempted)
    told_fd = os.memfd_create("told", os.MFD_CLOEXEC)  # a program that reads none of it holds up nobody
    try:
        os.write(told_fd, told + b"\n")
        os.lseek(told_fd, 0, os.SEEK_SET)
        try:
            process = subprocess.Popen(
                argv,
                stdin=told_fd,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        except OSError as exc:
            raise Unavailable(attempted, f"it cannot be started: {exc.strerror}") from exc
    finally:
        os.close(told_fd)
    assert process.stdout is not None
    with process.stdout:
        try:
            output = _collect(process, process.stdout, attempted, call)
        except BaseException:
            if process.returncode is None:  # else the number may be another's by now
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            raise
    return process.returncode, output


def _collect(process: subprocess.Popen[bytes], pipe: IO[bytes], attempted: str, call: Call) -> bytes:
    """What a program writes until it ends; others that it left behind are not waited for."""
    poller = select.poll()
    poller.register(pipe, select.POLLIN)
    output, end, reading = bytearray(), time.monotonic() + TIMEOUT, True
    while True:
        call.check(attempted)
        if time.monotonic() > end:
            raise Unavailable(attempted, f"it has not answered within {TIMEOUT:.0f} s")
        ended = process.poll() is not None  # looked at before the pipe: what it wrote is there by then
        if reading and poller.poll(0 if ended else 50):
            piece = os.read(pipe.fileno(), 65_536)
            output += piece
            reading = bool(piece)
            if len(output) > MAX_OUTPUT:
                raise ResourceExhausted(attempted, f"it answers more than {MAX_OUTPUT} bytes")
        elif ended:
            return bytes(output)
        elif not reading:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)


def _tell(said: str, told: bytes) -> str:
    """A failing helper's words, unless they look like the answer, or like what it was told."""
    if not said or "{" in said:
        return ""
    try:
        secret = msgspec.json.decode(told, type=_Answer).secret
    except msgspec.MsgspecError:
        secret = ""
    return "" if secret and secret in said else f": {scrub(said)}"
