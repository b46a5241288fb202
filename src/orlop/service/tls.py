"""Mutual TLS for the daemon: its own certificate, and the authority that signs its clients'.

There is no TCP without: who cannot show a certificate of that authority gets no call through.  Who may do
what with one is `orlop.service.access`.  The files are read when the daemon starts, and when it is told to
read them again: what they say then holds for connections made from then on.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence

import grpc

from orlop.client.tls import read_pem
from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.values import dataclass

__all__ = ["Certificates", "ServerTls", "names_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """Paths of PEM files: the daemon's certificate with its chain, its key, the clients' authority."""

    cert: str
    key: str
    client_ca: str

    def configuration(self, attempted: str) -> grpc.ServerCertificateConfiguration:
        """What the files hold now.

        Raises the errno's class for a file that cannot be read, `FailedPrecondition` for what is no
        certificate, or a key that is another's.
        """
        cert, key, authority = (read_pem(path, attempted) for path in (self.cert, self.key, self.client_ca))
        trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:  # gRPC would listen, and fail each handshake
            trial.load_cert_chain(self.cert, self.key, password="")
            trial.load_verify_locations(self.client_ca)
        except (ssl.SSLError, OSError, ValueError) as exc:
            raise FailedPrecondition(
                attempted,
                f"{self.cert}, {self.key} and {self.client_ca} do not serve: {exc}",
                hint="PEM files of a certificate, its own key without a password, and an authority",
            ) from exc
        return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=authority)

    @classmethod
    def of(cls, cert: str | None, key: str | None, client_ca: str | None, attempted: str) -> ServerTls:
        """All three, or `InvalidArgument`."""
        given = {"--tls-cert": cert, "--tls-key": key, "--tls-client-ca": client_ca}
        missing = [name for name, value in given.items() if not value]
        if missing or not (cert and key and client_ca):
            raise InvalidArgument(
                attempted,
                f"TCP is served with mutual TLS only, and {', '.join(missing)} is missing",
                hint="give --tls-cert, --tls-key and --tls-client-ca, or listen on a unix socket",
            )
        return cls(cert=cert, key=key, client_ca=client_ca)


class Certificates:
    """What is shown to clients and asked of them, which may be read anew.  Raises as `ServerTls` does."""

    def __init__(self, tls: ServerTls, attempted: str) -> None:
        self._tls = tls
        self._now = tls.configuration(attempted)

    def credentials(self) -> grpc.ServerCredentials:
        """What gRPC listens with; each client has to show a certificate."""
        return grpc.dynamic_ssl_server_credentials(
            self._now, lambda: self._now, require_client_authentication=True
        )

    def read(self, attempted: str) -> Callable[[], None]:
        """Read the files again; the call to make for it to hold."""
        fresh = self._tls.configuration(attempted)

        def use() -> None:
            self._now = fresh

        return use


def names_of(auth_context: Mapping[str, Sequence[bytes]]) -> list[str]:
    """The names in the certificate that a client has shown, as gRPC tells them."""
    keys = ("x509_subject_alternative_name", "x509_common_name")
    return [name.decode(errors="replace") for key in keys for name in auth_context.get(key, ())]
