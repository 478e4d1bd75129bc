"""drivetrain.toml as written, and the document of one environment: its overlay merged in, each value with its line.

Knows TOML and `[env.NAME]`, and no other key. What the document says is read by `settings` and `chat_workflows`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

import msgspec

from drivetrain.core.errors import did_you_mean
from drivetrain.project.files import SETTINGS_FILE
from drivetrain.project.problems import Problems, shown
from drivetrain.project.toml_lines import TomlPath, locate

DEFAULT_ENVIRONMENT = "default"


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
