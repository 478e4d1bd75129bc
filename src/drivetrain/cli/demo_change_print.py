"""How the demo's change reads: two to four lines a step. Owns wording; every figure is `demo_change`'s."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from drivetrain.cli.demo_change import CANARY_MODEL, EVAL, Change, NoChange
from drivetrain.cli.demo_traffic import CHAT, ROUTE
from drivetrain.core.money import usd

if TYPE_CHECKING:
    from rich.console import Console

SNAPSHOT_DATE = re.compile(r"-\d{4}-?\d{2}-?\d{2}$")


def print_change(change: Change | NoChange, console: Console) -> None:
    """At most 20 lines of 100 columns."""
    console.print("[bold]A change, proved and undone[/bold]")
    if isinstance(change, NoChange):
        said, style = ("left out", "dim") if change.holds else ("DOES NOT HOLD", "bold red")
        console.print(f"{said}: {change.why}\n", style=style, markup=False)
        return
    for line, holds in _lines(change):
        console.print(line, style="" if holds else "bold red", markup=False)
    console.print()


def _lines(change: Change) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it says what it is to say."""
    proof, asked, stopped, canary = change.proof, change.upgrade, change.stopped, change.canary
    live = change.before
    yield f"Release {live.release} is the project as it stands, since `{proof.eval}` passed:", True
    yield (
        f"  {proof.accuracy:.1%} right ({proof.low:.1%} to {proof.high:.1%}) on {proof.rows:,} recorded messages, "
        f"{proof.dataset}",
        True,
    )
    yield f"upgrade of `{asked.workflow}`, {_short(asked.before)} -> {_short(asked.after)}: {asked.verdict}", True
    yield f"  {asked.why}; better in {asked.better} of {asked.pairs} pairs, worse in {asked.worse}", True
    saved = f"; {asked.saved_calls} of {asked.planned} Calls were not needed" if asked.saved_calls else ""
    before, after = usd(round(asked.cost_before_nano_usd)), usd(round(asked.cost_after_nano_usd))
    yield f"  {before} -> {after} USD per Call{saved}", True
    gates = " and ".join(f"`{one}`" for one in stopped.gates) or "no gate"
    yield (
        f"proposal {stopped.proposal}, one small model for all of `{ROUTE}`: {stopped.accuracy:.1%} instead of "
        f"{stopped.accuracy_live:.1%}",
        bool(stopped.gates),
    )
    yield f"  stopped by {gates}", bool(stopped.gates)
    yield (
        f"  `drivetrain eval run {EVAL}` ended with {stopped.eval_exit}, "
        f"`drivetrain promote {stopped.proposal}` with {stopped.promote_exit}",
        bool(stopped.gates),
    )
    yield (
        f"Release {canary.release}, `{CHAT}` on {_short(CANARY_MODEL)}, a canary for {canary.share:.0%} of the users: "
        f"back by guard `{canary.guard}`",
        canary.is_undone,
    )
    yield f"  {canary.took_s:.1f} s after its first request, at {canary.at}", canary.is_undone
    yield f"  on {_evidence(canary.evidence)}", canary.is_undone
    yield (
        f"  {canary.calls:,} requests, {canary.dropped} dropped; failed: {canary.failed_by_candidate} by the "
        f"candidate, {canary.failed_by_live} by live; then {canary.afterwards_well} of {canary.afterwards} well",
        canary.is_undone,
    )
    end = change.after
    log = "whole" if change.log_whole else "NOT WHOLE"
    yield (
        f"live before: Release {live.release}, Snapshot {live.snapshot[:8]}; after: Release {end.release}, "
        f"{end.snapshot[:8]}; control log {log}: {change.log_records} records",
        change.log_whole and live == end,
    )


def _evidence(seen: dict[str, float]) -> str:
    """Both arms, as the guard saw them."""
    arms = [
        f"{arm} {seen[arm]:.1%} of {seen[f'calls_{arm}']:,.0f} Calls of {seen[f'units_{arm}']:,.0f} users"
        for arm in ("candidate", "live")
        if {arm, f"calls_{arm}", f"units_{arm}"} <= seen.keys()
    ]
    return ", ".join(arms) or "it gave no evidence"


def _short(model: str) -> str:
    return SNAPSHOT_DATE.sub("", model.partition("/")[2])
