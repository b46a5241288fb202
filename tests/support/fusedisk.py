"""A disk that remembers in which order it was written: one file on FUSE, for a loop device to stand on.

    with recorded(base, mountpoint, log) as disk:   # in a mount namespace of one's own, with one thread
        ... attach disk.file to a loop device, mount, work ...
        disk.mark({"verb": "import"})               # stands in the log between the writes
        ... unmount ...
    recording = Recording.load(base, log)

A server forked from the caller answers the kernel (raw /dev/fuse, include/uapi/linux/fuse.h) and keeps the
whole disk and the log in memory that it has before it starts: it touches no file system while it serves.
It is killed at the end whatever happened, and dies with its parent: then the kernel answers all that is
under way with an error, so nothing waits for ever on a disk that nobody serves.  Should the server itself
get stuck, a watchdog has the kernel break the connection when the time is over.  Neither is in a mount
namespace with the disk's file system.

What the disk promises is what the log says: a write is on the disk for sure once a flush came after it.
Every write is answered before the next request is read, so what a flush covers stands before it in the log.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

WRITE, FLUSH, MARK = 0, 1, 2
LOG_SIZE = 96 << 20  # bytes of writes that are remembered; more are refused with ENOSPC

_RECORD = struct.Struct("<BxxxIQ")  # kind, length of what follows, offset on the disk
_MAX_WRITE = 1 << 20
_IN = struct.Struct("<IIQQIIIHH")  # fuse_in_header
_OUT = struct.Struct("<IiQ")  # fuse_out_header
_IO = struct.Struct("<QQIIQII")  # fuse_read_in, fuse_write_in
_ATTR = struct.Struct("<QII" + "QQQQQQ" + "IIIIIIIIII")  # fuse_attr_out
_DIRECT_IO = 1  # FOPEN_DIRECT_IO: no page cache, every read and write comes here
_PR_SET_PDEATHSIG, _PR_SET_IO_FLUSHER = 1, 57
_TIMEOUT = 30.0

_libc = ctypes.CDLL(None, use_errno=True)


def private_mounts() -> None:
    """Give this process a mount namespace of its own, which tells nobody and goes with its last process.

    A slave, not private: what other tests unmount meanwhile must not live on here, in use.
    """
    _checked(_libc.unshare(0x00020000), "unshare")
    _checked(_libc.mount(b"none", b"/", None, 1 << 19 | 0x4000, None), "make mounts slaves")


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def _checked(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


# ------------------------------------------------------------------ recording


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A disk that is being recorded."""

    file: Path
    control: socket.socket

    def mark(self, note: Any) -> None:
        """Put a note into the log, after all that was answered so far."""
        self._ask(json.dumps(note).encode())

    def fail(self) -> None:
        """From now on every write and every flush is an I/O error; reads go on."""
        self._ask(b"fail")

    def _ask(self, line: bytes) -> None:
        self.control.sendall(line + b"\n")
        if self.control.recv(1) != b".":
            raise RuntimeError("the disk's server is gone")


@contextlib.contextmanager
def recorded(base: Path, mountpoint: Path, log: Path, *, seconds: float) -> Iterator[Disk]:
    """A disk with the bytes of ``base``, at the file ``mountpoint``; ``log`` is written at the end.

    Nothing may be mounted from it any more then.  After ``seconds`` all of it fails.  Raises OSError where
    the kernel has no FUSE.
    """
    ours, theirs = socket.socketpair()
    ours.settimeout(_TIMEOUT)
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fuse},rootmode=100000,user_id=0,group_id=0".encode()
    mountpoint.touch()
    server = watchdog = 0
    try:
        _checked(_libc.mount(b"disk", os.fsencode(mountpoint), b"fuse", 0, options), "mount fuse")
        server = os.fork()
        if not server:
            _serve(fuse, theirs, ours, base, log)
        os.close(fuse)
        theirs.close()
        if ours.recv(1) != b".":
            raise RuntimeError("the disk's server did not start")
        watchdog = _watch(mountpoint, ours, seconds)
        yield Disk(file=mountpoint, control=ours)
        _checked(_libc.umount2(os.fsencode(mountpoint), 0), "unmount fuse")
        ours.sendall(b"end\n")
        if ours.recv(1) != b".":
            raise RuntimeError("the disk's server could not write its log")
    finally:
        for process in filter(None, (server, watchdog)):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        _libc.umount2(os.fsencode(mountpoint), 2)  # MNT_DETACH
        ours.close()


