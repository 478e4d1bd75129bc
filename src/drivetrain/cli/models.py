"""`drivetrain models`: import trained models by conversion; show, compare, alias, prove and export their versions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from drivetrain.cli.ending import fail, print_json
from drivetrain.cli.models_print import (
    move_json,
    print_aliases,
    print_difference,
    print_moves,
    print_version,
    print_versions,
    version_json,
)
from drivetrain.cli.options import AnyJson, Project
from drivetrain.cli.places import moment_ns, plain
from drivetrain.core.errors import DrivetrainError

if TYPE_CHECKING:
    from drivetrain.registry.store import Registry

app = typer.Typer(help="Trained models: numbered versions, aliases, imports.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The model's name.")]
Reference = Annotated[str, typer.Argument(help="NAME for its newest version, NAME@ALIAS or NAME@NUMBER.")]


@app.command("import")
def import_command(
    path: Annotated[Path, typer.Argument(help="A model file, an MLflow or linear-text folder, or an archive of one.")],
    *,
    name: Annotated[str, typer.Option(help="What it is called; each import is its next version.")],
    label: Annotated[list[str] | None, typer.Option(help="Label of a class, in the order of the classes.")] = None,
    task: Annotated[str, typer.Option(help="classification, regression or ranking, where it does not tell.")] = "",
    candidates: Annotated[str, typer.Option(help="Of a ranking: the input's field that lists the candidates.")] = "",
    candidate_id: Annotated[str, typer.Option(help="Of a ranking: the candidates' field that tells them apart.")] = "",
    columns: Annotated[str, typer.Option(help="Names of its inputs in their order, comma-separated.")] = "",
    target: Annotated[str, typer.Option(help="What it predicts, as the workflow's output calls it.")] = "",
    owner: Annotated[str, typer.Option(help="Who answers for it.")] = "",
    licence: Annotated[str, typer.Option(help="Under which licence it may be used.")] = "",
    description: Annotated[str, typer.Option(help="One sentence about it.")] = "",
    dataset: Annotated[str, typer.Option(help="NAME@NUMBER of the Dataset it was trained on.")] = "",
    project: Project = None,
    as_json: AnyJson = False,
) -> None:
    """Check a model, score it once, and register it as the next version. Nothing of it is run as code."""
    from drivetrain.embedded.modelling import importer_of
    from drivetrain.registry.candidates import Terms

    try:
        terms = Terms(
            name=name, target=target, task=task, candidates=candidates, candidate_id=candidate_id,
            labels=tuple(label or ()), owner=owner, licence=licence, dataset=dataset,
            columns=tuple(one.strip() for one in columns.split(",") if one.strip()), description=description,
        )  # fmt: skip
        made = importer_of(_registry(project)).import_path(path, terms)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json(version_json(made))
        return
    typer.echo(f"{made.name}@{made.number}: {made.format}, digest {made.digest}")
    typer.echo(
        f'It is live nowhere. `drivetrain models alias {made.name} champion {made.number} --reason "..."` names it.',
        err=True,
    )


@app.command("list")
def list_command(project: Project = None, as_json: AnyJson = False) -> None:
    """List every model: its newest version and its aliases."""
    try:
        registry = _registry(project)
        found = [(registry.find(name), registry.aliases(name)) for name in registry.names()]
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({"models": [{**version_json(version), "aliases": aliases} for version, aliases in found]})
    elif found:
        print_versions(found)
    else:
        typer.echo("There is no model. `drivetrain train` and `drivetrain models import` make one.")


@app.command("show")
def show_command(reference: Reference, project: Project = None, as_json: AnyJson = False) -> None:
    """Show one version: signature, files, what it was made from, metrics; and where the aliases stand."""
    try:
        registry = _registry(project)
        found = registry.find(reference)
        numbers, aliases = registry.numbers(found.name), registry.aliases(found.name)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({**version_json(found), "numbers": numbers, "aliases": aliases})
    else:
        print_version(found, numbers, aliases)


@app.command("diff")
def diff_command(before: Reference, after: Reference, project: Project = None, as_json: AnyJson = False) -> None:
    """Say what differs: signature, metrics, thresholds, Dataset, hashes, files."""
    try:
        found = _registry(project).diff(before, after)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({**msgspec.to_builtins(found), "same": found.is_same})
    else:
        print_difference(found)


@app.command("alias")
def alias_command(
    name: Name,
    alias: Annotated[str, typer.Argument(help="champion, challenger, or a role of your own.")],
    number: Annotated[int, typer.Argument(min=1, help="The version that it stands for from now on.")],
    *,
    reason: Annotated[str, typer.Option(help="Why, in one line; the control log keeps it.")],
    project: Project = None,
    as_json: AnyJson = False,
) -> None:
    """Let an alias stand for a version. What is served now keeps its version until the project is loaded anew."""
    try:
        moved = _registry(project).move_alias(name, alias, number, reason)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json(move_json(moved))
    else:
        before = f"from {moved.before} " if moved.before else ""
        typer.echo(f"{name}@{alias}: {before}to {number}, record {moved.seq} of the control log")
        typer.echo(
            "A gateway that runs serves what it served until it loads the project anew: restart it, or send it SIGHUP. "
            "Where a Release is live the alias counts from the next one on: `drivetrain propose`.",
            err=True,
        )


@app.command("verify")
def verify_command(
    reference: Annotated[str | None, typer.Argument(help="NAME, NAME@ALIAS or NAME@NUMBER; by default all.")] = None,
    project: Project = None,
    as_json: AnyJson = False,
) -> None:
    """Check every byte, manifest, alias and the control log; exit code 1 where they differ."""
    try:
        registry = _registry(project)
        wanted = (
            [reference]
            if reference is not None
            else [f"{name}@{number}" for name in registry.names() for number in registry.numbers(name)]
        )
        found = [registry.verify(one) for one in wanted]
    except DrivetrainError as error:
        fail(error)
    for one in found:
        if as_json:
            print_json({**msgspec.to_builtins(one), "whole": one.whole})
        elif one.whole:
            typer.echo(f"whole: {one.artifact}, {one.files} files, {one.bytes:,} bytes, digest {one.digest}")
        else:
            typer.echo("\n".join(plain(f"{one.artifact}: {finding}") for finding in one.findings), err=True)
    if not found and not as_json:
        typer.echo("There is no model.")
    if not all(one.whole for one in found):
        raise typer.Exit(1)


@app.command("export")
def export_command(
    reference: Reference,
    *,
    to: Annotated[
        Path | None, typer.Option(help="A folder that is not there yet; by default NAME-NUMBER here.")
    ] = None,
    layout: Annotated[str, typer.Option("--as", help="folder; or mlflow, which cannot say all.")] = "folder",
    project: Project = None,
    as_json: AnyJson = False,
) -> None:
    """Write one version to a folder, with its manifest and a model card; the control log keeps that it was done."""
    try:
        registry = _registry(project)
        version = registry.find(reference)
        target = to if to is not None else Path(f"{version.name}-{version.number}")
        done = registry.export(f"{version.name}@{version.number}", target, layout=layout)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json(msgspec.to_builtins(done))
    else:
        typer.echo(plain(f"{done.path}: {', '.join(done.files)}"))
        for line in done.lost:
            typer.echo(f"note: {plain(line)}", err=True)


@app.command("history")
def history_command(
    name: Name,
    *,
    at: Annotated[str | None, typer.Option(help="What the aliases stood for then: an ISO time, `2h`, `today`.")] = None,
    project: Project = None,
    as_json: AnyJson = False,
) -> None:
    """Every move of its aliases, oldest first; with --at where each stood at that time."""
    try:
        registry = _registry(project)
        moves = registry.history(name)
        if at is not None:
            moment = moment_ns(at)
            moves = list({one.alias: one for one in moves if one.at_ns <= moment}.values())
        elif not moves:
            registry.find(name)  # that there is such a model
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({"name": name, "moves": [move_json(one) for one in moves]})
    elif not moves:
        typer.echo(f"{plain(name)} had no alias{' then' if at is not None else ''}.")
    elif at is not None:
        print_aliases(moves)
    else:
        print_moves(moves)


def _registry(project: Path | None) -> Registry:
    from drivetrain.cli.places import ledger_places
    from drivetrain.embedded.modelling import registry_in

    places = ledger_places(project)
    return registry_in(places.data_folder, places.keys_folder)
