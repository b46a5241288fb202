"""Mutual TLS for a client: its certificate, and the authority that the daemon's is signed by."""

from __future__ import annotations

import grpc

from orlop.errors import FailedPrecondition, InvalidArgument, from_oserror
from orlop.values import dataclass

__all__ = ["ClientTls", "read_pem"]

_MAX_FILE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """Paths of PEM files: the client's certificate with its chain, its key, the daemon's authority."""

    cert: str
    key: str
    ca: str

    def credentials(self, attempted: str) -> grpc.ChannelCredentials:
        """What gRPC connects with.  Raises the errno's class for a file that cannot be read."""
        cert, key, authority = (read_pem(path, attempted) for path in (self.cert, self.key, self.ca))
        for path, data in ((self.cert, cert), (self.key, key), (self.ca, authority)):
            if b"-----BEGIN" not in data:
                raise FailedPrecondition(attempted, f"{path} is no PEM file")
        return grpc.ssl_channel_credentials(authority, key, cert)

    @classmethod
    def of(cls, cert: str | None, key: str | None, ca: str | None, attempted: str) -> ClientTls:
        """All three, or `InvalidArgument`."""
        given = {"--tls-cert": cert, "--tls-key": key, "--tls-ca": ca}
        missing = [name for name, value in given.items() if not value]
        if missing or not (cert and key and ca):
            raise InvalidArgument(
                attempted,
                f"over TCP a daemon is asked with mutual TLS only, and {', '.join(missing)} is missing",
                hint="give --tls-cert, --tls-key and --tls-ca before the verb, or a unix socket",
            )
        return cls(cert=cert, key=key, ca=ca)


def read_pem(path: str, attempted: str) -> bytes:
    """A PEM file.  Raises the errno's class, `FailedPrecondition` for one that is far too large."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as exc:
        raise from_oserror(attempted, exc) from exc
    if len(data) > _MAX_FILE:
        raise FailedPrecondition(attempted, f"{path} has more than {_MAX_FILE} bytes, and is no PEM file")
    return data