def _watch(mountpoint: Path, control: socket.socket, seconds: float) -> int:
    """Fork a process that breaks the connection when the time is over, or its parent is about to end.

    It outlives a kill of the parent's group, so whoever waits for the disk then gets an error.  0 where the
    kernel does not let us.
    """
    control_files = Path("/sys/fs/fuse/connections")
    _libc.mount(b"none", os.fsencode(control_files), b"fusectl", 0, None)  # or it is mounted there already
    try:
        number = os.minor(mountpoint.stat().st_dev)
        abort = os.open(control_files / str(number) / "abort", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    ready, say = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    watchdog = os.fork()
    if watchdog:
        os.close(abort)
        os.close(say)
        os.read(ready, 1)  # in a namespace of its own before the disk's file system is in ours
        os.close(ready)
        return watchdog
    try:
        os.setsid()
        private_mounts()
        control.close()
        os.write(say, b".")
        end = time.monotonic() + seconds
        while time.monotonic() < end and not _is_ending(parent):
            time.sleep(0.2)
        os.write(abort, b"1")
    finally:
        os._exit(0)


def _is_ending(parent: int) -> bool:
    """Whether our parent is dead or dying; one that waits for the disk then has not left us yet."""
    if os.getppid() != parent:
        return True
    fields = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()
    return bool(int(fields[6]) & 0x4)  # PF_EXITING of its flags (proc_pid_stat(5), include/linux/sched.h)


def _serve(fuse: int, control: socket.socket, other: socket.socket, base: Path, log: Path) -> NoReturn:
    """The server's whole life."""
    code = 1
    try:
        die_with_parent()
        # Were it the last in a namespace that has the disk's file system, its end would unmount that, which
        # asks this server, which has ended: for ever, and sync(2) of the whole machine with it.
        private_mounts()
        other.close()
        _libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)  # refused without CAP_SYS_RESOURCE: only a precaution
        _Server(fuse, control, base, log).run()
        code = 0
    except BaseException as exc:  # noqa: BLE001 - a forked child may not return to its parent's code
        os.write(2, f"fusedisk: {exc!r}\n".encode())
    finally:
        os._exit(code)


