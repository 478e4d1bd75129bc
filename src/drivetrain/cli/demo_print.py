"""The demo's report for people, and as one JSON object. Owns wording and layout; it computes shares, never sums."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from drivetrain.cli.demo_change import Change, NoChange
from drivetrain.cli.demo_change_print import print_change
from drivetrain.cli.demo_report import COST_SHARE_MAX, TRAINED, WITHIN, Claim, DemoReport, Share
from drivetrain.cli.demo_texts import Texts
from drivetrain.cli.demo_training import NoModel, TrainedModelOfDemo
from drivetrain.cli.demo_trials import BROKEN, QUESTION, TEAM
from drivetrain.core.money import usd

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH_MAX = 100
SNAPSHOT_DATE = re.compile(r"-\d{4}-?\d{2}-?\d{2}$")
"""Left out where people read, so that a row fits into 80 columns; JSON and the ledger have the pinned name."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where the demo is."""

    folder: Path
    url: str
    """Of the gateway, without `/v1`."""
    key: str
    """The key of team web-chat."""
    running: bool
    """Whether it stays after the report."""


def curl_line(place: Place) -> str:
    """A request to paste into a shell."""
    return (
        f"curl -s {place.url}/v1/chat/completions -H 'authorization: Bearer {place.key}' "
        "-H 'content-type: application/json' "
        f"""-d '{{"model": "assistant", "messages": [{{"role": "user", "content": "{QUESTION}"}}]}}'"""
    )


def sdk_snippet(place: Place) -> str:
    """Five lines to paste into Python, with the package `openai` installed."""
    return (
        "from openai import OpenAI\n"
        f'client = OpenAI(base_url="{place.url}/v1", api_key="{place.key}")\n'
        f'messages = [{{"role": "user", "content": "{QUESTION}"}}]\n'
        'answer = client.chat.completions.create(model="assistant", messages=messages)\n'
        "print(answer.choices[0].message.content)"
    )


def report_json(
    report: DemoReport, texts: Texts, model: TrainedModelOfDemo | NoModel, place: Place, change: Change | NoChange
) -> bytes:
    """Everything as one JSON object; money as integers of nano-USD."""
    return msgspec.json.encode(
        {
            "simulated": "answers, accuracies and delays of language models; prices and the trained model are real",
            "texts": {"name": texts.name, "attribution": texts.attribution, "messages": len(texts.examples)},
            "calls": report.calls,
            "tokens": report.tokens,
            "cost_nano_usd": report.cost_nano_usd,
            "route": [_share_json(one) for one in report.route],
            "route_total": _share_json(report.route_total),
            "frontier_only": _share_json(report.frontier_only),
            "efficient_only": _share_json(report.efficient_only),
            "untrained": _share_json(report.untrained) if report.untrained is not None else None,
            "trained": model if isinstance(model, TrainedModelOfDemo) else None,
            "not_trained": model.why if isinstance(model, NoModel) else "",
            "claim": _claim_json(report.claim) if report.claim is not None else None,
            "budget": report.budget,
            "fault": report.fault,
            "change": {**msgspec.to_builtins(change), "holds": change.holds} if isinstance(change, Change) else None,
            "not_changed": change.why if isinstance(change, NoChange) else "",
            "holds": report.holds and change.holds,
            "spend": report.spend,
            "adds_up": report.adds_up,
            "checks": report.checks,
            "problems": report.problems,
            "project": str(place.folder),
            "gateway": place.url if place.running else None,
            "curl": curl_line(place) if place.running else None,
            "sdk": sdk_snippet(place) if place.running else None,
        }
    )


