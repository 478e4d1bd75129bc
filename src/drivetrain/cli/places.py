"""Where a project's records are, read from its settings alone: it works while the project's code has mistakes."""

from __future__ import annotations

import contextlib
import os
import time
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.backup import layout
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.times import NS_PER_S, duration_us, parse_iso
from drivetrain.ports.control import CONTROL_FILE
from drivetrain.project.files import find_root
from drivetrain.project.snapshot import LedgerSettings


class LedgerPlaces(msgspec.Struct, frozen=True, kw_only=True):
    """The folders of a project's ledger."""

    root: Path
    data_folder: Path
    keys_folder: Path
    payload_days: int

    @property
    def control_log(self) -> Path:
        """The control log's database."""
        return self.data_folder / CONTROL_FILE


def ledger_places(project: Path | None, environ: dict[str, str] | None = None) -> LedgerPlaces:
    """The folders named by `[ledger]` and `[env.NAME.ledger]` of the project in or above `project`, or of the cwd.

    Raises: DrivetrainError where there is no project or its TOML cannot be read.
    """
    root = find_root(project or Path.cwd())
    path = root / "drivetrain.toml"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DrivetrainError(f"{path} cannot be read: {error}.", do="Run `drivetrain check`.") from None
    declared = _table(document, "project").get("default_env")
    name = (os.environ if environ is None else environ).get("DRIVETRAIN_ENV") or declared
    overlay = _table(_table(_table(document, "env"), name), "ledger") if isinstance(name, str) else {}
    try:
        settings = msgspec.convert({**_table(document, "ledger"), **overlay}, LedgerSettings)
    except msgspec.ValidationError as error:
        raise DrivetrainError(f"`[ledger]` in {path} cannot be read: {error}.", do="Run `drivetrain check`.") from None
    layout.read_layout(root / settings.folder)
    return LedgerPlaces(
        root=root,
        data_folder=root / settings.folder,
        keys_folder=root / settings.keys_folder,
        payload_days=settings.payload_days,
    )


def moment_ns(text: str, now_ns: int | None = None) -> int:
    """`2h` (ago), `7d`, `today`, `yesterday` or an ISO time as UTC nanoseconds. Raises: DrivetrainError."""
    now = time.time_ns() if now_ns is None else now_ns
    midnight = now // (86_400 * NS_PER_S) * 86_400 * NS_PER_S
    if text in {"now", "today", "yesterday"}:
        return {"now": now, "today": midnight, "yesterday": midnight - 86_400 * NS_PER_S}[text]
    with contextlib.suppress(ValueError):
        return max(0, now - duration_us(text) * 1_000)
    try:
        return parse_iso(text)
    except ValueError:
        year = datetime.fromtimestamp(now // NS_PER_S, tz=UTC).year
        raise DrivetrainError(
            f"`{text}` is no time.",
            do=f"Write an ISO time such as {year}-01-31 or {year}-01-31T12:00, `today`, or how long ago: `2h`, `7d`.",
        ) from None


def plain(text: str) -> str:
    """`text` without control characters, so that what a client or a provider sent cannot steer the terminal."""
    return "".join(
        one if one in "\n\t" or (one.isprintable() or one == " ") else one.encode("unicode_escape").decode()
        for one in text
    )


def _table(values: dict[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name)
    return found if isinstance(found, dict) else {}
