"""Upstreams behind TLS with certificates of our own, and a proxy that opens tunnels or does not."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from support.upstream import HEAD_END, Upstream

LOOPBACK = ("localhost", "127.0.0.1", "::1")
REFUSED = b"HTTP/1.1 %b\r\ncontent-length: 0\r\nproxy-agent: a-proxy\r\n\r\n"
OPENED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Authority:
    """A certificate authority that lives as long as the test."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "An authority for tests")])
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        made = _builder(self._name, self._name, self._key.public_key(), days=30)
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        made = made.add_extension(usage, critical=True)
        made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
        self._certificate = made.sign(self._key, hashes.SHA256())

    @property
    def pem(self) -> str:
        """What goes into a `ca_file`."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    def context(self, *names: str, days: int = 30) -> ssl.SSLContext:
        """A server's TLS with a certificate for these names. days: how long it holds; below 0 it did."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = _builder(x509.Name([]), self._name, key.public_key(), days=days)
        made = made.add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), critical=True)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = made.add_extension(issuer, critical=False).sign(self._key, hashes.SHA256())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory(prefix="drivetrain-test-") as folder:
            chain = Path(folder) / "chain.pem"
            private = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            chain.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
            context.load_cert_chain(chain)
        return context


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, *, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=60))
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


@dataclass
class TlsUpstream(Upstream):
    """An `Upstream` behind TLS. `connections` counts what was accepted, whatever became of it."""

    context: ssl.SSLContext | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def _carry(self, connection: socket.socket, number: int) -> None:
        assert self.context is not None
        with contextlib.suppress(OSError):
            super()._carry(self.context.wrap_socket(connection, server_side=True), number)


@dataclass
class SixUpstream(TlsUpstream):
    """An `Upstream` on the loopback address of IPv6, behind TLS where it has a context."""

    @property
    def url(self) -> str:
        return f"{'http' if self.context is None else 'https'}://[::1]:{self.port}"

    def __enter__(self) -> SixUpstream:
        self._listening = socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=64)
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def _carry(self, connection: socket.socket, number: int) -> None:
        if self.context is None:
            Upstream._carry(self, connection, number)
        else:
            super()._carry(connection, number)


@dataclass
class Tunnels:
    """A proxy that answers CONNECT. `with Tunnels() as proxy:` listens on a free loopback port."""

    port: int = 0
    heads: list[str] = field(default_factory=list)
    """The requests as they came, in order."""
    answer: bytes | None = OPENED
    """What it says; None: nothing, for as long as the client waits. A tunnel opens behind `OPENED` only."""
    connections: int = 0

    def forget(self) -> None:
        """As new."""
        self.heads.clear()
        self.answer = OPENED

    def __enter__(self) -> Tunnels:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._carry, args=(connection,), daemon=True).start()

    def _carry(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            head = b""
            while HEAD_END not in head:
                part = connection.recv(65_536)
                if not part:
                    return
                head += part
            self.heads.append(head.decode("latin-1"))
            answer = self.answer
            if answer is None:
                connection.recv(1)
                return
            if not answer.startswith(b"HTTP/1.1 200 ") or HEAD_END not in answer:
                connection.sendall(answer)
                return
            host, _, port = head.split(b" ", 2)[1].decode().rpartition(":")
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5) as beyond:
                beyond.settimeout(None)
                connection.sendall(answer)
                threading.Thread(target=_pump, args=(beyond, connection), daemon=True).start()
                _pump(connection, beyond)


def _pump(source: socket.socket, to: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while part := source.recv(65_536):
            to.sendall(part)
    with contextlib.suppress(OSError):
        to.shutdown(socket.SHUT_RDWR)
