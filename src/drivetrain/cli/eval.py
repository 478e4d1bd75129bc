"""`drivetrain eval`: run evals, show and compare their Reports, and grow their Datasets from failures."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from drivetrain.cli.ending import fail, print_json
from drivetrain.cli.options import Json, Project
from drivetrain.cli.places import plain
from drivetrain.cli.tables import Column, print_table
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.times import iso

if TYPE_CHECKING:
    from drivetrain.embedded.eval_runs import EvalResult

GATE_EXIT = 3
"""A gate failed, had not enough evidence, or was not judged because the run did not finish."""
STOPPED_EXIT = 130
"""As shells tell of Ctrl-C."""
LOOK_S = 1.0
"""Between two looks whether the project's files changed."""

app = typer.Typer(help="Evals: a Dataset through a workflow, scored, held against gates.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A dt.Eval of the project.")]
Against = Annotated[
    str | None, typer.Option(help="Compare with: `live`, the id of a Report, or another project's folder.")
]
Limit = Annotated[str | None, typer.Option("--limit-usd", help="What the run may cost at most, in USD.")]


@app.command("run")
def run_command(
    name: Name,
    *,
    against: Against = None,
    limit_usd: Limit = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Calls at a time.")] = None,
    repeats: Annotated[int | None, typer.Option(min=1, max=20, help="How often each row is asked.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Only so many rows; no evidence for a Release then.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Use no answer of before, and keep none.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask every row anew, and keep these answers.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the verdict alone.")] = False,
    project: Project = None,
    as_json: Json = False,
) -> None:
    """Run an eval. Exit code 3 where a gate does not pass; what was answered before is not asked again."""
    from drivetrain.embedded.eval_runs import run_eval
    from drivetrain.evals.junit import junit as as_junit

    try:
        with _progress(name, quiet=quiet or as_json) as progress:
            result = run_eval(
                name, project, progress=progress, against=against, limit_usd=limit_usd, concurrency=concurrency,
                repeats=repeats, rows=rows, cache=not no_cache, fresh=fresh,
            )  # fmt: skip
        if junit is not None:
            try:
                junit.write_text(as_junit(result.report, result.report_id), encoding="utf-8")
            except OSError as error:
                raise DrivetrainError(f"{junit} cannot be written: {error.strerror}.") from error
    except DrivetrainError as error:
        fail(error)
    _tell(result, as_json=as_json, quiet=quiet)
    raise typer.Exit(_exit_code(result))


@app.command("show")
def show_command(
    report: Annotated[str, typer.Argument(help="The id of a Report, or an eval's name for its newest one.")],
    *,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    notes: Annotated[bool, typer.Option("--notes", help="Also what scorers noted, which may quote answers.")] = False,
    project: Project = None,
    as_json: Json = False,
) -> None:
    """Show a run: gates, figures with intervals, slices, failures by cause, cost and latency."""
    from drivetrain.cli.eval_print import show_notes, show_run
    from drivetrain.embedded.eval_reports import find_report, notes_of

    try:
        found = find_report(report, project)
        noted = notes_of(found.id, project) if notes else []
    except DrivetrainError as error:
        fail(error)
    if as_json:
        shown = {"notes": msgspec.to_builtins(noted)} if notes else {}
        print_json({"id": found.id, **msgspec.to_builtins(found.report), **shown})
        return
    show_run(found.report, markdown, project)
    if notes:
        show_notes(noted, markdown)


@app.command("compare")
def compare_command(
    first: Annotated[str, typer.Argument(help="A Report's id, or an eval's name.")],
    second: Annotated[str, typer.Argument(help="As FIRST; it is told whether this one is better.")],
    *,
    margin: Annotated[float, typer.Option(min=0, max=0.5, help="How much worse still counts as good.")] = 0.0,
    project: Project = None,
    as_json: Json = False,
) -> None:
    """Compare two runs on the rows that both have; the verdict holds however often one looks."""
    from drivetrain.cli.eval_print import show_compared
    from drivetrain.embedded.eval_reports import compare_reports

    try:
        found = compare_reports(first, second, project, margin=margin)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({"id": found.id, **msgspec.to_builtins(found.report)})
        return
    show_compared(found.report, False, project)
    typer.echo(f"report: drivetrain report show {found.id}")