def print_report(
    report: DemoReport, texts: Texts, model: TrainedModelOfDemo | NoModel, place: Place, change: Change | NoChange
) -> None:
    """The report, and how to go on from it."""
    import sys

    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    if not sys.stdout.isatty() or console.width > WIDTH_MAX:
        console = Console(highlight=False, width=WIDTH_MAX)
    console.print(f"\n[bold]{len(texts.examples):,} messages[/bold]", end="")
    console.print(f"   Texts: {texts.attribution}.", markup=False)
    console.print("What language models answer, how right and how fast, is simulated, as simulator.toml declares;")
    console.print("prices are real, and so is the trained model, every answer of it.\n")
    console.print(_route_table(report))
    console.print("Declared: a model's accuracy over all messages; `right` is over those it answered.", style="dim")
    console.print(_about(model), style="dim", markup=False)
    console.print()
    console.print(_verdict(report), style="bold")
    if report.claim is not None:
        _print_claim(report.claim, console)
    console.print()
    _print_trials(report, console)
    print_change(change, console)
    console.print(_spend_table(report))
    console.print("By variant, a call counts with each variant that it tried.\n", style="dim")
    _print_checks(report, console)
    for problem in report.problems:
        console.print(f"warning: {problem}", style="yellow", markup=False)
    _print_ways_on(place)


def usd_exact(nano: int) -> str:
    """USD with all nine decimals, so that a column adds up by eye."""
    return f"{nano // 1_000_000_000:,}.{nano % 1_000_000_000:09d}"


def _route_table(report: DemoReport) -> Table:
    table = _table("answered by", "model", "asked", "answered", "right", "declared", "USD", left=2)
    for one in report.route:
        _add(table, one.variant, one)
    table.add_section()
    _add(table, "the route", report.route_total, model="all of the above", style="bold")
    _add(table, "only frontier", report.frontier_only)
    _add(table, "only efficient", report.efficient_only)
    if report.untrained is not None:
        _add(table, "without trained", report.untrained, model="the route as it was before")
    return table


def _add(table: Table, name: str, one: Share, *, model: str = "", style: str = "") -> None:
    right = "-" if one.accuracy is None else f"{one.accuracy:.1%}"
    declared = "-" if one.accuracy_declared is None else f"{one.accuracy_declared:.0%}"
    if one.is_trained:
        model, declared = f"{one.model.removeprefix(TRAINED).replace('/', '@')}, trained here", "real"
    said = model or SNAPSHOT_DATE.sub("", one.model.partition("/")[2]) or "a rule"
    table.add_row(
        name, said, f"{one.asked:,}", f"{one.answered:,}", right, declared, usd_exact(one.cost_nano_usd), style=style
    )


def _verdict(report: DemoReport) -> str:
    route, frontier = report.route_total, report.frontier_only
    if not frontier.cost_nano_usd or route.accuracy is None or frontier.accuracy is None:
        return ""
    cost = route.cost_nano_usd / frontier.cost_nano_usd
    return (
        f"Against everything to the frontier model, the route costs {cost:.1%} "
        f"and is right {route.accuracy:.1%} of the time instead of {frontier.accuracy:.1%}."
    )


def _about(model: TrainedModelOfDemo | NoModel) -> str:
    if isinstance(model, NoModel):
        return f"The route is without a trained model: {model.why}."
    dropped = f"; {model.dropped} more were left out, because they are sent" if model.dropped else ""
    return (
        f"{model.version}: made in {model.took_s:.0f} s from {model.texts:,} texts{dropped}. It answers from a "
        f"confidence of {model.threshold:.3f} on, which its training chose for at most {model.risk:.0%} of errors."
    )


def _print_claim(claim: Claim, console: Console) -> None:
    """One line for how right, one for how dear, and what of it is real."""

    def line(what: str, holds: bool) -> None:
        said = "too few messages to tell" if claim.holds is None else "holds" if holds else "DOES NOT HOLD"
        style = "dim" if claim.holds is None else "green" if holds else "bold red"
        console.print(f"{said}: {what}", style=style, markup=False)

    line(
        f"{100 * claim.difference:+.1f} points right on the same messages, 95 % from {100 * claim.low:+.1f} to "
        f"{100 * claim.high:+.1f} (at least {-100 * WITHIN:.0f})",
        claim.is_as_right,
    )
    line(f"{claim.cost_share:.1%} of the frontier model's cost (at most {COST_SHARE_MAX:.0%})", claim.is_cheap)
    console.print(
        f"The trained model's own mistakes, {claim.trained_wrong:,} of {claim.messages:,} messages, are real; what the "
        "frontier model\nmakes of the same messages is simulated.",
        style="dim",
        markup=False,
    )


