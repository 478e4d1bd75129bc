"""drivetrain.toml -> settings, for one environment. Every mistake is kept with its line.

Owns the keys of drivetrain.toml, apart from `[workflows]` (`chat_workflows`). Whether names fit together
with workflows is for `checks`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.declarations import RETENTIONS
from drivetrain.core.endpoints import Endpoint, split_base_url
from drivetrain.core.errors import did_you_mean
from drivetrain.core.limits import Limit
from drivetrain.core.models import REFERENCE, is_trained
from drivetrain.core.releases import RulesV1
from drivetrain.project.files import SETTINGS_FILE
from drivetrain.project.limits import declared_limits
from drivetrain.project.problems import Problems, shown
from drivetrain.project.release_rules import read_rules
from drivetrain.project.secrets import REFERENCE_HELP, is_reference
from drivetrain.project.snapshot import (
    GatewaySettings,
    Key,
    LakeSettings,
    LedgerSettings,
    ModelFacts,
    Provider,
    SecretRef,
)
from drivetrain.project.tables import Table
from drivetrain.project.toml_lines import TomlPath, locate

NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
NAME_HELP = "A name starts with a small letter and has at most 64 of a-z, 0-9, `_` and `-`."
MODEL = re.compile(r"[a-z][a-z0-9_-]{0,63}/\S+")
E_MAIL = re.compile(r"[^@\s]+@[^@\s]+")

DIALECTS = ("openai", "anthropic")
CAPABILITIES = ("tools", "json_schema", "images", "streaming", "reasoning")
MAX_TOKENS_FIELDS = ("max_tokens", "max_completion_tokens")
OVERRIDES = ("team", "use_case", "user", "tags")
DEFAULT_ENVIRONMENT = "default"
DEFAULT_DIRECT_TEAM = "direct"

TOP_KEYS = (
    "project",
    "env",
    "providers",
    "models",
    "teams",
    "keys",
    "limits",
    "gateway",
    "ledger",
    "lake",
    "people",
    "releases",
    "workflows",
)
PROJECT_KEYS = ("name", "default_env")
PROVIDER_KEYS = (
    "dialect", "base_url", "key", "key_header", "headers", "proxy", "ca_file",
    "connections_max", "connect_timeout_ms", "idle_s", "answer_bytes_max", "breaker",
)  # fmt: skip
MODEL_KEYS = (
    "upstream_name", "capabilities", "max_tokens_field", "price_as",
    "usd_per_million_input", "usd_per_million_output", "usd_per_million_input_cached",
    "usd_per_million_cache_write", "usd_per_million_cache_write_1h", "usd_per_request",
    "usd_per_hour", "parallel", "retires", "replacement",
)  # fmt: skip
TEAM_KEYS = ("owner", "description")
KEY_KEYS = ("secret", "tenant", "team", "use_case", "workflows", "may_override")
PARALLEL_MOST = 10_000
"""No machine serves more attempts at a time."""
GATEWAY_RANGES: Mapping[str, tuple[int, int]] = {
    "port": (0, 65_535),
    "body_bytes_max": (1_024, 2**30),
    "header_bytes_max": (1_024, 2**20),
    "header_timeout_ms": (1, 600_000),
    "body_timeout_ms": (1, 3_600_000),
    "idle_timeout_ms": (1, 3_600_000),
    "write_timeout_ms": (1, 3_600_000),
    "connections_max": (1, 1_000_000),
    "messages_max": (1, 100_000),
    "cache_bytes_max": (0, 2**40),
}
GATEWAY_KEYS = ("host", "direct_models", "direct_team", *GATEWAY_RANGES)
LAKE_KEYS = ("url", "options", "keep_days", "roll_every_s", "roll_records", "history_s")
KEEP_DAYS_MOST = 36_500
"""A century."""
LEDGER_KEYS = ("folder", "keys_folder", "retention", "payload_days", "segment_bytes_max")

_SECRET_HEADER = re.compile(r"authori[sz]ation|cookie|token|secret|api-?key|x-api|credential|password", re.IGNORECASE)
_SECRET_QUERY = re.compile(r"(?:^|[?&])(?:api[-_]?key|key|token|access_token|sig|secret|password|code)=", re.IGNORECASE)
_LAKE_URL = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?:/[A-Za-z0-9._=/-]*)?")
_SECRET_OPTION = re.compile(r"secret|token|password|access_key(?!_id)", re.IGNORECASE)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OUR_HEADERS = frozenset(
    {"host", "content-length", "content-type", "transfer-encoding", "connection", "accept-encoding", "te", "upgrade"}
)


class Parsed(msgspec.Struct, frozen=True, kw_only=True):
    """drivetrain.toml as written, with all its overlays."""

    values: dict[str, Any]
    lines: dict[TomlPath, int]


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """drivetrain.toml with one environment's overlay merged in."""

    values: dict[str, Any]
    lines: dict[TomlPath, int]
    environment: str
    overlay_lines: frozenset[int] = frozenset()
    """Lines that come from the overlay."""


