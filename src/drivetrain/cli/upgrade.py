"""`drivetrain upgrade`: is a candidate worth it, by the workflow's own records or by outcomes in files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from drivetrain.cli.ending import fail, print_json
from drivetrain.cli.options import Json, Project
from drivetrain.cli.places import moment_ns, plain
from drivetrain.cli.tables import print_cells
from drivetrain.core.errors import DrivetrainError

if TYPE_CHECKING:
    from drivetrain.core.reports import ReportV1
    from drivetrain.embedded.upgrading import Plan
    from drivetrain.evals.upgrading.page import Page

CELL_CHARS_MAX = 110
"""Of a table's cell on a terminal; Markdown and JSON have all of it."""
JUDGING, CHANGING, FILES = "How it is judged", "What changing over costs", "Outcomes in files"
"""Sections of the help."""
ROWS = 500
"""Calls that are replayed unless it is told otherwise: enough to see a difference of some five points."""


def upgrade_command(
    workflow: Annotated[str, typer.Argument(help="The workflow; none: only what the files hold.")] = "",
    *,
    candidate: Annotated[str, typer.Option(help="`provider/model` that is asked.")] = "",
    variant: Annotated[str, typer.Option(help="Whose model it replaces; by default the one that answers most.")] = "",
    rows: Annotated[int, typer.Option(min=1, max=5_000, help="Calls that are replayed at most.")] = ROWS,
    since: Annotated[str, typer.Option(help="ISO time, `today`, or how long ago: `2h`, `30d`.")] = "30d",
    slice_by: Annotated[
        str,
        typer.Option(
            "--slice",
            help="Judge slices too: a field of the input, `variant`, `team`, `user` or a tag; of files a column.",
        ),
    ] = "",
    expected: Annotated[
        list[str] | None,
        typer.Option(help="The Outcome's metric that says what is right, METRIC or FIELD=METRIC; of files a column."),
    ] = None,
    margin: Annotated[
        float, typer.Option(min=0, max=0.5, help="Accepted harm: 0.02 is two points.", rich_help_panel=JUDGING)
    ] = 0.0,
    limit_usd: Annotated[str, typer.Option(help="What asking the candidate may cost.")] = "",
    look_every: Annotated[int, typer.Option(min=1, help="Pairs between two looks.", rich_help_panel=JUDGING)] = 50,
    fixed: Annotated[
        bool,
        typer.Option(
            "--fixed",
            help="One look at all pairs, without an early end: more power for one number.",
            rich_help_panel=JUDGING,
        ),
    ] = False,
    reading: Annotated[
        str, typer.Option(help="How a text is read before it is compared: `last_yes_no` ...", rich_help_panel=JUDGING)
    ] = "",
    hours: Annotated[
        float, typer.Option(min=0, help="Engineering that changing over takes.", rich_help_panel=CHANGING)
    ] = 0.0,
    rate: Annotated[str, typer.Option(help="USD per hour of it.", rich_help_panel=CHANGING)] = "",
    recorded: Annotated[
        list[Path] | None,
        typer.Option(help="Files of recorded outcomes, CSV or JSON lines; nobody is asked.", rich_help_panel=FILES),
    ] = None,
    id_column: Annotated[
        str, typer.Option("--id", help="The column that tells questions apart.", rich_help_panel=FILES)
    ] = "id",
    model_column: Annotated[
        str, typer.Option(help="The column that tells whose answer a row is.", rich_help_panel=FILES)
    ] = "",
    before: Annotated[
        str, typer.Option(help="The value of --model-column, or how the columns' names begin.", rich_help_panel=FILES)
    ] = "before_",
    after: Annotated[str, typer.Option(help="As --before, of the candidate.", rich_help_panel=FILES)] = "after_",
    question: Annotated[
        str, typer.Option(help="The column of what was asked, for examples.", rich_help_panel=FILES)
    ] = "",
    answer: Annotated[str, typer.Option(help="The answers' column.", rich_help_panel=FILES)] = "",
    correct: Annotated[
        str,
        typer.Option(
            help="A column with 1 or 0; COLUMN~TEXT: right where it contains the text.", rich_help_panel=FILES
        ),
    ] = "",
    cleaned: Annotated[
        str, typer.Option(help="As --correct, of the answer without the Markdown around it.", rich_help_panel=FILES)
    ] = "",
    cost: Annotated[str, typer.Option(help="The column of costs in USD.", rich_help_panel=FILES)] = "",
    latency: Annotated[str, typer.Option(help="The column of seconds.", rich_help_panel=FILES)] = "",
    tokens: Annotated[str, typer.Option(help="The column of output tokens.", rich_help_panel=FILES)] = "",
    group: Annotated[
        str, typer.Option(help="Pairs of one value belong together, such as a person's.", rich_help_panel=FILES)
    ] = "",
    html: Annotated[Path | None, typer.Option(help="Write one self-contained HTML file, with examples quoted.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown, with examples quoted.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be asked, and its cost.")] = False,
    project: Project = None,
    as_json: Json = False,
) -> None:
    """Tell whether a candidate is worth changing to: upgrade, stay, route only these, or not enough evidence."""
    from drivetrain.embedded.upgrading import Upgrading, Wanted
    from drivetrain.evals.upgrading.recorded import Columns
    from drivetrain.evals.upgrading.verdict import Asked

    try:
        for path in (html, markdown):
            if path is not None and not path.absolute().parent.is_dir():
                raise DrivetrainError(f"{path} cannot be written: its folder is not there.", do="Make it first.")
        asked = Asked(margin=margin, look_every=look_every, fixed=fixed)
        engineering = _engineering(hours, rate)
        said = expected or []
        if recorded:
            columns = Columns(
                id=id_column, model=model_column, before=before, after=after, answer=answer,
                expected=said[0] if said else "", correct=correct, cleaned=cleaned, cost=cost, latency=latency,
                tokens=tokens, slice=slice_by, group=group, question=question,
            )  # fmt: skip
            done = Upgrading.of_files(
                recorded, columns, asked, workflow=workflow, reading=reading, engineering=engineering, project=project
            )
        else:
            _need(workflow, candidate)
            wanted = Wanted(
                workflow=workflow, candidate=candidate, variant=variant, rows=rows, since_ns=moment_ns(since),
                slice=slice_by, expected=tuple(said), reading=reading, limit_nano_usd=_money(limit_usd, "--limit-usd"),
                engineering=engineering,
            )  # fmt: skip
            upgrading = Upgrading(wanted, asked, project)
            if dry_run:
                _print_plan(upgrading.plan(), as_json)
                return
            done = upgrading.run(_progress())
        for path, kind in ((html, "html"), (markdown, "markdown")):
            if path is not None:
                done.export(path, kind)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({"report": done.report_id, "verdict": done.report.verdict, "upgrade": done.report.body})
        return
    print_page(done.page())
    for path in (html, markdown):
        if path is not None:
            typer.echo(f"written: {path}")
    if done.report_id:
        typer.echo(f"report: drivetrain report show {done.report_id}")


