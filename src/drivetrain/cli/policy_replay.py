"""`drivetrain policy replay`: past Decisions under another policy, and what that would have been worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from drivetrain.cli.ending import fail, print_json
from drivetrain.cli.options import Json, Project, Until
from drivetrain.cli.places import moment_ns, plain
from drivetrain.cli.tables import Column, Grid
from drivetrain.core.errors import DrivetrainError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from drivetrain.core.reports import ReportV1
    from drivetrain.evals.policy_replay import Change, PolicyReplay
    from drivetrain.evals.worth import Worth
    from drivetrain.statistics.bootstrap import Interval
    from drivetrain.statistics.off_policy import OffPolicy

ROWS_SHOWN = 20
"""In each table for people; --json has all."""


def replay(
    name: Annotated[str, typer.Argument(help="The policy, or its workflow.")],
    *,
    candidate: Annotated[
        str | None,
        typer.Option(help="A decision table in policies/; by default the policy as the folder has it now."),
    ] = None,
    since: Annotated[str, typer.Option(help="ISO time, `today`, or how long ago: `2h`, `30d`.")] = "30d",
    until: Until = None,
    by: Annotated[
        str, typer.Option(help="Segments: `input.FIELD`, `features.NAME`, `variant`, `team`, `rule` ...")
    ] = "",
    depends_on_action: Annotated[
        bool,
        typer.Option(
            "--outcome-depends-on-action",
            help="The Outcome came about by what was done, so that only the action taken showed its gain.",
        ),
    ] = False,
    project: Project = None,
    as_json: Json = False,
) -> None:
    """Which past Decisions would change under another policy, by rule and segment, and what it would be worth."""
    from drivetrain.embedded.evidence import Evidence

    try:
        evidence = Evidence(project)
        result = evidence.replay_policy(
            name,
            candidate,
            since_ns=moment_ns(since),
            until_ns=moment_ns(until) if until else None,
            by=by,
            depends_on_action=depends_on_action,
        )
        report = evidence.replay_report(result)
        report_id = evidence.keep(report)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({"report": report_id, "verdict": report.verdict, **report.body})
        return
    show_replay(report, False, project)
    typer.echo(f"report: drivetrain report show {report_id}")


def show_replay(report: ReportV1, markdown: bool, project: Path | None) -> None:
    """A Report of kind `policy-replay`, as the command and `drivetrain report show` print it."""
    from drivetrain.cli.reports import show_any, show_lines
    from drivetrain.evals.policy_replay import PolicyReplay, worth_verdict

    try:
        result = msgspec.convert(report.body, PolicyReplay)
    except msgspec.ValidationError:  # of an earlier version
        show_any(report, markdown, project)
        return
    # The page begins with what changes, so that only a Report by itself needs the whole verdict again.
    last = report.verdict if markdown or not result.redecided else f"All in all: {worth_verdict(result)}"
    show_lines(report, list(_page(result)), last, markdown)


def _page(result: PolicyReplay) -> Iterator[str | Grid]:
    yield (
        f"{result.redecided:,} of {result.decisions:,} Decisions re-decided under version {result.candidate}; "
        f"{result.changed:,} would change: {result.changed_share:.1%} "
        f"(95 %: {result.changed_low:.1%} to {result.changed_high:.1%})"
    )
    for why, count in result.lost.items():
        yield f"not re-decided: {count:,} ({plain(why)})"
    if result.fails:
        yield f"{result.fails:,} Calls would fail: the candidate cannot decide them"
    if result.candidate_failed:
        yield f"the candidate's `otherwise` stood in for {result.candidate_failed:,}"
    yield from _changes("What would change", result.changes)
    yield from _changes("Another rule, the same action", result.rules)
    if result.segments:
        yield f"\nBy {plain(result.by)}"
        by_segment = result.worth.by_segment if result.worth is not None else {}
        columns = [
            Column(plain(result.by)), Column("Decisions", right=True), Column("change", right=True),
            Column("share", right=True), Column("USD per Decision", right=True, drop=1),
        ]  # fmt: skip
        rows = [
            [
                plain(one.name), f"{one.decisions:,}", f"{one.changed:,}", f"{one.changed / one.decisions:.1%}",
                _interval(by_segment[one.name]) if one.name in by_segment else "-",
            ]
            for one in result.segments[:ROWS_SHOWN]
        ]  # fmt: skip
        kept = None if by_segment else -1  # without gains there is no worth to show
        yield Grid(columns[:kept], [row[:kept] for row in rows])
    if result.worth is not None:
        yield from _worth(result.worth)


def _changes(title: str, changes: Sequence[Change]) -> Iterator[str | Grid]:
    if not changes:
        return
    yield f"\n{title}"
    columns = [
        Column("from"), Column("to"), Column("Decisions", right=True), Column("share", right=True),
        Column("for example", drop=1),
    ]  # fmt: skip
    rows = [
        [
            plain(_ruled(one.old_action, one.old_rule)), plain(_ruled(one.new_action, one.new_rule)),
            f"{one.decisions:,}", f"{one.share:.1%}", one.examples[0],
        ]
        for one in changes[:ROWS_SHOWN]
    ]  # fmt: skip
    yield Grid(columns, rows)
    if len(changes) > ROWS_SHOWN:
        yield f"({len(changes) - ROWS_SHOWN} more)"


def _ruled(action: str, rule: str) -> str:
    return f"{action} ({rule})" if rule else action


def _worth(known: Worth) -> Iterator[str | Grid]:
    yield f"\nWorth by the Outcome `{plain(known.metric)}`, USD per Decision with 95 % intervals"
    if known.direct is not None:
        direct = known.direct
        yield Grid(
            [Column(""), Column("USD", right=True)],
            [
                ["as decided", _interval(direct.before)],
                ["candidate", _interval(direct.candidate)],
                ["difference", _interval(direct.difference)],
            ],
        )
        yield f"over {direct.decisions:,} Decisions with an Outcome, exploration left out on both sides"
    if known.off_policy is not None:
        yield from _off_policy(known.off_policy)
    for line in known.unknown:
        yield f"! {plain(line)}"
    for need in known.needed:
        yield (
            f"  {need.calls:,} explored Calls with `{plain(need.action)}` would tell its mean gain to "
            f"+-{need.within_usd:.4g} USD; with 1 % of such Calls explored, "
            f"{need.decisions_at_one_percent:,} pass until then."
        )


def _off_policy(found: OffPolicy) -> Iterator[str | Grid]:
    if not found.by_chance:
        yield f"known of {found.known:,} of {found.calls:,} Decisions: those that stay the same"
        return
    named = (("IPS", found.ips), ("self-normalised IPS", found.snips), ("doubly robust", found.doubly_robust))
    rows = [
        [name, _interval(one.before), _interval(one.candidate), _interval(one.difference)]
        for name, one in named
        if one is not None
    ]
    if rows:
        yield Grid(
            [Column("estimated by"), Column("as decided", right=True), Column("candidate", right=True),
             Column("difference", right=True)],
            rows,
        )  # fmt: skip
        yield (
            f"over the {found.known:,} of {found.calls:,} Decisions of which it can be known; "
            f"they tell as much as {found.effective:,.0f} decided by the candidate; "
            f"largest weight {found.weight_max:.1f}"
        )


def _interval(one: Interval) -> str:
    return f"{one.value:+.4f} ({one.low:+.4f} to {one.high:+.4f})"
