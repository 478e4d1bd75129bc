"""Where an upstream is and how it is reached: the facts a transport needs, without any secret in their repr."""

from __future__ import annotations

import base64
from urllib.parse import unquote, urlsplit

import msgspec


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One upstream address with its limits."""

    name: str
    """The provider's name in the project."""
    scheme: str
    """`http` or `https`."""
    host: str
    port: int
    path: str = ""
    """Prefix of every path, without a trailing slash; may hold a query after `?`."""
    proxy: str | None = None
    """`http://host:port` of an HTTP proxy; may carry `user:password@`."""
    ca_file: str | None = None
    """PEM file of the CAs to trust instead of the system's."""
    connections_max: int = 256
    """Connections per worker; further attempts wait."""
    connect_timeout_ms: int = 5_000
    idle_s: int = 30
    """How long an unused connection is kept."""
    answer_bytes_max: int = 32 * 1024 * 1024
    """A longer answer is cut off and counts as failed."""

    @property
    def authority(self) -> str:
        """`host` or `host:port`, as the Host header has it."""
        default = 443 if self.scheme == "https" else 80
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == default else f"{host}:{self.port}"

    def __repr__(self) -> str:
        return f"Endpoint({self.name!r}, {self.scheme}://{self.authority}{self.path})"


def split_base_url(url: str) -> tuple[str, str, int, str]:
    """(scheme, host, port, path with query) of a base URL.

    Raises: ValueError where it is no http(s) URL with a host, or carries user, password or fragment.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError("it must start with http:// or https://")
    if not parts.hostname:
        raise ValueError("it names no host")
    if parts.username or parts.password:
        raise ValueError("it must not carry a user or password; use `key`")
    if parts.fragment:
        raise ValueError("it must not carry a fragment")
    if any(ord(character) <= 32 or ord(character) == 127 for character in url):
        raise ValueError("it holds white space or control characters")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    path = parts.path.rstrip("/")
    if parts.query:
        path = f"{path}?{parts.query}"
    return parts.scheme, parts.hostname, port, path


def is_proxy_url(url: str) -> bool:
    """Whether `url` is an `http://` address with a host and, where it names one, a port."""
    try:
        parts = urlsplit(url)
        # A `/`, `?` or `#` in a password that is not written as `%2F` ends the host too early.
        bare = not (parts.path.strip("/") or parts.query or parts.fragment)
        return bare and parts.scheme == "http" and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def proxy_secrets(proxy: str) -> tuple[str, ...]:
    """What must never be shown of a proxy's URL, the longest first."""
    parts = urlsplit(proxy)
    if parts.password is None:
        return ()
    authorization = (proxy_authorization(proxy) or "").removeprefix("Basic ")
    spellings = {authorization, parts.password, unquote(parts.password)} - {""}
    return tuple(sorted(spellings, key=len, reverse=True))


def proxy_authorization(proxy: str) -> str | None:
    """The `proxy-authorization` for the user and password in a proxy's URL."""
    parts = urlsplit(proxy)
    if parts.username is None:
        return None
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()
