"""Certificates for servers of tests, made by openssl: each its own authority, good for a day on this machine."""

from __future__ import annotations

import os
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

NAMES = ("IP:127.0.0.1", "IP:::1", "DNS:localhost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Two PEM files: a self-signed certificate (its own CA file, too) and its key, on the curve P-256."""

    cert: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """What a server in Python wraps its sockets with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        return context


def make_certificate(folder: Path, *, names: tuple[str, ...] = NAMES) -> Certificate:
    """A certificate for some names (``IP:`` and ``DNS:``), in a folder that is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Certificate(cert=folder / "cert.pem", key=folder / "key.pem")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-days", "1", "-subj", "/CN=orlop tests", "-addext", f"subjectAltName={','.join(names)}"]
    command += ["-keyout", os.fspath(made.key), "-out", os.fspath(made.cert)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return made