class _Server:
    def __init__(self, fuse: int, control: socket.socket, base: Path, log: Path) -> None:
        data = base.read_bytes()
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        self._disk = mmap.mmap(-1, len(data), flags=flags)
        self._disk[:] = data
        self._log = mmap.mmap(-1, LOG_SIZE, flags=flags)
        self._end = 0
        self._fuse, self._control, self._out = fuse, control, log
        self._request = mmap.mmap(-1, _MAX_WRITE + 8192, flags=flags)
        self._commands = b""
        self._broken = False

    def run(self) -> None:
        os.set_blocking(self._fuse, False)
        self._control.sendall(b".")
        poll = select.poll()
        poll.register(self._fuse, select.POLLIN)
        poll.register(self._control, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._fuse in ready and not self._answer():
                poll.unregister(self._fuse)  # unmounted
            if self._control.fileno() in ready:
                data = self._control.recv(65536)
                if not data:
                    return
                self._commands += data
                while b"\n" in self._commands:
                    line, _, self._commands = self._commands.partition(b"\n")
                    if line == b"end":
                        self._write_log()
                        self._control.sendall(b".")
                        return
                    if line == b"fail":
                        self._broken = True
                    else:
                        self._note(MARK, 0, line)
                    self._control.sendall(b".")

    def _write_log(self) -> None:
        with self._out.open("wb") as file:
            file.write(memoryview(self._log)[: self._end])

    def _note(self, kind: int, offset: int, data: bytes | memoryview) -> bool:
        end = self._end + _RECORD.size + len(data)
        if end > LOG_SIZE:
            return False
        _RECORD.pack_into(self._log, self._end, kind, len(data), offset)
        self._log[self._end + _RECORD.size : end] = data
        self._end = end
        return True

    def _answer(self) -> bool:
        """Read one request and answer it; False once the disk is unmounted."""
        try:
            length = os.readv(self._fuse, [self._request])
        except OSError as exc:
            if exc.errno in {errno.EAGAIN, errno.EINTR, errno.ENOENT}:
                return True
            if exc.errno == errno.ENODEV:
                return False
            raise
        request = memoryview(self._request)[:length]
        _, opcode, unique, *_ = _IN.unpack_from(request)
        body = request[_IN.size :]
        if opcode in {2, 36, 42}:  # FORGET, INTERRUPT, BATCH_FORGET: no answer
            return True
        try:
            answer = self._do(opcode, body)
            error = 0
        except OSError as exc:
            answer, error = b"", -(exc.errno or errno.EIO)
        with contextlib.suppress(FileNotFoundError):  # the one who asked is gone
            os.writev(self._fuse, [_OUT.pack(_OUT.size + len(answer), error, unique), answer])
        return True

    def _do(self, opcode: int, body: memoryview) -> bytes | memoryview:
        if opcode == 26:  # INIT
            wanted = 1 | 1 << 5 | 1 << 22  # ASYNC_READ, BIG_WRITES, MAX_PAGES
            return struct.pack("<IIIIHHIIHHI28x", 7, 31, 1 << 20, wanted, 64, 48, _MAX_WRITE, 1, 256, 0, 0)
        if opcode in {3, 4}:  # GETATTR, SETATTR (of times; the size stays)
            size = len(self._disk)
            return _ATTR.pack(
                3600, 0, 0, 1, size, size // 512, 0, 0, 0, 0, 0, 0, 0o100600, 1, 0, 0, 0, 4096, 0
            )
        if opcode == 14:  # OPEN
            return struct.pack("<QII", 0, _DIRECT_IO, 0)
        if opcode == 15:  # READ
            _, offset, size, *_ = _IO.unpack_from(body)
            return memoryview(self._disk)[offset : offset + size]
        if self._broken and opcode in {16, 20}:
            raise OSError(errno.EIO, "")
        if opcode == 16:  # WRITE
            return self._write(body)
        if opcode == 20:  # FSYNC
            if not self._note(FLUSH, 0, b""):
                raise OSError(errno.ENOSPC, "")
            return b""
        if opcode == 17:  # STATFS
            return struct.pack("<QQQQQIIII24x", len(self._disk) // 4096, 0, 0, 1, 0, 4096, 255, 4096, 0)
        if opcode in {18, 25, 38}:  # RELEASE, FLUSH, DESTROY
            return b""
        raise OSError(errno.ENOSYS, "")

    def _write(self, body: memoryview) -> bytes:
        _, offset, size, *_ = _IO.unpack_from(body)
        data = body[_IO.size : _IO.size + size]
        if offset + size > len(self._disk) or not self._note(WRITE, offset, data):
            raise OSError(errno.ENOSPC, "")
        self._disk[offset : offset + size] = data
        return struct.pack("<II", size, 0)


# ------------------------------------------------------------------ what was recorded


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line of the log: a write, a flush, or a note."""

    kind: int
    offset: int
    data: memoryview
    note: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A base and all that was done to it, in order."""

    base: Path
    records: tuple[Record, ...]

    @classmethod
    def load(cls, base: Path, log: Path) -> Recording:
        """Read a log."""
        data = memoryview(log.read_bytes())
        records, at = [], 0
        while at < len(data):
            kind, length, offset = _RECORD.unpack_from(data, at)
            at += _RECORD.size
            body = data[at : at + length]
            at += length
            note = json.loads(bytes(body)) if kind == MARK else None
            records.append(Record(kind=kind, offset=offset, data=body, note=note))
        return cls(base=base, records=tuple(records))
