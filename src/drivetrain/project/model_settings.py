"""`[models."provider/model"]` of drivetrain.toml: what a model can do, what it costs, and when it ends."""

from __future__ import annotations

from datetime import date, datetime

from drivetrain.project.names import MODEL, model_mistake
from drivetrain.project.problems import shown
from drivetrain.project.snapshot import ModelFacts
from drivetrain.project.tables import Table

CAPABILITIES = ("tools", "json_schema", "images", "streaming", "reasoning")
MAX_TOKENS_FIELDS = ("max_tokens", "max_completion_tokens")
MODEL_KEYS = (
    "upstream_name", "capabilities", "max_tokens_field", "price_as",
    "usd_per_million_input", "usd_per_million_output", "usd_per_million_input_cached",
    "usd_per_million_cache_write", "usd_per_million_cache_write_1h", "usd_per_request",
    "usd_per_hour", "parallel", "retires", "replacement",
)  # fmt: skip
PARALLEL_MOST = 10_000
"""No machine serves more attempts at a time."""


def read_models(tables: Table, providers: frozenset[str]) -> dict[str, ModelFacts]:
    """Every model that is told of; mistakes are noted. providers: the declared ones, wrong ones included."""
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
