"""`drivetrain eval add`, wired: the Call from the ledger, its payload from the vault, the Dataset's next number."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.adapters.files import FileVault
from drivetrain.core.calls import RETAINED_FULL, Call
from drivetrain.core.datasets import DatasetV1, parse_reference
from drivetrain.core.errors import DrivetrainError, RequestError
from drivetrain.embedded.asking import lake_for
from drivetrain.embedded.eval_runs import declared_eval
from drivetrain.embedded.evaluating import input_of
from drivetrain.embedded.training import datasets_in
from drivetrain.evals.growing import Failure, Growth, expected_value, grow
from drivetrain.execution.plan import compile_plans
from drivetrain.lake.calls import Calls
from drivetrain.project.files import find_root
from drivetrain.project.load import load
from drivetrain.project.snapshot import Snapshot


class Added(msgspec.Struct, frozen=True):
    """A Dataset's new number, and what is worth knowing of it."""

    dataset: DatasetV1
    notice: str = ""


def add_failure(
    call_id: str,
    expect: str,
    *,
    to: str | None = None,
    eval_name: str | None = None,
    more: Mapping[str, Any] | None = None,
    project: Path | str | None = None,
) -> Added:
    """A Call that went wrong becomes a row of the next number of a Dataset.

    expect: what would have been right, as a text or as JSON. to: the Dataset; else that of the eval. more: column ->
    value. Raises: DrivetrainError, also where the Call's payloads were not kept; then nothing is made.
    """
    snapshot = load(find_root(Path(project or Path.cwd())))
    declared = declared_eval(snapshot, eval_name) if eval_name is not None else None
    if to is None and declared is None:
        raise DrivetrainError("Which Dataset it is added to is not said.", do="Say --to DATASET or --eval NAME.")
    name = parse_reference(to if to is not None else declared.dataset if declared is not None else "").name
    call = Calls(lake_for(snapshot)).call(call_id)
    if call is None:
        raise DrivetrainError(f"There is no Call `{call_id[:100]}`.", do="`drivetrain calls` lists the newest.")
    workflow = snapshot.workflows.get(call.workflow)
    if workflow is None:
        raise DrivetrainError(f"Call {call_id} is of workflow `{call.workflow}`, which the project has no more.")
    if declared is not None and declared.workflow != call.workflow:
        raise DrivetrainError(
            f"Call {call_id} is of workflow `{call.workflow}`, and eval `{eval_name}` is of `{declared.workflow}`."
        )
    failure = Failure(
        call_id=call_id, raw=_raw(snapshot, call), expected=expected_value(expect), user=call.attribution.user,
        slices=dict(more or {}),
    )  # fmt: skip
    made = grow(
        datasets_in(snapshot), failure, Growth(name, workflow, declared), scratch=snapshot.data_folder
    )  # fmt: skip
    notice = ""
    if declared is not None and "@" in declared.dataset:
        notice = f"Eval `{eval_name}` names `{declared.dataset}`; write `{made.name}@{made.number}` to run the new one."
    return Added(made, notice)


def _raw(snapshot: Snapshot, call: Call) -> bytes:
    """What it was asked, as an input of its workflow. Raises: DrivetrainError where nobody can tell any more."""
    if call.retained != RETAINED_FULL or not call.request:
        raise DrivetrainError(
            f"What Call {call.call_id} was asked was not kept, so it cannot become a row.",
            do=f'Set `retention = "full"` for workflow `{call.workflow}`; it holds for later Calls.',
        )
    vault = FileVault(snapshot.keys_folder, payload_days=snapshot.ledger.payload_days)
    try:
        raw = vault.open(call.call_id, "request", call.request)
    except ValueError as error:
        raise DrivetrainError(f"What Call {call.call_id} was asked cannot be opened: {error}.") from None
    finally:
        vault.close()
    if raw is None:
        raise DrivetrainError(
            f"What Call {call.call_id} was asked was erased, or is older than payloads are kept.",
            do="Nothing brings it back; choose a younger Call.",
        )
    alone = msgspec.structs.replace(snapshot, workflows={call.workflow: snapshot.workflows[call.workflow]})
    plan = compile_plans(alone, lambda _reference: "nobody-is-asked").workflows[call.workflow]
    try:
        return input_of(plan, call.door, raw)
    except RequestError as error:
        raise DrivetrainError(f"Call {call.call_id} is not admitted any more: {error}") from None