class Team(msgspec.Struct, frozen=True, kw_only=True):
    """Who pays and who answers."""

    name: str
    owner: str = ""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What drivetrain.toml says, without its workflows."""

    name: str = ""
    providers: dict[str, Provider] = {}
    provider_names: frozenset[str] = frozenset()
    """Declared ones, wrong ones included, so that a mistake in a provider is not reported again at every model."""
    models: dict[str, ModelFacts] = {}
    keys: dict[str, Key] = {}
    limits: dict[str, Limit] = {}
    """Of `[limits]`, without the workflows' budgets."""
    teams: dict[str, Team] = {}
    gateway: GatewaySettings = GatewaySettings()
    direct_team: str = DEFAULT_DIRECT_TEAM
    ledger: LedgerSettings = LedgerSettings()
    lake: LakeSettings = LakeSettings()
    rules: RulesV1 = RulesV1()
    """Of `[people]` and `[releases]`."""


def parse(content: bytes, problems: Problems) -> Parsed | None:
    """Values and lines of drivetrain.toml as written; None where it is no TOML."""
    try:
        text = content.decode()
        return Parsed(values=tomllib.loads(text), lines=locate(text))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problems.add("The file is not UTF-8.", file=SETTINGS_FILE, line=line, do="Save it as UTF-8.")
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        line = int(at[1]) if at else content.decode().count("\n") + 1
        what = re.sub(r" \(at .*\)$", "", str(error))
        problems.add(f"The file is not TOML: {what}.", file=SETTINGS_FILE, line=line, do="See https://toml.io.")
    except RecursionError:
        problems.add("The file is nested too deeply.", file=SETTINGS_FILE, do="Write tables as `[a.b]`.")
    return None


def environment_name(parsed: Parsed | None, environment: str | None, environ: Mapping[str, str]) -> str:
    """The environment to load: the one asked for, else $DRIVETRAIN_ENV, else `[project] default_env`."""
    project = parsed.values.get("project") if parsed is not None else None
    declared = project.get("default_env") if isinstance(project, dict) else None
    return (
        environment
        or environ.get("DRIVETRAIN_ENV")
        or (declared if isinstance(declared, str) else "")
        or DEFAULT_ENVIRONMENT
    )


def overlay(parsed: Parsed, environment: str, problems: Problems) -> Document:
    """The document for one environment: `[env.NAME]` merged deeply over the rest; lists are replaced whole."""
    values, lines = parsed.values, parsed.lines
    overlays = values.get("env", {})
    base = {key: value for key, value in values.items() if key != "env"}
    if not isinstance(overlays, dict):
        problems.add(
            "`env` must be a table.", file=SETTINGS_FILE, line=lines.get(("env",), 0), do="Write `[env.prod]`."
        )
        overlays = {}
    if environment not in overlays and environment != DEFAULT_ENVIRONMENT:
        problems.add(
            f"The environment `{environment}` is not declared.", file=SETTINGS_FILE,
            line=lines.get(("project", "default_env"), 0), value=shown(environment),
            do=did_you_mean(environment, overlays) if overlays else f"Add `[env.{environment}]`.",
        )  # fmt: skip
    chosen = overlays.get(environment, {})
    if not isinstance(chosen, dict):
        problems.add(
            f"`env.{environment}` must be a table.", file=SETTINGS_FILE, line=lines.get(("env", environment), 0)
        )
        chosen = {}
    merged_lines = {path: line for path, line in lines.items() if path[0] != "env"}
    prefix: TomlPath = ("env", environment)
    added = {path[2:]: line for path, line in lines.items() if path[:2] == prefix and len(path) > 2}
    merged = _merge(base, chosen, (), merged_lines)
    merged_lines |= {
        path: line for path, line in added.items() if path not in merged_lines or not _is_table(merged, path)
    }
    return Document(values=merged, lines=merged_lines, environment=environment, overlay_lines=frozenset(added.values()))


