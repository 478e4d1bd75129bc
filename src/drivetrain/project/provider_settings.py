"""`[providers.NAME]` of drivetrain.toml: where a provider is, how it is spoken to, and what every request carries."""

from __future__ import annotations

import re
from pathlib import Path

from drivetrain.core.endpoints import Endpoint, split_base_url
from drivetrain.project.names import named
from drivetrain.project.problems import shown
from drivetrain.project.secrets import REFERENCE_HELP, is_reference, read_reference
from drivetrain.project.snapshot import Provider
from drivetrain.project.tables import Table

DIALECTS = ("openai", "anthropic")
PROVIDER_KEYS = (
    "dialect", "base_url", "key", "key_header", "headers", "proxy", "ca_file",
    "connections_max", "connect_timeout_ms", "idle_s", "answer_bytes_max", "breaker",
)  # fmt: skip
_SECRET_HEADER = re.compile(r"authori[sz]ation|cookie|token|secret|api-?key|x-api|credential|password", re.IGNORECASE)
_SECRET_QUERY = re.compile(r"(?:^|[?&])(?:api[-_]?key|key|token|access_token|sig|secret|password|code)=", re.IGNORECASE)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OUR_HEADERS = frozenset(
    {"host", "content-length", "content-type", "transfer-encoding", "connection", "accept-encoding", "te", "upgrade"}
)


def read_providers(tables: Table, root: Path) -> dict[str, Provider]:
    """The providers that can be used; every mistake is noted. root: where paths of files begin."""
    providers = {}
    for name, table in tables.tables():
        named(table, name)
        table.only(PROVIDER_KEYS, hints={"api_key": "Did you mean `key`?", "url": "Did you mean `base_url`?"})
        dialect = table.choice("dialect", DIALECTS, "openai", needed=True)
        key = read_reference(table, "key")
        key_header = table.text("key_header")
        if key_header and not _HEADER_NAME.fullmatch(key_header):
            table.note("key_header", "is not the name of an HTTP header.", do='Write for example "api-key".')
        endpoint = _endpoint(name, table, root)
        headers = _headers(table.table("headers"))
        if endpoint is not None:
            providers[name] = Provider(
                name=name, dialect=dialect, endpoint=endpoint, key=key,
                key_header=key_header, headers=headers, breaker=table.flag("breaker", True), line=table.line(),
            )  # fmt: skip
    return providers


def _endpoint(name: str, table: Table, root: Path) -> Endpoint | None:
    connections_max = table.whole("connections_max", 256, most=65_536)
    connect_timeout_ms = table.whole("connect_timeout_ms", 5_000, most=600_000)
    idle_s = table.whole("idle_s", 30, least=0, most=86_400)
    answer_bytes_max = table.whole("answer_bytes_max", 32 * 1024 * 1024, least=1_024, most=2**30)
    proxy = _proxy(table)
    ca_file = table.text("ca_file") or None
    base_url = table.text("base_url", needed='Write for example "https://api.openai.com/v1".')
    if not base_url:
        return None
    try:
        scheme, host, port, path = split_base_url(base_url)
    except ValueError as error:
        value = "" if "@" in base_url else shown(base_url)
        table.note(
            "base_url", f"is not a base URL: {error}.", value=value, do='Write for example "https://api.openai.com/v1".'
        )
        return None
    if _SECRET_QUERY.search(path.partition("?")[2]):
        table.note(
            "base_url",
            "carries a secret in its query.",
            do="Use `key` and `key_header`, or `headers`, with a reference.",
        )
    return Endpoint(
        name=name, scheme=scheme, host=host, port=port, path=path, proxy=proxy,
        ca_file=str(root / ca_file) if ca_file else None,
        connections_max=connections_max, connect_timeout_ms=connect_timeout_ms,
        idle_s=idle_s, answer_bytes_max=answer_bytes_max,
    )  # fmt: skip


def _proxy(table: Table) -> str | None:
    proxy = table.text("proxy") or None
    if proxy is None or is_reference(proxy):
        return proxy
    if "@" in proxy:
        table.note(
            "proxy", "carries a user or password.", do='Put the URL into an environment variable and write "env:NAME".'
        )
        return None
    try:
        scheme, _, _, path = split_base_url(proxy)
    except ValueError as error:
        table.note(
            "proxy", f"is not a URL: {error}.", value=shown(proxy), do='Write "http://host:port" or "env:HTTPS_PROXY".'
        )
        return None
    if scheme != "http" or path:
        table.note("proxy", "is not the URL of an HTTP proxy.", value=shown(proxy), do='Write "http://host:port".')
        return None
    return proxy


def _headers(table: Table) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in table.values.items():
        if not _HEADER_NAME.fullmatch(name):
            table.note(name, "is not the name of an HTTP header.")
        elif name.lower() in _OUR_HEADERS:
            table.note(name, "is a header that Drivetrain sets itself.", do="Remove it.")
        elif not isinstance(value, str) or not value.isascii() or not value.isprintable():
            table.note(name, "must be printable ASCII text in quotes.")
        elif _SECRET_HEADER.search(name) and not is_reference(value):
            table.note(name, "looks like a secret; a secret never stands in a file of the project.", do=REFERENCE_HELP)
        else:
            headers[name] = value
    return headers
