"""`drivetrain report`: what trainings, replays of policies and explanations found, as kept.

Owns the list and how a Report is shown; what a kind says is told by the room that makes it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from drivetrain.cli.dataset import datasets_of
from drivetrain.cli.ending import fail, print_json
from drivetrain.cli.options import Json, Project
from drivetrain.cli.places import plain
from drivetrain.cli.tables import Column, Grid, print_cells, print_lines, print_table, whole_text
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.markup import markdown_fenced, markdown_text
from drivetrain.core.reports import REPORT_KINDS
from drivetrain.core.times import iso

if TYPE_CHECKING:
    from drivetrain.core.reports import ReportV1
    from drivetrain.registry.reports import Reports, Stored

app = typer.Typer(help="Reports: what a training, a replay or an explanation found.", no_args_is_help=True)


Shown = Callable[["ReportV1", bool, Path | None], None]
"""Prints a Report: as Markdown or for a terminal, with the project that it is from."""
RENDERERS: dict[str, tuple[str, str]] = {
    "train": ("drivetrain.cli.reports", "show_training"),
    "policy-replay": ("drivetrain.cli.policy_replay", "show_replay"),
    "explain": ("drivetrain.cli.explain", "show_explained"),
    "upgrade": ("drivetrain.cli.upgrade", "show_upgrade"),
    "eval": ("drivetrain.cli.eval_print", "show_run"),
    "eval-compare": ("drivetrain.cli.eval_print", "show_compared"),
    "rollout": ("drivetrain.cli.rollout_print", "show_rollout"),
}
"""Kind -> where its `Shown` is; any other kind is shown as its verdict, facts and body."""
VERDICT_CHARS_MAX = 100
"""Of a verdict in the list; `show` has all of it."""
_ID = re.compile(r"[0-9a-f]+")


@app.command("list")
def list_command(
    *,
    kind: Annotated[str, typer.Option(help=f"Only of this kind: {', '.join(REPORT_KINDS)}.")] = "",
    subject: Annotated[str, typer.Option(help="Only about this, such as model:triage.")] = "",
    project: Project = None,
    as_json: Json = False,
) -> None:
    """List Reports, newest first."""
    try:
        if kind and kind not in REPORT_KINDS:
            raise DrivetrainError(f"`{kind[:80]}` is no kind of Report.", do=did_you_mean(kind, REPORT_KINDS))
        found = _reports(project).list(kind, subject)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({"reports": [{"id": one.id, **_head(one)} for one in found]})
    elif not found:
        typer.echo("There is no Report. `drivetrain train NAME` makes one.")
    else:
        print_table(
            [Column("report"), Column("kind"), Column("about"), Column("made", drop=2), Column("verdict", drop=1)],
            [
                [one.id, one.report.kind, plain(one.report.subject), iso(one.report.made_ns)[:16],
                 _short(plain(one.report.verdict))]
                for one in found
            ],
        )  # fmt: skip


@app.command("show")
def show_command(
    report: Annotated[str, typer.Argument(help="Its id or 4 digits of it, or the model it tells of: NAME, NAME@N.")],
    *,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    project: Project = None,
    as_json: Json = False,
) -> None:
    """Show one Report; rows that it cites are quoted from their Dataset, except in JSON."""
    try:
        found = _reports(project).get(report if _ID.fullmatch(report) else _report_of(report, project))
        if as_json:
            print_json({"id": found.id, **msgspec.to_builtins(found.report)})
            return
        module, name = RENDERERS.get(found.report.kind, ("drivetrain.cli.reports", "show_any"))
        show: Shown = getattr(importlib.import_module(module), name)
        show(found.report, markdown, project)
    except DrivetrainError as error:
        fail(error)


def show_training(report: ReportV1, markdown: bool, project: Path | None) -> None:
    """A Report of kind `train`, with its mistakes quoted where the Dataset still has them."""
    from drivetrain.training import report_page

    try:
        quotes = report_page.read_quotes(datasets_of(project), report)
    except DrivetrainError as error:
        typer.echo(f"warning: the rows cannot be quoted: {plain(error.what)}", err=True)
        quotes = {}
    page = report_page.train_page(report, quotes)
    if markdown:
        typer.echo(plain(report_page.markdown(page)), nl=False)
        return
    typer.echo(plain(f"{page.title}\n{page.verdict}"))
    for section in page.sections:
        typer.echo(f"\n{plain(section.title)}")
        for line in section.lines:
            typer.echo(f"  {plain(line)}")
        if section.rows:
            print_cells(section.head, section.rows)


def show_any(report: ReportV1, markdown: bool, project: Path | None) -> None:
    """A Report of a kind that has no page of its own."""
    del project
    facts = [f"{name}: {value}" for name, value in report.facts.items()]
    body = msgspec.json.format(msgspec.json.encode(report.body)).decode()
    if markdown:
        listed = "".join(f"- {markdown_text(one)}\n" for one in facts)
        typer.echo(
            f"{_title(report)}\n{markdown_text(report.verdict)}\n\n{listed}\n{markdown_fenced(body, 'json')}", nl=False
        )
        return
    typer.echo(plain(f"{report.kind} of {report.subject}\n\n{report.verdict}\n"))
    for one in facts:
        typer.echo(plain(one))
    typer.echo(plain(f"\n{body}"))


def show_lines(report: ReportV1, lines: Sequence[str | Grid], last: str, markdown: bool) -> None:
    """A Report whose page is lines and tables, and what is said below them."""
    if markdown:
        typer.echo(f"{_title(report)}\n{markdown_fenced(whole_text(lines), 'text')}\n{markdown_text(last)}")
        return
    print_lines(lines)
    typer.echo(f"\n{plain(last)}")


def _title(report: ReportV1) -> str:
    return f"# {markdown_text(f'{report.kind} of {report.subject}')}\n"


def _short(text: str) -> str:
    return text if len(text) <= VERDICT_CHARS_MAX else f"{text[: VERDICT_CHARS_MAX - 3]}..."


def _head(one: Stored) -> dict[str, Any]:
    """A Report without its body."""
    return {name: value for name, value in msgspec.to_builtins(one.report).items() if name != "body"}


def _reports(project: Path | None) -> Reports:
    from drivetrain.embedded.modelling import open_reports

    return open_reports(project or Path.cwd())


def _report_of(model: str, project: Path | None) -> str:
    """The id of the Report of a version's training. Raises: DrivetrainError."""
    from drivetrain.embedded.modelling import open_registry

    try:
        version = open_registry(project or Path.cwd()).find(model)
    except DrivetrainError as error:
        raise DrivetrainError(
            f"`{model[:100]}` is neither the id of a Report nor a model with one: {error.what}",
            looked=error.looked,
            do="`drivetrain report list` tells the ids; of a training write the model's NAME or NAME@NUMBER.",
        ) from None
    if not version.report:
        raise DrivetrainError(
            f"{version.artifact} has no Report: it was not trained here.",
            do=f"`drivetrain models show {version.name}@{version.number}` tells what is known of it.",
        )
    return version.report