def read(document: Document, root: Path, problems: Problems) -> Settings:
    """The settings of a document. Every mistake is kept in `problems`."""
    top = Table(document.values, (), document.lines, problems)
    top.only(TOP_KEYS)
    project = top.table("project")
    project.only(PROJECT_KEYS)
    name = project.text("name", needed='Write `[project]` and `name = "my-ai"`.')
    if name and not NAME.fullmatch(name):
        project.note("name", "is not a name.", value=shown(name), do=NAME_HELP)
    project.text("default_env")
    teams = _teams(top.table("teams"))
    provider_tables = top.table("providers")
    providers = _providers(provider_tables, root)
    provider_names = frozenset(provider_tables.values)
    gateway_table = top.table("gateway")
    direct_team = gateway_table.text("direct_team", DEFAULT_DIRECT_TEAM)
    if teams and "direct_team" in gateway_table and direct_team not in teams:
        gateway_table.note(
            "direct_team", "names no team.", value=shown(direct_team), do=did_you_mean(direct_team, teams)
        )
    return Settings(
        name=name,
        providers=providers,
        provider_names=provider_names,
        models=_models(top.table("models"), provider_names),
        keys=_keys(top.table("keys"), teams),
        limits=declared_limits(top.table("limits").values, problems, document.lines),
        teams=teams,
        gateway=_gateway(gateway_table, provider_names),
        direct_team=direct_team,
        ledger=_ledger(top.table("ledger")),
        lake=_lake(top.table("lake")),
        rules=read_rules(top.table("people"), top.table("releases")),
    )


def model_mistake(model: str, providers: frozenset[str] | None) -> tuple[str, str] | None:
    """What is wrong with a reference to a model, and what to do; None where nothing is.

    Of a trained one only how it is written; whether the registry holds it is checked where it is used.
    """
    if is_trained(model):
        if REFERENCE.fullmatch(model) is not None:
            return None
        return "is no reference to a trained model.", 'Write "models:/NAME@ALIAS" or "models:/NAME/NUMBER".'
    if "/" not in model:
        example = f'"openai/{model or "gpt-5-mini-2025-08-07"}"'
        return "names no provider.", f"Write `provider/model`, for example {example}."
    if not MODEL.fullmatch(model):
        return "is not `provider/model`.", 'Write for example "openai/gpt-5-mini-2025-08-07".'
    provider = model.partition("/")[0]
    if providers is not None and provider not in providers:
        return f"names the provider `{provider}`, which is not declared.", did_you_mean(provider, providers)
    return None


def _merge(
    base: Mapping[str, Any], over: Mapping[str, Any], path: TomlPath, lines: dict[TomlPath, int]
) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        here = (*path, key)
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value, here, lines)
        else:
            for one in [old for old in lines if old[: len(here)] == here]:
                del lines[one]
            merged[key] = value
    return merged


def _is_table(values: Any, path: TomlPath) -> bool:
    for part in path:
        values = values[part]
    return isinstance(values, dict)


def _named(table: Table, name: str) -> bool:
    if NAME.fullmatch(name):
        return True
    table.note(None, "is not a name.", value=shown(name), do=NAME_HELP)
    return False


def _reference(table: Table, key: str, *, needed: bool = False) -> SecretRef | None:
    """A reference to a secret. What stands there instead is never shown: it may be the secret."""
    value = table.raw(key)
    if value is None:
        if needed:
            table.note(key, "is missing.", do=REFERENCE_HELP)
        return None
    if isinstance(value, str) and is_reference(value):
        return SecretRef(value)
    table.note(
        key,
        "must say where the secret is kept; a secret itself never stands in a file of the project.",
        do=REFERENCE_HELP,
    )
    return None


