"""What `drivetrain models` prints: versions, aliases, differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from drivetrain.cli.places import plain
from drivetrain.cli.tables import Column, print_table
from drivetrain.core.models import ModelVersionV1
from drivetrain.core.times import iso

if TYPE_CHECKING:
    from drivetrain.registry.aliases import AliasMove
    from drivetrain.registry.diff import Changed, Difference

HASH_CHARS = 12
LABELS_SHOWN = 8
TEXT_CHARS_MAX = 60


def version_json(version: ModelVersionV1) -> dict[str, Any]:
    """A version as JSON has it: its manifest, with a time for people."""
    return {**msgspec.to_builtins(version), "made": iso(version.made_ns)}


def move_json(move: AliasMove) -> dict[str, Any]:
    """A move of an alias as JSON has it."""
    return {**msgspec.to_builtins(move), "at": iso(move.at_ns)}


def print_versions(found: Sequence[tuple[ModelVersionV1, Mapping[str, int]]]) -> None:
    """One line a model. An alias may stand for an older version than the newest, which the other columns tell of."""
    columns = [Column("model"), Column("aliases"), Column("newest", right=True)]
    columns += [Column("format", drop=3), Column("task", drop=4)]
    columns += [Column("made", drop=2), Column("dataset", drop=5), Column("digest", drop=1)]
    print_table(
        columns,
        [
            [
                one.name, ", ".join(f"{alias} {number}" for alias, number in aliases.items()) or "-",
                str(one.number), one.format, one.signature.task,
                iso(one.made_ns), plain(one.dataset) or "-", one.digest[:HASH_CHARS],
            ]
            for one, aliases in found
        ],
    )  # fmt: skip


def print_version(version: ModelVersionV1, numbers: Sequence[int], aliases: Mapping[str, int]) -> None:
    """All of one version."""
    signature = version.signature
    standing = ", ".join(f"{alias} {number}" for alias, number in aliases.items())
    labels = ", ".join(signature.labels[:LABELS_SHOWN])
    more = f" ... {len(signature.labels)} in all" if len(signature.labels) > LABELS_SHOWN else ""
    facts = {
        "model": f"{version.name}@{version.number} of {', '.join(map(str, numbers[-10:]))}",
        "aliases": standing or "-",
        "made": f"{iso(version.made_ns)} by {version.made_by or '-'}",
        "format": version.format,
        "digest": version.digest,
        "gives": f"{signature.target}{': ' if labels else ''}{labels}{more} ({signature.task})",
        "source": version.source,
        "dataset": version.dataset,
        "recipe": f"{version.recipe}, seed {version.seed}" if version.recipe else "",
        "report": version.report,
        "owner": version.owner,
        "licence": version.licence,
        "about": version.description,
        "metrics": ", ".join(f"{name} {value:.4g}" for name, value in version.metrics.items()),
        "accept": ", ".join(
            # With every digit: the bound was shown for this threshold, and not for a lower one.
            f"{value!r} for a risk of {float(risk) * 100:.6g} %"
            for risk, value in version.thresholds.items()
        ),
        "files": ", ".join(f"{one.path} {one.bytes:,} bytes" for one in version.files),
    }
    for name, value in facts.items():
        if value:
            typer.echo(f"{name:9} {plain(value)}")
    typer.echo("")
    print_table(
        [Column("column"), Column("type"), Column("null", drop=1), Column("values", drop=2)],
        [
            [plain(one.name), one.dtype, "yes" if one.nullable else "no", _short(", ".join(one.values))]
            for one in signature.inputs
        ],
    )


def print_difference(found: Difference) -> None:
    """What is not the same, a part a table."""
    if found.is_same:
        before, after = (one.removeprefix("model:") for one in (found.before, found.after))
        typer.echo(f"{before} and {after} are the same.")
        return
    for title, changes in (
        ("facts", found.facts), ("metrics", found.metrics), ("thresholds", found.thresholds),
        ("signature", found.signature), ("files", found.files),
    ):  # fmt: skip
        if changes:
            columns = [Column(title), Column(found.before.removeprefix("model:"), right=title == "metrics")]
            columns += [Column(found.after.removeprefix("model:"), right=title == "metrics")]
            print_table(columns, [_row(one) for one in changes])
            typer.echo("")


def print_moves(moves: Sequence[AliasMove]) -> None:
    """One line a move."""
    columns = [Column("when"), Column("alias"), Column("from", right=True), Column("to", right=True)]
    columns += [Column("by", drop=2), Column("reason", drop=1)]
    print_table(
        columns,
        [
            [iso(one.at_ns), one.alias, str(one.before or "-"), str(one.number), plain(one.actor) or "-",
             plain(one.reason)]
            for one in moves
        ],
    )  # fmt: skip


def print_aliases(moves: Sequence[AliasMove]) -> None:
    """Where each alias stood."""
    columns = [Column("alias"), Column("version", right=True), Column("since"), Column("digest", drop=1)]
    print_table(
        columns, [[one.alias, str(one.number), iso(one.at_ns), one.digest[:HASH_CHARS]] for one in moves]
    )  # fmt: skip


def _row(changed: Changed) -> list[str]:
    return [plain(changed.name), _value(changed.before), _value(changed.after)]


def _value(value: str | float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else _short(str(value))


def _short(text: str) -> str:
    shown = plain(text)
    return shown if len(shown) <= TEXT_CHARS_MAX else f"{shown[: TEXT_CHARS_MAX - 3]}..."
