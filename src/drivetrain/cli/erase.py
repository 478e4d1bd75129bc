"""`drivetrain erase`: everything that is known of a person goes, everywhere, and a receipt stays."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from drivetrain.cli.ending import fail
from drivetrain.cli.options import Json, Project
from drivetrain.cli.places import plain
from drivetrain.core.errors import DrivetrainError

if TYPE_CHECKING:
    from drivetrain.erasure.receipt import Elsewhere, Places, Receipt

SAID = {
    "keys": "destroying the keys of what they said and heard",
    "segments": "having writers leave their segments, and rolling those into the lake",
    "count": "looking what there is",
    "evals": "taking whose they are from rows of evals",
    "calls": "taking their name from their Calls",
    "datasets": "taking their rows from Datasets",
}
"""Steps that may take long -> what is told of them."""


def erase_command(
    subject: Annotated[
        str | None, typer.Option(help="The user, as x-drivetrain-user named them; else the key's name, else the team.")
    ] = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what there is, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Finish an erasure that was cut off.")] = False,
    project: Project = None,
    as_json: Json = False,
) -> None:
    """Erase a person: keys, Calls, Outcomes, Datasets, features, copies. It cannot be undone; totals stay."""
    from drivetrain.embedded.erasing import erasure

    def said(step: str) -> None:
        if step in SAID and not as_json:
            typer.echo(f"{SAID[step]} ...", err=True)

    try:
        if (subject is None) is not resume:
            raise DrivetrainError("Say whom to erase.", do="Give --subject ID, or --resume to finish one cut off.")
        with erasure(project, on_step=said) as work:
            if subject is None:
                receipt = work.resume()
                if receipt is None:
                    typer.echo("no erasure was cut off", err=True)
                    return
            else:
                if dry_run or not yes:
                    places, others = work.look(subject)
                    if dry_run or not places.any:
                        _show(subject, places, others, as_json)
                        raise typer.Exit(0 if places.any else 1)
                    _ask(subject, places, others)
                receipt = work.erase(subject)
                if receipt is None:
                    _show(subject, *work.look(subject), as_json)
                    raise typer.Exit(1)
        _show_receipt(receipt, as_json)
    except DrivetrainError as error:
        fail(error)


def _ask(subject: str, places: Places, others: Elsewhere) -> None:
    if not sys.stdin.isatty():
        raise DrivetrainError(
            "Nothing was erased: nobody is here who could be asked.",
            do="Look with --dry-run, then give --yes.",
        )
    _show(subject, places, others, as_json=False)
    typer.confirm("\nErase all of it? It cannot be undone", abort=True)


def _show(subject: str, places: Places, others: Elsewhere, as_json: bool) -> None:
    import msgspec

    if as_json:
        typer.echo(msgspec.json.encode({"known": places.any, "places": places, "elsewhere": others}).decode())
    elif not places.any:
        _show_nothing(subject, others)
        _show_elsewhere(others)
    else:
        _show_places(places)
        _show_elsewhere(others)


def _show_nothing(subject: str, others: Elsewhere) -> None:
    typer.echo(
        f"nothing of `{plain(subject)}` was found where persons are declared; is it spelled as `drivetrain calls show` "
        "has it?",
        err=True,
    )
    for name, places in others.entities.items():
        searched = f"{', '.join(places)} would be looked through" if places else "nothing has its keys yet"
        typer.echo(plain(f"  entity {name} has no `subject=True`: with it, {searched}"), err=True)
    unsaid = sorted({*others.untold, *others.unsaid})
    if unsaid:
        names = ", ".join(_numbered(unsaid))
        typer.echo(plain(f"  {names}: no column is marked `subject`, so that no row was looked for there"), err=True)


def _show_receipt(receipt: Receipt, as_json: bool) -> None:
    import msgspec

    if as_json:
        typer.echo(msgspec.json.encode({"known": True, **msgspec.to_builtins(receipt)}).decode())
        return
    _show_places(receipt.places)
    if receipt.answers:
        typer.echo(f"all {receipt.answers:,} answers kept for Idempotency-Keys; the keys stay known")
    _show_elsewhere(receipt.elsewhere)
    typer.echo(f"\nerased; the control log has the receipt {receipt.erasure}, of subject {receipt.digest}")


def _show_places(places: Places) -> None:
    from drivetrain.cli.tables import Column, print_table

    rows = [
        ("payload keys", places.keys),
        ("Calls", places.calls),
        ("Calls of others that name them", places.others_calls),
        ("Outcomes", places.outcomes),
        ("rows of sums whose tags name them", places.spend),
        *((f"pushed to {name}", count) for name, count in places.pushed.items()),
        *((name, count) for name, count in places.datasets.items()),
        *((f"quarantine of {name}", count) for name, count in places.quarantined.items()),
        *((f"query of {name}", 1) for name in places.described),
        *((f"{_vectors(name)}", count) for name, count in places.vectors.items()),
        ("rows of evals and their kept answers", places.eval_rows),
        ("counters of limits", places.accounts),
    ]
    print_table([Column("place"), Column("found", right=True)], [(name, f"{count:,}") for name, count in rows if count])


def _show_elsewhere(others: Elsewhere) -> None:
    told: list[tuple[str, Sequence[str]]] = [
        ("made from Datasets that lose rows; train or report anew", others.models),
        (
            "has rows in which a column that is not marked `subject` is this id; they stay",
            _numbered(list(others.unmarked)),
        ),
        ("has personal columns, and none that says whose a row is", _numbered(others.untold)),
        ("cannot be read, and may have rows of anybody: restore or delete it", _numbered(others.unreadable)),
        ("was exported from Datasets that lose rows", others.exports),
        (
            "your own file, which feature views read and nothing is erased from; where it holds the person, the next "
            "`drivetrain features materialize` brings them back",
            others.files,
        ),
        ("a system outside of the project", others.sources),
        ("was sent their Calls", others.providers),
        ("a file of the project that names them", others.declared),
        ("name them in the control log, where nothing can be changed", _records(others.control_records)),
        ("put aside by a restore, with what was there before it; delete it when you no longer need it", others.aside),
    ]
    typer.echo("\nNot erased from here, and for you to look at:")
    for what, names in told:
        if names:
            typer.echo(plain(f"  {', '.join(names)}: {what}"))
    typer.echo("  backups, other machines' data folders, and versions that an object store keeps")


def _vectors(table: str) -> str:
    """An online table as people know it: `orders@@customer` has one view, `seen@customer` a whole service."""
    name, one, rest = table.partition("@")
    if not one or table.startswith("_"):
        return f"vectors in {table}"
    return f"features of {'view' if rest.startswith('@') else 'service'} {name}"


def _records(numbers: Sequence[int]) -> list[str]:
    return [f"records {', '.join(_ranges(numbers))}"] if numbers else []


def _numbered(artifacts: Sequence[str]) -> list[str]:
    """`dataset:golden@1`, `@2` and `@3` as `dataset:golden@1-3`."""
    found: dict[str, list[int]] = {}
    for artifact in artifacts:
        name, _, number = artifact.rpartition("@")
        found.setdefault(name, []).append(int(number))
    return [f"{name}@{one}" for name, numbers in found.items() for one in _ranges(sorted(numbers))]


def _ranges(numbers: Sequence[int]) -> list[str]:
    """Rising numbers; those that follow each other as one: `3-7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return [str(first) if first == last else f"{first}-{last}" for first, last in runs]