def _print_trials(report: DemoReport, console: Console) -> None:
    """Two lines each, however long the figures are."""
    budget, told, fault = report.budget, report.budget.told, report.fault
    console.print("[bold]A budget that bites, and a provider that fails[/bold]")
    style = "" if budget.kept else "bold red"
    lines = (
        f"team `{TEAM}` may spend {usd(told.cap_nano_usd)} USD a month: {budget.clients} clients at once spent "
        f"{usd_exact(budget.spent_nano_usd)}, in {budget.answered} calls",
        f"{budget.refused} more were told {told.status} {told.code}: {usd(told.left_nano_usd)} USD is left; "
        f"{told.message.rpartition('; ')[2]}",
    )
    for line in lines:
        console.print(line, style=style, markup=False, soft_wrap=True)
    style = "" if fault.kept else "bold red"
    broken = SNAPSHOT_DATE.sub("", BROKEN.partition("/")[2])
    cause = fault.why.rpartition(": ")[2].partition(";")[0]
    lines = (
        f"{broken} fails always: {fault.failed} attempts reached it, then: {cause}",
        f"{fault.answered} of {fault.calls} calls were answered all the same, for {usd(fault.cost_nano_usd)} USD; "
        f"{fault.withheld} did not ask it at all",
    )
    for line in lines:
        console.print(line, style=style, markup=False, soft_wrap=True)
    console.print()


def _spend_table(report: DemoReport) -> Table:
    table = _table("spend by", "", "calls", "tokens", "USD", left=2)
    for dimension, rows in report.spend.items():
        for place, row in enumerate(rows):
            label = dimension.replace("_", " ") if place == 0 else ""
            table.add_row(label, row.name, f"{row.calls:,}", f"{row.tokens:,}", usd_exact(row.cost_nano_usd))
        table.add_section()
    table.add_row(
        "in all", "", f"{report.calls:,}", f"{report.tokens:,}", usd_exact(report.cost_nano_usd), style="bold"
    )
    return table


def _table(*columns: str, left: int) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1), header_style="bold", show_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < left else "right", no_wrap=True)
    return table


def _print_checks(report: DemoReport, console: Console) -> None:
    if report.adds_up:
        attributions, others = report.checks[:-2], report.checks[-2:]
        total = f"{report.calls:,} calls, {report.tokens:,} tokens, {usd_exact(report.cost_nano_usd)} USD"
        console.print(
            f"adds up: {total} by every attribution "
            f"({', '.join(check.what for check in attributions)}), and by "
            f"{' and '.join(check.what for check in others)}.",
            style="green",
        )
        return
    console.print("DOES NOT ADD UP. The ledger's total is", style="bold red", end=" ")
    console.print(f"{report.calls:,} calls, {report.tokens:,} tokens, {usd_exact(report.cost_nano_usd)} USD; but by")
    for check in report.checks:
        if not check.ok:
            counts = [f"{check.calls:,} calls"] if check.calls is not None else []
            counts += [f"{check.tokens:,} tokens"] if check.tokens is not None else []
            console.print(f"  {check.what}: {', '.join([*counts, usd_exact(check.cost_nano_usd)])} USD", style="red")


def _print_ways_on(place: Place) -> None:
    """Plainly, without wrapping: these lines are pasted."""
    import typer

    where = place.folder
    if place.folder.is_relative_to(Path.cwd()):
        where = place.folder.relative_to(Path.cwd())
    typer.echo(f"\nThe project and its ledger are in {where}: look around with")
    typer.echo(f"  drivetrain cost --by team,workflow,variant --project {where}")
    if not place.running:
        return
    typer.echo(f"\nThe gateway is on {place.url}/v1, until Ctrl-C. In another terminal:\n")
    typer.echo(curl_line(place))
    typer.echo("\nor in Python:\n")
    typer.echo(sdk_snippet(place))
    typer.echo("")


def _claim_json(claim: Claim) -> dict[str, Any]:
    return {**msgspec.to_builtins(claim), "holds": claim.holds}


def _share_json(one: Share) -> dict[str, Any]:
    return {**msgspec.to_builtins(one), "accuracy": one.accuracy}
