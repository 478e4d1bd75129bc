"""`drivetrain train`: a Dataset and a recipe become the next version of a model, with its Report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from drivetrain.cli.ending import fail, print_json
from drivetrain.cli.options import Json, Project
from drivetrain.cli.places import plain
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.recipes import (
    AnyRecipe,
    TabularClassification,
    TabularRegression,
    TextClassification,
    TrainedModel,
)

if TYPE_CHECKING:
    from drivetrain.project.snapshot import Snapshot
    from drivetrain.training.training import Made

RECIPES: dict[str, type[TextClassification] | type[TabularClassification] | type[TabularRegression]] = {
    "text": TextClassification,
    "tabular": TabularClassification,
    "regression": TabularRegression,
}

KNOWN_MAX = 20
"""Names that an error lists."""


def train_command(
    model: Annotated[str, typer.Argument(help="A dt.TrainedModel of the project, or a new name with the options.")],
    *,
    dataset: Annotated[str | None, typer.Option(help="NAME for the newest number, or NAME@NUMBER.")] = None,
    recipe: Annotated[str | None, typer.Option(help="text, tabular or regression, with its defaults.")] = None,
    label: Annotated[str | None, typer.Option(help="The column that is predicted.")] = None,
    text: Annotated[str | None, typer.Option(help="Of a text recipe: the column of the text.")] = None,
    columns: Annotated[str | None, typer.Option(help="Of a tabular recipe: inputs, comma-separated.")] = None,
    segment: Annotated[list[str] | None, typer.Option(help="Tell metrics apart by this column; repeatable.")] = None,
    risk: Annotated[list[float] | None, typer.Option(help="An error rate that gets a threshold; repeatable.")] = None,
    group_by: Annotated[str | None, typer.Option(help="Rows alike in this column stay in one fold.")] = None,
    weight: Annotated[str | None, typer.Option(help="A column of sampling weights.")] = None,
    test: Annotated[str | None, typer.Option(help="The split that nothing is chosen by. [test]")] = None,
    seed: Annotated[int | None, typer.Option(help="The same one gives the same bits.")] = None,
    project: Project = None,
    as_json: Json = False,
) -> None:
    """Train the next version of a model, judge it on rows that it did not see, and register it; no alias is moved."""
    from drivetrain.embedded.training import train
    from drivetrain.project import find_root, load

    try:
        snapshot = load(find_root(project or Path.cwd()), unresolved_models="leave")
        given = {
            "dataset": dataset, "label": label, "text": text, "segments": segment, "risks": risk,
            "group_by": group_by, "weight": weight, "test": test, "seed": seed,
        }  # fmt: skip
        declared = _declared(snapshot, model, _recipe(recipe, columns), given)
        from drivetrain.training.progress import progress_on

        with progress_on(name=model) as progress:
            made = train(declared, project=snapshot, progress=progress)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({"version": msgspec.to_builtins(made.version), "report_id": made.report_id,
                    "report": msgspec.to_builtins(made.report)})  # fmt: skip
    else:
        _print(made)


def _declared(snapshot: Snapshot, name: str, recipe: AnyRecipe | None, given: dict[str, Any]) -> TrainedModel:
    """What the project declares under that name, with the options in place of its own; or the options alone."""
    said = {key: value for key, value in given.items() if value is not None}
    before = snapshot.trained.get(name)
    if before is None:
        missing = [f"--{key}" for key in ("dataset", "label") if key not in said]
        missing += [] if recipe is not None else ["--recipe"]
        if len(missing) == 3:
            others = ", ".join(f"`{one}`" for one in sorted(snapshot.trained)[:KNOWN_MAX]) or "none"
            nearest = did_you_mean(name, snapshot.trained) if snapshot.trained else ""
            declare = f'Declare `dt.TrainedModel("{name[:100]}", ...)` in `training/`'
            raise DrivetrainError(
                f"There is no trained model `{name[:100]}`; the project declares {others}.",
                do=f"{nearest} {declare}, or say --dataset, --recipe and --label.".strip(),
            )
        if missing:
            raise DrivetrainError(
                f"The project declares no trained model `{name[:100]}`, so all of it is said by options.",
                do=f"Say {', '.join(missing)} too.",
            )
        assert recipe is not None
        return TrainedModel(name, recipe=recipe, **said)
    kept = {key: getattr(before, key) for key in (*given, "owner", "licence", "description")}
    return TrainedModel(name, recipe=recipe or before.recipe, place=before.place, **{**kept, **said})


def _recipe(name: str | None, columns: str | None) -> AnyRecipe | None:
    listed = tuple(one.strip() for one in (columns or "").split(",") if one.strip())
    if name is None:
        if listed:
            raise DrivetrainError("--columns goes with --recipe.", do="Say --recipe tabular or regression too.")
        return None
    if name not in RECIPES:
        raise DrivetrainError(f"`{name[:50]}` is no recipe.", do=did_you_mean(name, RECIPES))
    if listed and name == "text":
        raise DrivetrainError("A text recipe takes one column.", do="Name it with --text.")
    kind: Any = RECIPES[name]
    return kind(columns=listed) if listed else kind()  # type: ignore[no-any-return]


def _print(made: Made) -> None:
    from drivetrain.training.report_words import accept_lines, no_threshold_lines

    version, report = made.version, made.report
    typer.echo(f"{version.name}@{version.number}: {version.format}, from {version.dataset}, seed {version.seed}")
    typer.echo(plain(report.verdict))
    for line in accept_lines(report):
        typer.echo(f"in a route: {line}")
    for line in no_threshold_lines(report):
        typer.echo(plain(line))
    for notice in [report.body["held_out"], *report.body["notices"]]:
        if notice:
            typer.echo(f"note: {plain(notice)}")
    typer.echo(f"report: drivetrain report show {made.report_id}")
    typer.echo(
        "Nothing that is served has changed. To let it be served: "
        f'drivetrain models alias {version.name} champion {version.number} --reason "..."'
    )
