"""Programs in the foreground of a terminal: what it sends them, they get once."""

from __future__ import annotations

import os
import pty
import select
import sys
import time

import pytest

# Popen returns late here, as it may on a busy machine: the program runs, and we do not wait for it yet.
RUN = """
import subprocess, sys, time
from orlop.cli.foreground import run_program

def late(*args, **options):
    process = popen(*args, **options)
    time.sleep(0.3)
    return process

popen, subprocess.Popen = subprocess.Popen, late
script = "trap 'echo told' INT; echo up; sleep 0.6; sleep 0.6; echo end; exit 6"
sys.exit(run_program(["sh", "-c", script], interactive=True))
"""


@pytest.mark.timeout(90)
def test_an_interrupt_in_the_programs_first_moments_arrives_once() -> None:
    pid, master = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", RUN])
    seen, sent, deadline = b"", False, time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([master], [], [], 0.1)[0]:
            try:
                seen += os.read(master, 4096)
            except OSError:
                break  # the terminal is gone: the program has ended
        if not sent and b"up\r\n" in seen:
            os.write(master, b"\x03")
            sent = True
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(master)
    assert (code, seen.count(b"told"), seen.count(b"end")) == (6, 1, 1), seen
