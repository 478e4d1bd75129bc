"""`[workflows.NAME]` of drivetrain.toml -> the same Workflow, Variant and Rule that Python declares.

Owns the keys of `[workflows]`. The values are checked with all other declarations, in `checks`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drivetrain.core.declarations import (
    DEFAULT_ATTEMPTS_MAX,
    DEFAULT_FIRST_BYTE_TIMEOUT_MS,
    DEFAULT_MAX_OUTPUT_TOKENS,
    DEFAULT_TIMEOUT_MS,
    SLO,
    Budget,
    Cache,
    Check,
    Conversation,
    Parameters,
    Place,
    Rule,
    Stale,
    Static,
    Variant,
    Workflow,
)
from drivetrain.core.errors import did_you_mean
from drivetrain.project.files import SETTINGS_FILE
from drivetrain.project.problems import shown
from drivetrain.project.spots import Spots
from drivetrain.project.tables import Table

WORKFLOW_KEYS = (
    "owner", "team", "use_case", "route", "budget", "slo", "retention", "durability", "parameters", "attempts_max",
    "max_input_tokens", "context", "cache", "degrade", "deadline_ms", "priority",
    "features", "features_missing", "entity_keys", "keep_days",
)  # fmt: skip
TYPED_KEYS = ("input", "output", "chat_input", "chat_field", "validators", "outcome_key")
VARIANT_KEYS = (
    "name", "model", "system", "accept", "max_output_tokens", "parameters", "timeout_ms", "first_byte_timeout_ms",
)  # fmt: skip
RULE_CONDITIONS = ("matches", "equals", "empty")
RULE_KEYS = ("rule", *RULE_CONDITIONS, "answer")
ACCEPT_KEYS = ("matches", "not_matches", "chars_min", "chars_max")
BUDGET_KEYS = ("usd_per_call", "usd_per_day", "usd_per_month", "mode", "alerts")
CACHE_KEYS = ("ttl_s", "when", "tool_calls")
DEGRADE_KEYS = ("stale_max_age_s", "static")
SLO_KEYS = ("p99_ms", "availability")
PARAMETERS_KEYS = ("honour", "fix", "ignore", "refuse", "others")

_IN_PYTHON = "Workflows with types are declared in Python, in `workflows/`."


def read_workflows(tables: Table, root: Path, spots: Spots) -> list[Workflow[Any, Any]]:
    """The plain chat workflows of drivetrain.toml, with every mistake kept in `tables.problems`."""
    return [_workflow(name, table, root, spots) for name, table in tables.tables()]


def _workflow(name: str, table: Table, root: Path, spots: Spots) -> Workflow[Any, Any]:
    table.only(WORKFLOW_KEYS, hints=dict.fromkeys(TYPED_KEYS, _IN_PYTHON))
    budget = table.table("budget")
    budget.only(BUDGET_KEYS)
    slo = table.table("slo")
    slo.only(SLO_KEYS)
    workflow: Workflow[Any, Any] = Workflow(
        name,
        owner=table.text("owner"),
        team=table.text("team"),
        use_case=table.text("use_case"),
        route=[_step(row, root, spots) for row in table.rows("route")],
        budget=Budget(**_written(budget, BUDGET_KEYS)) if "budget" in table else None,
        slo=SLO(**_written(slo, SLO_KEYS)) if "slo" in table else None,
        retention=table.raw("retention"),
        durability=table.values.get("durability", "write"),
        parameters=_parameters(table.table("parameters")),
        attempts_max=table.values.get("attempts_max", DEFAULT_ATTEMPTS_MAX),
        max_input_tokens=table.raw("max_input_tokens"),
        context=table.values.get("context", "refuse"),
        cache=_cache(table.table("cache")) if "cache" in table else None,
        degrade=[rung for row in table.rows("degrade") for rung in _rungs(row)],
        deadline_ms=table.raw("deadline_ms"),
        priority=table.values.get("priority", "normal"),
        features=table.raw("features"),
        features_missing=table.values.get("features_missing", "default"),
        entity_keys=dict(table.table("entity_keys").values),
        keep_days=table.raw("keep_days"),
        place=_place(table, root),
    )
    spots.remember(workflow, table)
    return workflow


def _written(table: Table, keys: tuple[str, ...]) -> dict[str, Any]:
    """The values that are written, so that the others keep their defaults."""
    return {key: table.raw(key) for key in keys if key in table}


def _cache(table: Table) -> Cache:
    table.only(CACHE_KEYS)
    return Cache(**{"ttl_s": None, **_written(table, CACHE_KEYS)})


def _rungs(table: Table) -> list[Stale | Static]:
    """What one table of `degrade` declares: one rung, or none where the table is wrong."""
    table.only(DEGRADE_KEYS)
    written = [key for key in DEGRADE_KEYS if key in table]
    if len(written) != 1:
        table.note(None, "must have exactly one of `stale_max_age_s` and `static`.")
        return []
    value = table.raw(written[0])
    return [Stale(max_age_s=value) if written == ["stale_max_age_s"] else Static(value)]


def _parameters(table: Table) -> Parameters:
    table.only(PARAMETERS_KEYS)
    return Parameters(
        honour=table.texts("honour") or (),
        fix=dict(table.table("fix").values),
        ignore=table.texts("ignore") or (),
        refuse=table.texts("refuse") or (),
        others=table.raw("others"),
    )


def _step(table: Table, root: Path, spots: Spots) -> Rule | Variant:
    step = _rule(table, root) if "rule" in table else _variant(table, root)
    spots.remember(step, table)
    return step


def _variant(table: Table, root: Path) -> Variant:
    hints = {"prompt": "A chat workflow sends the client's messages; use `system` for instructions."}
    table.only(VARIANT_KEYS, hints=hints)
    if "name" not in table:
        table.note(None, "is neither a variant nor a rule.", do="Write `name` and `model`, or `rule` and `answer`.")
    return Variant(
        table.values.get("name", f"step-{table.path[-1]}"),
        model=table.text(
            "model", needed='Write for example "openai/gpt-5-mini-2025-08-07".' if "name" in table else ""
        ),
        system=table.text("system") or None,
        accept=_accept(table.table("accept")) if "accept" in table else None,
        max_output_tokens=table.values.get("max_output_tokens", DEFAULT_MAX_OUTPUT_TOKENS),
        parameters=dict(table.table("parameters").values),
        timeout_ms=table.values.get("timeout_ms", DEFAULT_TIMEOUT_MS),
        first_byte_timeout_ms=table.values.get("first_byte_timeout_ms", DEFAULT_FIRST_BYTE_TIMEOUT_MS),
        place=_place(table, root),
    )


def _rule(table: Table, root: Path) -> Rule:
    table.only(RULE_KEYS)
    conditions = [key for key in RULE_CONDITIONS if key in table]
    when: Any = _never
    if len(conditions) != 1:
        value = " and ".join(f"`{key}`" for key in conditions)
        table.note(None, "needs exactly one condition.", value=value, do="Write one of `matches`, `equals` or `empty`.")
    elif conditions == ["matches"]:
        pattern = _pattern(table, "matches")
        when = _never if pattern is None else _Matches(pattern)
    elif conditions == ["equals"]:
        when = _Equals(table.text("equals", needed="Write the text, or use `empty = true`.").strip())
    elif table.raw("empty") is True:
        when = _is_empty
    else:
        table.note("empty", "must be true.", value=shown(table.raw("empty")))
    answer = table.text("answer", needed="Write the text that the rule answers.")
    return Rule(table.values["rule"], when=when, then=answer, place=_place(table, root))


def _accept(table: Table) -> list[Check]:
    table.only(ACCEPT_KEYS)
    checks: list[Check] = []
    for key, wanted in (("matches", True), ("not_matches", False)):
        pattern = _pattern(table, key) if key in table else None
        if pattern is not None:
            checks.append(Check(f"{key} {pattern.pattern}", _PatternTest(pattern, wanted)))
    least = table.whole("chars_min", 0, least=0) if "chars_min" in table else None
    most = table.whole("chars_max", 0, least=0) if "chars_max" in table else None
    if least is not None and most is not None and least > most:
        table.note("chars_min", "is above `chars_max`, so that no answer would be accepted.", value=shown(least))
    if least is not None:
        checks.append(Check(f"chars_min {least}", _LengthTest(least, None)))
    if most is not None:
        checks.append(Check(f"chars_max {most}", _LengthTest(None, most)))
    if not table.values:
        table.note(None, "checks nothing.", do=did_you_mean("", ACCEPT_KEYS))
    return checks


def _pattern(table: Table, key: str) -> re.Pattern[str] | None:
    text = table.text(key, needed="Write a regular expression.")
    if not text:
        return None
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        table.note(
            key,
            f"is no regular expression: {error}.",
            value=shown(text),
            do="See Python's `re`; single quotes keep backslashes.",
        )
        return None


def _place(table: Table, root: Path) -> Place:
    return Place(str(root / SETTINGS_FILE), table.line())


def _never(_conversation: Conversation) -> bool:
    return False


class _Matches:
    def __init__(self, pattern: re.Pattern[str]) -> None:
        self.pattern = pattern

    def __call__(self, conversation: Conversation) -> bool:
        return self.pattern.search(conversation.text) is not None


class _Equals:
    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, conversation: Conversation) -> bool:
        return conversation.text.strip() == self.text


def _is_empty(conversation: Conversation) -> bool:
    """No text in the last user message, and nothing else in it either, such as an image."""
    if conversation.text.strip():
        return False
    last = next((one for one in reversed(conversation.messages) if one.get("role") == "user"), None)
    content = last.get("content") if last is not None else None
    if not isinstance(content, list):
        return True
    return all(isinstance(part, Mapping) and part.get("type") == "text" for part in content)


class _PatternTest:
    def __init__(self, pattern: re.Pattern[str], wanted: bool) -> None:
        self.pattern = pattern
        self.wanted = wanted

    def __call__(self, output: str, _input: object) -> str | None:
        if (self.pattern.search(output) is not None) == self.wanted:
            return None
        return f"does {'not ' if self.wanted else ''}match {self.pattern.pattern}"


class _LengthTest:
    def __init__(self, least: int | None, most: int | None) -> None:
        self.least = least
        self.most = most

    def __call__(self, output: str, _input: object) -> str | None:
        if self.least is not None and len(output) < self.least:
            return f"{len(output)} characters, fewer than {self.least}"
        if self.most is not None and len(output) > self.most:
            return f"{len(output)} characters, more than {self.most}"
        return None
