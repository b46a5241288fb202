"""A real nginx in front of a registry, to be slow, strict, rude or gone.

    with nginx.front(folder, registry.host) as front:
        front.turn("refuse")          # 429 with Retry-After from now on, until `turn("refuse", False)`
        front.cut()                   # every open connection breaks; it is back at once
        front.freeze(); front.thaw()  # it takes nothing and says nothing
        front.restart(limit_rate="200k")

One process without a master, which dies with us.  What it is asked is in ``front.log``, one line a request.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from support.certificates import Certificate

SWITCHES = ("refuse", "refuse-bare", "drop", "fail", "warn")
"""What can be turned on: 429 with Retry-After, 429 without, no answer at all, 503, a Warning header."""


@dataclass(slots=True, kw_only=True)
class Front:
    """A running nginx.  ``host`` is where it listens, ``host6`` the same port on ::1; ``log`` its access log."""

    folder: Path
    upstream: str
    port: int
    tls: Certificate | None
    spawner: ThreadPoolExecutor  # the thread whose end would end the process: it lives as long as the context
    options: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def host6(self) -> str:
        return f"[::1]:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / "access.log"

    def asked(self, *words: str, status: int | None = None) -> list[str]:
        """The requests so far, as `METHOD PATH STATUS SENT`, that hold all of the words and had the status."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        said = "" if status is None else f" {status} "
        return [line for line in lines if all(word in line for word in words) and said in line]

    def turn(self, switch: str, on: bool = True) -> None:
        """Turn a misbehaviour of `SWITCHES` on or off, for all requests that come from now on."""
        assert switch in SWITCHES
        path = self.folder / "on" / switch
        if on:
            path.touch()
        else:
            path.unlink(missing_ok=True)

    def restart(self, **options: str) -> None:
        """Begin anew with other options (see `front`); open connections are cut."""
        self.stop()
        self.options = options
        self.start()

    def cut(self) -> None:
        """Cut all connections.  The port is closed for a moment."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Stop it in its tracks: connections stay, the kernel takes new ones, nothing is read or said."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        config = self.folder / "nginx.conf"
        config.write_text(self._config())
        command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            _program(),
            "-p",
            os.fspath(self.folder),
            "-c",
            os.fspath(config),
        ]
        log = self.folder / "error.log"
        with log.open("ab") as out:
            self.process = self.spawner.submit(
                subprocess.Popen, command, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            ).result()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.01)
                continue
            return
        raise RuntimeError(f"nginx does not come up: {log.read_text()[-2000:]}")

    def stop(self) -> None:
        """Kill it.  Idempotent."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
            self.process = None

    def _config(self) -> str:
        folder, options = self.folder, self.options
        tls = " ssl" if self.tls else ""
        keys = f"ssl_certificate {self.tls.cert}; ssl_certificate_key {self.tls.key};" if self.tls else ""
        ipv6 = f"listen [::1]:{self.port}{tls};" if socket.has_ipv6 and _has_loopback6() else ""
        limit = options.get("limit_req", "")
        zone = f"limit_req_zone $server_name zone=all:1m rate={limit.split()[0]};" if limit else ""
        held = f"limit_req zone=all {' '.join(limit.split()[1:])}; limit_req_status 429;" if limit else ""
        rate = f"limit_rate {options['limit_rate']};" if "limit_rate" in options else ""
        body = '{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}'
        return f"""
daemon off; master_process off; worker_processes 1; user root; pid {folder}/pid;
error_log {folder}/error.log notice;
events {{ worker_connections 512; }}
http {{
  log_format asked '$request_method $request_uri $status $bytes_sent';
  access_log {folder}/access.log asked;
  client_body_temp_path {folder}/tmp/body; proxy_temp_path {folder}/tmp/proxy; fastcgi_temp_path {folder}/tmp/f;
  uwsgi_temp_path {folder}/tmp/u; scgi_temp_path {folder}/tmp/s;
  client_max_body_size 0; proxy_http_version 1.1; proxy_buffering off; proxy_request_buffering off;
  default_type application/json; keepalive_timeout 60;
  {zone}
  server {{
    listen 127.0.0.1:{self.port}{tls}; {ipv6} server_name all; {keys}
    {rate}
    error_page 429 = @slow;
    location @slow {{
      set $after "{options.get("retry_after", "1")}";
      if (-f {folder}/on/refuse-bare) {{ set $after ""; }}
      add_header Retry-After $after always;
      return 429 '{body}';
    }}
    location / {{
      {held}
      if (-f {folder}/on/drop) {{ return 444; }}
      if (-f {folder}/on/fail) {{ return 503; }}
      if (-f {folder}/on/refuse) {{ return 429; }}
      if (-f {folder}/on/refuse-bare) {{ return 429; }}
      set $warning "";
      if (-f {folder}/on/warn) {{ set $warning '299 - "this registry is going away"'; }}
      add_header Warning $warning always;
      proxy_pass http://{self.upstream};
      proxy_set_header Host $http_host; proxy_set_header X-Forwarded-Proto $scheme;
      {options.get("location", "")}
    }}
  }}
}}
"""


@contextmanager
def front(folder: Path, upstream: str, *, tls: Certificate | None = None, **options: str) -> Iterator[Front]:
    """Run nginx in front of ``upstream`` (host:port, plain http) until the context ends.

    ``options``: ``limit_rate`` (bytes a second of an answer, "200k"), ``limit_req`` ("10r/s burst=5 nodelay": 429
    above it; without ``nodelay`` up to ``burst`` requests are delayed), ``retry_after`` (the header with a 429),
    ``location`` (more lines of nginx's configuration).
    """
    for name in ("", "on", "tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max_workers=1) as spawner:
        running = Front(
            folder=folder, upstream=upstream, port=_free_port(), tls=tls, spawner=spawner, options=options
        )
        try:
            running.start()
            yield running
        finally:
            running.stop()


def _program() -> str:
    return next(
        (path for path in ("/usr/sbin/nginx", "/usr/local/sbin/nginx") if os.path.exists(path)), "nginx"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _has_loopback6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
