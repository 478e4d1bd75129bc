"""`drivetrain plan` and `drivetrain propose`: what releasing the folder would change, and asking for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from drivetrain.cli.ending import fail, print_json
from drivetrain.cli.options import Env, Json, Project
from drivetrain.cli.places import plain
from drivetrain.cli.release_options import Key, Reason, builtins, place, tell_changes, tell_evidence, tell_lacks
from drivetrain.core.errors import DrivetrainError

if TYPE_CHECKING:
    from drivetrain.core.releases import ProposalV1
    from drivetrain.embedded.promoting import Planned
    from drivetrain.promotion.standing import State

CHANGES = 3
"""Exit code of `plan --exit-code` where something would change; 2 is a wrong option's."""


def plan_command(
    *,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help=f"End with {CHANGES} where something would change.")
    ] = False,
    project: Project = None,
    env: Env = None,
    as_json: Json = False,
) -> None:
    """What releasing the project's folder would change, the Reports that it lacks, and who must approve it."""
    from drivetrain.embedded import promoting

    try:
        planned = promoting.plan(place(project, env))
    except DrivetrainError as error:
        fail(error)
    if as_json:
        shown = planned.shown
        print_json(
            {
                "environment": planned.state.live.environment,
                "against": planned.against,
                "base": planned.plan.base,
                "snapshot": shown.snapshot,
                "changes": builtins(shown.changes),
                "prompts": dict(shown.prompts),
                "keys": planned.plan.keys,
                "evidence": builtins(shown.evidence),
                "lacks": list(shown.lacks),
                "unfit": list(planned.unfit),
            }
        )
    else:
        _tell(planned)
    if exit_code and planned.shown.changes:
        raise typer.Exit(CHANGES)


def propose_command(
    reason: Reason = "", key: Key = None, project: Project = None, env: Env = None, as_json: Json = False
) -> None:
    """Ask for what stands in the project's folder to be released: its Snapshot is stored, and the log says so."""
    from drivetrain.embedded import promoting
    from drivetrain.embedded.releasing import state_of

    try:
        where = place(project, env)
        proposal = promoting.propose(where, reason, key, tell=_tell_unfit).body
        state = state_of(where)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({**builtins(proposal), "hash": proposal.hash})
        return
    typer.echo(plain(f"Proposal {proposal.number} for {proposal.environment} by {proposal.by}: {proposal.hash[:16]}"))
    tell_changes(proposal.changes)
    if proposal.evidence:
        typer.echo("Gates:")
        tell_evidence(proposal.evidence)
    _tell_next(state, proposal)


def _tell_next(state: State, proposal: ProposalV1) -> None:
    """What it lacks, and the commands that lead from here to a Release."""
    from drivetrain.promotion.approving import rules_for
    from drivetrain.promotion.rights import lacking_approvals, lacking_evidence

    rules = rules_for(state, state.proposals[proposal.number])
    unproved = lacking_evidence(rules, proposal.evidence)
    unapproved = lacking_approvals(rules, proposal.changes, ())
    tell_lacks([*unproved, *unapproved])
    steps: list[str] = []
    if unproved:
        steps += dict.fromkeys(f"`drivetrain eval run {one.eval}`" for one in proposal.evidence if not one.report)
    if unapproved:
        steps.append(f"`drivetrain approve {proposal.number}` by others")
    steps.append(f"`drivetrain promote {proposal.number}`")
    typer.echo(plain(f"Next: {', then '.join(steps)}."))


def _tell_unfit(unfit: Sequence[str]) -> None:
    for one in unfit:
        typer.echo(plain(f"Not taken: {one}."), err=True)


def _tell(planned: Planned) -> None:
    shown = planned.shown
    if not shown.changes:
        typer.echo(f"Nothing changes against {planned.against}.")
        return
    typer.echo(plain(f"Against {planned.against}:"))
    tell_changes(shown.changes)
    for text in shown.prompts.values():
        typer.echo(plain(text))
    if shown.evidence:
        typer.echo("Gates:")
        tell_evidence(shown.evidence)
    tell_lacks(shown.lacks)
    _tell_unfit(planned.unfit)
