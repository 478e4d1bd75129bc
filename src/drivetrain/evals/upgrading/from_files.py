"""An upgrade from recorded outcomes alone: files in, everything that is known of it out. Nobody is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.scorers import READING_NAMES
from drivetrain.evals.reading import READINGS
from drivetrain.evals.upgrading.marking import marker_by, plausible_readings, readings_of
from drivetrain.evals.upgrading.pairs import shuffled
from drivetrain.evals.upgrading.recorded import Columns, Recorded, read_recorded
from drivetrain.evals.upgrading.result import About, Item, Upgrade, upgrade_of
from drivetrain.evals.upgrading.verdict import Asked

HASH_CHARS = 16
"""Of the files' hash in the Report's subject."""


def upgrade_from_files(
    paths: Sequence[Path], columns: Columns, asked: Asked, *, reading: str = "", workflow: str = "",
    migration: tuple[Item, ...] = (), seed: int = 0,
) -> Upgrade:  # fmt: skip
    """Everything about the pairs that files hold.

    reading: how answers are read; empty: the first plausible one. Every plausible reading is shown. workflow: whose
    outcomes they are; empty: the files stand for themselves. Raises: DrivetrainError.
    """
    recorded = read_recorded(paths, columns)
    return upgrade_of_recorded(
        recorded, columns, asked, reading=reading, workflow=workflow, migration=migration, seed=seed
    )


def upgrade_of_recorded(
    recorded: Recorded, columns: Columns, asked: Asked, *, reading: str = "", workflow: str = "",
    migration: tuple[Item, ...] = (), seed: int = 0,
) -> Upgrade:  # fmt: skip
    """As `upgrade_from_files`, of files that were read. seed: of the order in which pairs are looked at."""
    if reading and reading not in READINGS:
        raise DrivetrainError(
            f"`{reading[:80]}` is no way to read an answer.",
            do=f"{did_you_mean(reading, READING_NAMES)} There are {', '.join(READING_NAMES)}.".strip(),
        )
    pairs = shuffled(recorded.pairs, seed)
    plausible = () if columns.correct else plausible_readings(one.expected for one in pairs)
    if reading and not plausible:
        raise DrivetrainError(
            "The answers are scored by a column of the file, so none is read.",
            do="Leave out `--reading`, or name `--answer` and `--expected` without `--correct`.",
        )
    chosen = reading or (plausible[0] if plausible else "")
    shown = plausible if chosen in plausible else (chosen, *plausible)
    subject = f"workflow:{workflow}" if workflow else f"recorded:{recorded.hash[:HASH_CHARS]}"
    about = About(
        subject=subject, before=_name(columns.before), after=_name(columns.after), files=recorded.files,
        unpaired=recorded.unpaired,
        scorer=f"what is expected, answers read as {chosen}: {READINGS[chosen].description}" if chosen else
        f"the file's column `{columns.correct}`",
    )  # fmt: skip
    mark = marker_by(chosen or "as_is")
    return upgrade_of(
        about, [*map(mark, pairs)], asked, migration=migration,
        readings=readings_of(pairs, shown, chosen, asked) if chosen else (),
    )  # fmt: skip


def _name(said: str) -> str:
    return said.rstrip("_.- ") or said