@app.command("watch")
def watch_command(
    name: Name,
    *,
    against: Against = None,
    limit_usd: Limit = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Only so many rows.")] = None,
    project: Project = None,
) -> None:
    """Run an eval now, and again whenever a file of the project changes, until Ctrl-C."""
    from drivetrain.embedded.eval_runs import run_eval
    from drivetrain.project import find_root
    from drivetrain.project.load import content_hash

    try:
        root = find_root(project or Path.cwd())
        seen = ""
        while True:
            now = content_hash(root)
            if now == seen:
                time.sleep(LOOK_S)
                continue
            seen = now
            try:
                with _progress(name, quiet=False) as progress:
                    result = run_eval(name, root, progress=progress, against=against, limit_usd=limit_usd, rows=rows)
            except DrivetrainError as error:
                typer.echo(plain(str(error)), err=True)
                continue
            _tell(result, as_json=False, quiet=False)
            if not result.report_id:
                raise typer.Exit(STOPPED_EXIT)
            sys.stdout.flush()
    except DrivetrainError as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(STOPPED_EXIT) from None


@app.command("add")
def add_command(
    call_id: Annotated[str, typer.Argument(help="The Call that was answered wrongly.")],
    *,
    expect: Annotated[str, typer.Option(help="What would have been right: a text, or JSON.")],
    to: Annotated[str | None, typer.Option(help="The Dataset that it is added to; made where there is none.")] = None,
    eval_name: Annotated[str | None, typer.Option("--eval", help="The eval whose Dataset it is.")] = None,
    with_value: Annotated[
        list[str] | None, typer.Option("--with", help="COLUMN=VALUE of a further column, such as a slice; repeatable.")
    ] = None,
    project: Project = None,
    as_json: Json = False,
) -> None:
    """Make a Call that went wrong a row of the next number of a Dataset."""
    from drivetrain.embedded.eval_growing import add_failure

    try:
        added = add_failure(
            call_id, expect, to=to, eval_name=eval_name, more=_values(with_value or []), project=project
        )
    except DrivetrainError as error:
        fail(error)
    made = added.dataset
    if as_json:
        print_json({"dataset": f"{made.name}@{made.number}", "rows": made.rows, "call_id": call_id,
                    "notice": added.notice})  # fmt: skip
        return
    typer.echo(f"{made.name}@{made.number}: {made.rows:,} rows, the last from {call_id}")
    if added.notice:
        typer.echo(f"note: {plain(added.notice)}")


@app.command("list")
def list_command(project: Project = None, as_json: Json = False) -> None:
    """List the project's evals with their newest Reports."""
    from drivetrain.embedded.eval_reports import standings

    try:
        found = standings(project)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({"evals": msgspec.to_builtins(found)})
    elif not found:
        typer.echo('The project declares no eval. Write `dt.Eval("NAME", dataset="...")` in `evals/`.')
    else:
        columns = [Column("eval"), Column("workflow", drop=3), Column("dataset", drop=4)]
        columns += [Column("gates", right=True, drop=5), Column("state"), Column("report"), Column("made", drop=2)]
        print_table(
            columns,
            [
                [plain(one.eval), plain(one.workflow), plain(one.dataset), str(one.gates), one.state, one.report or "-",
                 iso(one.made_ns)[:16] if one.made_ns else "-"]
                for one in found
            ],
        )  # fmt: skip


def _tell(result: EvalResult, *, as_json: bool, quiet: bool) -> None:
    from drivetrain.cli.eval_print import show_run

    if as_json:
        print_json({
            "id": result.report_id, "passed": result.passed, "stopped": result.stopped,
            **msgspec.to_builtins(result.report),
        })  # fmt: skip
        return
    if quiet:
        typer.echo(plain(result.report.verdict))
    else:
        show_run(result.report, False, None)
    if result.report_id:
        typer.echo(f"report: drivetrain eval show {result.report_id}")


def _exit_code(result: EvalResult) -> int:
    if not result.report_id:
        return STOPPED_EXIT
    return 0 if result.passed else GATE_EXIT


def _progress(name: str, *, quiet: bool) -> Any:
    """A bar where somebody looks at a terminal; else nothing."""
    from contextlib import nullcontext

    from drivetrain.embedded.eval_runs import silent
    from drivetrain.training.progress import progress_on

    return nullcontext(silent) if quiet or not sys.stderr.isatty() else progress_on(name=name)


def _values(texts: list[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        column, equals, value = text.partition("=")
        if not equals or not column.strip():
            raise DrivetrainError(f"`{text[:80]}` names no column.", do="Write COLUMN=VALUE, such as --with lang=de.")
        found[column.strip()] = value
    return found
