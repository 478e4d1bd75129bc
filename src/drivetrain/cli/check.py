"""`drivetrain check`: every mistake in a project, from every room that knows one, and what is missing here."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import typer

from drivetrain.cli.ending import fail
from drivetrain.cli.options import Env, Json, Project
from drivetrain.core.errors import DrivetrainError, Problem, ProjectError
from drivetrain.project.snapshot import Snapshot


class CheckAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What `check --json` prints."""

    ok: bool
    snapshot: str = ""
    """The Snapshot's whole hash; empty where there are mistakes."""
    environment: str = ""
    workflows: tuple[str, ...] = ()
    trained_models: tuple[str, ...] = ()
    """As declared; whether a Dataset has their columns is found by `drivetrain train`."""
    policies: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    notices: tuple[str, ...] = ()
    """What is missing on this machine; no mistake of the project."""


def check_command(
    project: Project = None,
    env: Env = None,
    as_json: Json = False,
) -> None:
    """Check a project: every mistake at once, with its line. Exit code 1 where there is one."""
    from drivetrain.project import find_root

    try:
        answer = check_project(project or find_root(Path.cwd()), env)
    except DrivetrainError as error:
        fail(error)
    typer.echo(msgspec.json.encode(answer).decode() if as_json else _readable(answer))
    if not answer.ok:
        raise typer.Exit(1)


def check_project(root: Path, environment: str | None) -> CheckAnswer:
    """What every room says about the project in `root`."""
    from drivetrain.evals import checks as eval_checks
    from drivetrain.project import load, unload

    try:
        snapshot = load(root, environment, also=eval_checks.check)
    except ProjectError as error:
        return CheckAnswer(ok=False, problems=error.problems)
    try:
        return _check_snapshot(snapshot)
    finally:
        unload(snapshot)


def _check_snapshot(snapshot: Snapshot) -> CheckAnswer:
    from drivetrain import providers
    from drivetrain.erasure.note import unfinished
    from drivetrain.evals import checks as eval_checks
    from drivetrain.features import checks as feature_checks
    from drivetrain.policies import checks as policy_checks
    from drivetrain.policies.compile import as_policy
    from drivetrain.project.retirement import retirements
    from drivetrain.project.secrets import missing
    from drivetrain.providers.deprecation import is_deprecated

    problems = (
        *providers.check(snapshot), *feature_checks.check(snapshot), *policy_checks.check(snapshot),
        *eval_checks.check(snapshot),
    )  # fmt: skip
    notices = [str(one) for one in missing(snapshot, os.environ)]
    notices += policy_checks.notices(snapshot)
    notices += eval_checks.notices(snapshot)
    notices += [one.warning for one in retirements(snapshot, datetime.now(UTC).date(), is_deprecated) if one.warning]
    if unfinished(snapshot.keys_folder) is not None:
        notices.append("an erasure was cut off; run `drivetrain erase --resume` to finish it")
    return CheckAnswer(
        ok=not problems,
        snapshot="" if problems else snapshot.hash,
        environment=snapshot.environment,
        workflows=tuple(name for name in snapshot.workflows if name not in snapshot.direct),
        trained_models=tuple(snapshot.trained),
        policies=tuple(
            dict.fromkeys(as_policy(one.policy, one.name).name for one in snapshot.workflows.values() if one.policy)
        ),
        problems=problems,
        notices=tuple(notices),
    )


def _readable(answer: CheckAnswer) -> str:
    lines = [f"notice: {notice}" for notice in answer.notices]
    if answer.ok:
        counted = [_counted(len(answer.workflows), "workflow", "workflows")]
        if answer.trained_models:
            counted.append(_counted(len(answer.trained_models), "trained model", "trained models"))
        if answer.policies:
            counted.append(_counted(len(answer.policies), "policy", "policies"))
        lines.append(f"ok: {', '.join(counted)}, snapshot {answer.snapshot[:16]}")
    else:
        lines.append(str(ProjectError(answer.problems)))
    return "\n".join(lines)


def _counted(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"