def _teams(tables: Table) -> dict[str, Team]:
    teams = {}
    for name, table in tables.tables():
        _named(table, name)
        table.only(TEAM_KEYS)
        owner = table.text("owner")
        table.text("description")
        if owner and not E_MAIL.fullmatch(owner):
            table.note(
                "owner", "is not an e-mail address.", value=shown(owner), do='Write for example "team@acme.example".'
            )
        teams[name] = Team(name=name, owner=owner)
    return teams


def _providers(tables: Table, root: Path) -> dict[str, Provider]:
    providers = {}
    for name, table in tables.tables():
        _named(table, name)
        table.only(PROVIDER_KEYS, hints={"api_key": "Did you mean `key`?", "url": "Did you mean `base_url`?"})
        dialect = table.choice("dialect", DIALECTS, "openai", needed=True)
        key = _reference(table, "key")
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


def _models(tables: Table, providers: frozenset[str]) -> dict[str, ModelFacts]:
    models = {}
    for name, table in tables.tables():
        mistake = model_mistake(name, providers)
        if mistake is not None:
            table.note(None, mistake[0], value=shown(name), do=mistake[1])
        table.only(MODEL_KEYS)
        prices = {key: table.amount(key) for key in MODEL_KEYS if key.startswith("usd_")}
        price_as = table.text("price_as") or None
        if price_as is not None and not MODEL.fullmatch(price_as):
            table.note(
                "price_as",
                "is not `provider/model`.",
                value=shown(price_as),
                do='Write for example "openai/gpt-5-mini".',
            )
        _check_prices(table, price_as)
        models[name] = ModelFacts(
            name=name,
            upstream_name=table.text("upstream_name") or None,
            capabilities=table.texts("capabilities", choices=CAPABILITIES),
            max_tokens_field=table.choice("max_tokens_field", MAX_TOKENS_FIELDS, "") or None,
            price_as=price_as,
            input_nano_per_million=prices["usd_per_million_input"],
            output_nano_per_million=prices["usd_per_million_output"],
            input_cached_nano_per_million=prices["usd_per_million_input_cached"],
            cache_write_nano_per_million=prices["usd_per_million_cache_write"],
            cache_write_1h_nano_per_million=prices["usd_per_million_cache_write_1h"],
            nano_per_request=prices["usd_per_request"] or 0,
            machine_nano_per_hour=prices["usd_per_hour"],
            parallel=table.whole("parallel", 1, most=PARALLEL_MOST),
            retires=_day(table, "retires"),
            replacement=_replacement(table, name),
            line=table.line(),
        )
    return models


def _day(table: Table, key: str) -> str:
    """A day as `YYYY-MM-DD`, written as a text or as TOML's own date; empty where nothing is written."""
    value = table.raw(key)
    if isinstance(value, date) and not isinstance(value, datetime):
        return value.isoformat()
    text = table.text(key)
    try:
        return date.fromisoformat(text).isoformat() if text else ""
    except ValueError:
        table.note(key, "is no day.", value=shown(text), do='Write it as "2026-12-31".')
        return ""


def _replacement(table: Table, model: str) -> str:
    text = table.text("replacement")
    if text and (not MODEL.fullmatch(text) or text == model):
        table.note(
            "replacement", "is not another `provider/model`.", value=shown(text),
            do='Write for example "openai/gpt-5-mini-2025-08-07".',
        )  # fmt: skip
        return ""
    return text


def _check_prices(table: Table, price_as: str | None) -> None:
    per_million = [key for key in MODEL_KEYS if key.startswith("usd_per_million") and key in table]
    if price_as is not None and per_million:
        table.note(
            per_million[0],
            "stands beside `price_as`; one of them must go.",
            do="Keep either `price_as` or the amounts.",
        )
    if "usd_per_hour" in table:
        beside = [key for key in ("price_as", *per_million, "usd_per_request") if key in table]
        if beside:
            table.note(
                beside[0],
                "stands beside `usd_per_hour`: a model is paid by the token or by the machine's time.",
                do="Keep either `usd_per_hour` or the price of tokens.",
            )
    elif "parallel" in table:
        table.note("parallel", "belongs to a machine with `usd_per_hour`.", do='Write `usd_per_hour = "2.50"` too.')
    if price_as is None and per_million and "usd_per_hour" not in table:
        for needed in ("usd_per_million_input", "usd_per_million_output"):
            if needed not in table:
                table.note(
                    needed,
                    "is missing; a price needs input and output.",
                    do=f'Write `{needed} = "0.25"`, or 0 where it is free.',
                )


