"""What probes ask: the same few rows each time, of a Dataset that is named, that an eval has, or that is frozen now."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from drivetrain.adapters.files import FileVault
from drivetrain.core.calls import DOORS_ASIDE, RETAINED_FULL
from drivetrain.core.codec import JSON, parse_json
from drivetrain.core.datasets import ColumnV1, DatasetV1, SchemaV1
from drivetrain.core.errors import DrivetrainError, RequestError
from drivetrain.core.evals import Eval, Scorer
from drivetrain.datasets import Datasets
from drivetrain.datasets.schema import Declared
from drivetrain.datasets.sources import FromFile
from drivetrain.embedded.asking import lake_for
from drivetrain.embedded.evaluating import input_of
from drivetrain.embedded.training import datasets_in
from drivetrain.evals.cases import INPUT, MESSAGES, Case, Given, cases_of, some_of
from drivetrain.execution.plan import compile_plans
from drivetrain.lake.calls import Calls, Wanted
from drivetrain.project.snapshot import Snapshot

CALLS_SEEN_MAX = 500
"""Of the newest Calls that are looked at for rows."""
FROZEN_ROWS = 100
"""More than are asked, so that a person's erasure leaves enough."""
_ANY = Scorer(name="any", kind="matches")
"""Nothing is scored: a probe compares answers with answers."""


class Frozen(msgspec.Struct, frozen=True):
    """Rows that are asked."""

    dataset: str
    """`NAME@NUMBER`."""
    content_hash: str
    cases: tuple[Case, ...]
    present: frozenset[str]
    """Every row that the Dataset still has: what is known of the others goes with them."""


def frozen_rows(snapshot: Snapshot, workflow: str, dataset: str, *, rows: int) -> Frozen | str:
    """Rows for a workflow, always the same of one Dataset's number; a sentence where there is nothing to ask.

    dataset: empty: that of one of its evals, else one that is frozen from recent Calls.
    Raises: DrivetrainError where the Dataset is unknown or does not fit the workflow.
    """
    datasets = datasets_in(snapshot)
    evals = [one for one in snapshot.evals.values() if one.workflow == workflow]
    declared = next((one for one in evals if _is_there(datasets, one.dataset)), None) if not dataset else None
    if dataset:
        declared = next((one for one in evals if one.dataset.partition("@")[0] == dataset.partition("@")[0]), None)
        found = datasets.show(dataset)
    elif declared is not None:
        found = datasets.show(declared.dataset)
    else:
        name = f"probe-{re.sub(r'[^a-z0-9]+', '-', workflow.lower()).strip('-')}"[:64]
        made = datasets.show(name) if datasets.numbers(name) else _freeze(snapshot, workflow, name, datasets)
        if made is None:
            return "no Dataset of it is there, and no request of its Calls was kept: there is nothing to ask"
        found = made
    shown = f"{found.name}@{found.number}"
    asked = Eval(
        "probe", dataset=shown, workflow=workflow, scorers=[_ANY], inputs=declared.inputs if declared else None
    )
    cases = cases_of(asked, snapshot.workflows[workflow], [Given(found, datasets.rows(shown))])
    present = frozenset(one.row for one in cases)
    return Frozen(shown, found.content_hash, tuple(some_of(cases, rows)), present)


def _is_there(datasets: Datasets, reference: str) -> bool:
    try:
        datasets.show(reference)
    except DrivetrainError:
        return False
    return True


def _freeze(snapshot: Snapshot, workflow: str, name: str, datasets: Datasets) -> DatasetV1 | None:
    """A Dataset of what callers asked of late; None where nothing of it was kept."""
    rows = list(_recent(snapshot, workflow))
    if not rows:
        return None
    snapshot.data_folder.mkdir(parents=True, exist_ok=True)
    file = snapshot.data_folder / f"{name}.jsonl"
    whole = MESSAGES if snapshot.workflows[workflow].input is None else INPUT
    schema = SchemaV1(
        columns=(
            ColumnV1(name="call_id", type="string", unique=True, nullable=False),
            ColumnV1(name="user", type="string", personal=True, subject=True),
            ColumnV1(name=whole, type="json", personal=True, nullable=False),
        )
    )
    try:
        file.write_bytes(b"".join(JSON.encode(one) + b"\n" for one in rows))
        return datasets.create(
            name, FromFile(str(file), anywhere=True), declared=Declared(schema=schema, others="refuse")
        ).dataset
    finally:
        file.unlink(missing_ok=True)


def _recent(snapshot: Snapshot, workflow: str) -> Iterator[dict[str, Any]]:
    """Rows of different requests, the newest first."""
    plain = msgspec.structs.replace(snapshot, workflows={workflow: snapshot.workflows[workflow]})
    plan = compile_plans(plain, lambda _reference: "nobody-is-asked").workflows[workflow]
    vault = FileVault(snapshot.keys_folder, payload_days=snapshot.ledger.payload_days)
    seen: set[bytes] = set()
    try:
        wanted = Wanted(workflow=workflow, status="answered")
        for call in Calls(lake_for(snapshot)).calls(wanted, newest=CALLS_SEEN_MAX, outcomes=False):
            if call.retained != RETAINED_FULL or not call.request or call.door in DOORS_ASIDE:
                continue
            try:
                opened = vault.open(call.call_id, "request", call.request)
                raw = input_of(plan, call.door, opened) if opened is not None else None
            except (RequestError, ValueError):
                continue
            if raw is None or raw in seen or len(seen) >= FROZEN_ROWS:
                continue
            seen.add(raw)
            given = parse_json(raw)
            if plan.workflow.input is None and isinstance(given, dict):
                if not isinstance(given.get(MESSAGES), list):
                    continue
                given = given[MESSAGES]
            whole = MESSAGES if plan.workflow.input is None else INPUT
            yield {"call_id": call.call_id, "user": call.attribution.user or None, whole: given}
    finally:
        vault.close()