def show_upgrade(report: ReportV1, markdown: bool, project: Path | None) -> None:
    """A Report of kind `upgrade`, as the command and `drivetrain report show` print it."""
    from drivetrain.cli.reports import show_any
    from drivetrain.evals.upgrading import page
    from drivetrain.evals.upgrading.result import read_upgrade

    try:
        found = read_upgrade(report)
    except msgspec.ValidationError:  # of an earlier version
        show_any(report, markdown, project)
        return
    if markdown:
        typer.echo(plain(page.markdown(page.page_of(found))), nl=False)
    else:
        print_page(page.page_of(found))


def print_page(page: Page) -> None:
    """The page for a terminal."""
    typer.echo(plain(f"{page.title}\n{page.verdict}"))
    for section in page.sections:
        typer.echo(f"\n{plain(section.title)}")
        for line in section.lines:
            typer.echo(f"  {plain(line)}")
        for table in section.tables:
            print_cells(table.head, table.rows, cell_chars_max=CELL_CHARS_MAX)


def _progress() -> Callable[[str, float], None]:
    """Tells on a terminal how far it is; elsewhere nothing."""

    def tell(stage: str, share: float) -> None:
        if sys.stderr.isatty():
            typer.echo(f"\r{stage}: {share:4.0%} ", err=True, nl=share >= 1)

    return tell


def _print_plan(plan: Plan, as_json: bool) -> None:
    if as_json:
        print_json(plan)
        return
    for line in plan.lines:
        typer.echo(plain(line))


def _need(workflow: str, candidate: str) -> None:
    if not workflow:
        raise DrivetrainError(
            "Neither a workflow nor a file of recorded outcomes is named.",
            do="Write `drivetrain upgrade WORKFLOW --candidate provider/model`, or `--recorded FILE`.",
        )
    if not candidate:
        raise DrivetrainError(
            "No candidate is named.",
            do="Write `--candidate provider/model`, or `--recorded FILE` for outcomes that are recorded already.",
        )


def _engineering(hours: float, rate: str) -> tuple[float, int]:
    """(hours, nano-USD per hour)."""
    nano = _money(rate, "--rate") or 0
    if bool(hours) != bool(nano):
        raise DrivetrainError("Engineering costs hours times a rate.", do="Write both `--hours H` and `--rate USD`.")
    return hours, nano


def _money(text: str, option: str) -> int | None:
    from drivetrain.core.money import nano_usd

    if not text:
        return None
    try:
        return nano_usd(Decimal(text))
    except (ValueError, InvalidOperation):
        raise DrivetrainError(
            f"`{option} {text[:40]}` is no amount of USD.", do="Write a number such as 2.50."
        ) from None
