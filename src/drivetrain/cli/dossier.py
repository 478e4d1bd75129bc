"""`drivetrain dossier`: the technical file of a workflow, and model cards, made of records alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from drivetrain.cli.ending import fail, print_json
from drivetrain.cli.options import Env, Json, Project
from drivetrain.cli.places import moment_ns, plain
from drivetrain.core.errors import DrivetrainError

if TYPE_CHECKING:
    from drivetrain.embedded.dossier import DossierRoom


def dossier_command(
    workflow: Annotated[str, typer.Argument(help="The workflow.")],
    *,
    markdown: Annotated[Path | None, typer.Option(help="Write it to this file as Markdown.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write it to this file as one HTML page.")] = None,
    card: Annotated[
        Path | None, typer.Option("--model-card", help="Write the card of a trained model in Hugging Face's format.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Of --model-card: NAME or NAME@NUMBER; by default the only one of its route.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="Count Calls from then on: 30d, or an ISO time.")] = None,
    env: Env = None,
    project: Project = None,
    as_json: Json = False,
) -> None:
    """Tell what a workflow is, what was proved of it, how it is used and changed, and what is missing."""
    from drivetrain.embedded.dossier import DossierRoom
    from drivetrain.promotion import dossier_pages

    try:
        if model is not None and card is None:
            raise DrivetrainError("--model says whose card --model-card writes.", do="Add --model-card FILE.")
        room = DossierRoom(project, env)
        made = room.dossier(workflow, 0 if since is None else moment_ns(since))
        written = []
        for path, form, content in (
            (markdown, "markdown", dossier_pages.markdown), (html, "html", dossier_pages.page),
        ):  # fmt: skip
            if path is not None:
                with _written(path, content(made)):
                    room.note_export(f"workflow:{workflow}", form=form, to=path.name, snapshot=made.snapshot)
                written.append(path)
        if card is not None:
            text, version = room.model_card(model or _only_model(room, workflow))
            with _written(card, text):
                room.note_export(version.artifact, form="model card", to=card.name, digest=version.digest)
            written.append(card)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({**msgspec.to_builtins(made), "written": [str(one) for one in written]})
    elif not written:
        typer.echo(dossier_pages.markdown(made), nl=False)
    else:
        for path in written:
            typer.echo(plain(f"wrote {path}"))
        gaps = len(made.gaps)
        typer.echo(f"{gaps} known gap{'' if gaps == 1 else 's'}" if gaps else "no known gap")


def _only_model(room: DossierRoom, workflow: str) -> str:
    """The trained model of its route. Raises: DrivetrainError where there is none, or more than one."""
    found = room.models_of(workflow)
    if len(found) == 1:
        return found[0]
    raise DrivetrainError(
        f"The route of `{workflow}` names {'no trained model' if not found else 'several: ' + ', '.join(found)}.",
        do="Say whose card is meant by --model NAME@NUMBER.",
    )


@contextmanager
def _written(path: Path, text: str) -> Iterator[None]:
    """The file is there once the block, which notes it, has ended. Raises: DrivetrainError."""
    from drivetrain.ports.disk import SHARED_MODE, whole_file

    try:
        with whole_file(path, mode=SHARED_MODE) as file:
            file.write(text.encode())
            yield
    except OSError as error:
        raise DrivetrainError(f"{path} cannot be written: {error.strerror}.") from None