def _keys(tables: Table, teams: Mapping[str, Team]) -> dict[str, Key]:
    keys: dict[str, Key] = {}
    used: dict[str, str] = {}
    for name, table in tables.tables():
        _named(table, name)
        table.only(KEY_KEYS, hints={"key": "Did you mean `secret`?"})
        secret = _reference(table, "secret", needed=True)
        team = table.text("team")
        if team and teams and team not in teams:
            table.note("team", "names no team.", value=shown(team), do=did_you_mean(team, teams))
        if secret is None:
            continue
        if secret.reference in used:
            table.note(
                "secret",
                f"is the secret of key `{used[secret.reference]}` too; a key must belong to one.",
                value=secret.reference,
            )
        used.setdefault(secret.reference, name)
        keys[name] = Key(
            name=name, secret=secret, tenant=table.text("tenant"), team=team, use_case=table.text("use_case"),
            workflows=table.texts("workflows"),
            may_override=table.texts("may_override", choices=OVERRIDES) or (),
            line=table.line(),
        )  # fmt: skip
    return keys


def _gateway(table: Table, providers: frozenset[str]) -> GatewaySettings:
    table.only(GATEWAY_KEYS)
    defaults = GatewaySettings()
    numbers = {
        key: table.whole(key, getattr(defaults, key), least=least, most=most)
        for key, (least, most) in GATEWAY_RANGES.items()
    }
    direct: list[str] = []
    for index, model in enumerate(table.texts("direct_models") or ()):
        mistake = model_mistake(model, providers)
        if mistake is not None:
            table.problems.add(
                f"`{table.label('direct_models', index)}` {mistake[0]}", file=SETTINGS_FILE,
                line=table.line("direct_models", index), value=shown(model), do=mistake[1],
            )  # fmt: skip
        elif model not in direct:
            direct.append(model)
    return GatewaySettings(host=table.text("host", defaults.host), direct_models=tuple(direct), **numbers)


def _ledger(table: Table) -> LedgerSettings:
    table.only(LEDGER_KEYS)
    defaults = LedgerSettings()
    folder = table.text("folder", defaults.folder)
    keys_folder = table.text("keys_folder", defaults.keys_folder)
    if Path(keys_folder) == Path(folder) or Path(folder) in Path(keys_folder).parents:
        table.note(
            "keys_folder", "lies in the data folder, so that a copy of the data would carry its keys.",
            value=shown(keys_folder), do='Write for example "keys".',
        )  # fmt: skip
    return LedgerSettings(
        folder=folder,
        keys_folder=keys_folder,
        retention=table.choice("retention", RETENTIONS, defaults.retention),
        payload_days=table.whole("payload_days", defaults.payload_days, most=36_500),
        segment_bytes_max=table.whole("segment_bytes_max", defaults.segment_bytes_max, least=64 * 1024, most=2**32),
    )


def _lake(table: Table) -> LakeSettings:
    table.only(LAKE_KEYS)
    defaults = LakeSettings()
    url = table.text("url")
    if url and not _LAKE_URL.fullmatch(url):
        value = "" if "@" in url else shown(url)
        table.note("url", "is no place for a lake.", value=value, do='Write "s3://BUCKET/PREFIX", or nothing.')
    options: dict[str, str | SecretRef] = {}
    for name, given in table.table("options").values.items():
        if not isinstance(given, str):
            table.table("options").note(name, "must be text in quotes.")
        elif is_reference(given):
            options[name] = SecretRef(given)
        elif _SECRET_OPTION.search(name):
            table.table("options").note(
                name, "is a secret; a secret never stands in a file of the project.", do=REFERENCE_HELP
            )
        else:
            options[name] = given
    keep = table.whole("keep_days", 0, most=KEEP_DAYS_MOST) if "keep_days" in table else None
    return LakeSettings(
        url=url,
        options=options,
        keep_days=keep,
        roll_every_s=table.whole("roll_every_s", defaults.roll_every_s, most=86_400),
        roll_records=table.whole("roll_records", defaults.roll_records, most=1_000_000),
        history_s=table.whole("history_s", defaults.history_s, least=0, most=365 * 86_400),
    )
