"""`drivetrain explain`: what moved a metric of Decisions between two periods: models, policy, or the mix of traffic."""

from __future__ import annotations

import re
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from drivetrain.cli.ending import fail, print_json
from drivetrain.cli.options import Json, Project
from drivetrain.cli.places import moment_ns, plain
from drivetrain.cli.tables import Column, Grid
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.times import NS_PER_S, iso

if TYPE_CHECKING:
    from collections.abc import Iterator

    from drivetrain.core.reports import ReportV1
    from drivetrain.evals.explain import Explanation

DAY_NS = 86_400 * NS_PER_S
_WEEK = re.compile(r"([0-9]{4})-W([0-9]{2})")


def explain_command(
    workflow: Annotated[str, typer.Argument(help="The workflow.")],
    *,
    metric: Annotated[str, typer.Option(help="One that its policy declares in `metrics`.")],
    first: Annotated[
        str, typer.Option("--from", help="A day, a week (2026-W05), START..END, or a time: then one day from it.")
    ],
    second: Annotated[str, typer.Option("--to", help="As --from.")],
    calls: Annotated[int, typer.Option(min=1, help="Of each period at most so many are replayed.")] = 5_000,
    project: Project = None,
    as_json: Json = False,
) -> None:
    """Split a metric's change into models, policy and traffic mix, by replay, as Shapley shares over the orders."""
    from drivetrain.embedded.evidence import Evidence, Span

    try:
        spans = Span(*period_ns(first)), Span(*period_ns(second))
        evidence = Evidence(project)
        result = evidence.explain(workflow, metric, *spans, calls_max=calls)
        report = evidence.explain_report(result, workflow, *spans)
        report_id = evidence.keep(report)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({"report": report_id, "verdict": report.verdict, **report.body})
        return
    show_explained(report, False, project)
    typer.echo(f"report: drivetrain report show {report_id}")


def period_ns(text: str, now_ns: int | None = None) -> tuple[int, int]:
    """Start and end of `2026-01-31`, `2026-W05`, `yesterday`, `7d` (one day from a week ago) or `START..END`.

    Raises: DrivetrainError.
    """
    now = time.time_ns() if now_ns is None else now_ns
    start, dots, end = text.partition("..")
    if dots:
        found = period_ns(start, now)[0], moment_ns(end, now)
        if found[0] >= found[1]:
            raise DrivetrainError(f"The period `{text}` ends before it begins.", do="Write START..END.")
        return found
    week = _WEEK.fullmatch(text)
    if week is not None:
        try:
            monday = date.fromisocalendar(int(week[1]), int(week[2]), 1)
        except ValueError:
            raise DrivetrainError(f"There is no week `{text}`.", do="Write YEAR-W and 01 to 53.") from None
        begins = int(datetime(monday.year, monday.month, monday.day, tzinfo=UTC).timestamp()) * NS_PER_S
        return begins, begins + int(timedelta(days=7).total_seconds()) * NS_PER_S
    begins = moment_ns(text, now)
    return begins, begins + DAY_NS


def show_explained(report: ReportV1, markdown: bool, project: Path | None) -> None:
    """A Report of kind `explain`, as the command and `drivetrain report show` print it."""
    from drivetrain.cli.reports import show_any, show_lines
    from drivetrain.evals.explain import Explanation

    try:
        found, told = msgspec.convert(report.body, Explanation), msgspec.convert(report.body, Told)
    except msgspec.ValidationError:  # of an earlier version
        show_any(report, markdown, project)
        return
    lines = list(_page(found, told))
    for name, span in zip(("first", "second"), told.periods, strict=True):
        if span.end_ns > report.made_ns:
            lines.append(f"the {name} period was not over when this was made, at {iso(report.made_ns)[:19]}")
    show_lines(report, lines, report.verdict, markdown)


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a Report's body has beside the Explanation."""

    is_share: bool
    """Whether the metric is a share, shown in percent."""
    periods: tuple[Period, Period]
    ledger_decisions: tuple[int, int]
    """Of each period, all of them."""
    asks_usd: dict[str, float]


class Period(msgspec.Struct, frozen=True):
    """From a moment up to, and without, another."""

    start_ns: int
    end_ns: int


def _page(found: Explanation, told: Told) -> Iterator[str | Grid]:
    from drivetrain.evals.explain_report import NAMES, number, share_text
    from drivetrain.evals.explain_report import period as period_text

    is_share = told.is_share
    rows = []
    for name, span, period, decisions in zip(
        ("from", "to"), told.periods, (found.first, found.second), told.ledger_decisions, strict=True
    ):
        versions = len({state.policy for state, _ in period.states})
        models = len({state.model for state, _ in period.states})
        rows.append(
            [name, period_text(span.start_ns, span.end_ns), f"{decisions:,}", f"{period.used:,}",
             str(models), str(versions), number(period.value, is_share)]
        )  # fmt: skip
    yield Grid(
        [Column(""), Column("UTC", drop=2), Column("Decisions", right=True), Column("replayed", right=True),
         Column("routes", right=True, drop=1), Column("policies", right=True, drop=1),
         Column(plain(found.metric), right=True)],
        rows,
    )  # fmt: skip
    yield ""
    shares = []
    for share in found.shares:
        interval = share.interval
        between = "not known" if interval is None else (
            f"{number(interval.low, is_share, sign=True)} to {number(interval.high, is_share, sign=True)}"
        )  # fmt: skip
        shares.append([NAMES[share.factor], share_text(share, is_share), between])
    change = found.change
    total = [
        number(change.value, is_share, sign=True),
        f"{number(change.low, is_share, sign=True)} to {number(change.high, is_share, sign=True)}",
    ]
    yield Grid(
        [Column("what moved it", footer="change"), Column("by", right=True, footer=total[0]),
         Column("95 % interval", right=True, footer=total[1])],
        shares,
    )  # fmt: skip
    for why, count in found.lost.items():
        yield f"left out: {count:,} Decisions ({plain(why)})"
    if not found.known:
        yield from _unknown(found, told)


def _unknown(found: Explanation, told: Told) -> Iterator[str | Grid]:
    from drivetrain.evals.explain_report import number

    is_share = told.is_share
    yield "\nWhat other models would have answered cannot be known without asking them:"
    for reference, calls in found.asks.items():
        cost = told.asks_usd.get(reference)
        price = f", about {cost:.2f} USD by what its Calls in these periods cost" if cost is not None else ""
        yield f"  {calls:,} Calls to {plain(reference)}{price}"
    yield "What is known all the same, with each period's own traffic and models:"
    for name, interval in found.alone.items():
        yield (
            f"  the other period's {name.replace(' in ', ', in the ')} period: "
            f"{number(interval.value, is_share, sign=True)} "
            f"({number(interval.low, is_share, sign=True)} to {number(interval.high, is_share, sign=True)})"
        )
