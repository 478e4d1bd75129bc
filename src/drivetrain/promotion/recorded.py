"""Which Reports of evals the control log stands for: a run wrote that it made them, and over which rows.

A Report is a file, and whoever can write to the data folder can write another one. So a gate is passed by a Report of
which the log says that a run made it, before whatever cites it. Pure. Called wherever Reports are taken as evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.releases import EVAL_RAN, EvalRanV1, EvidenceV1
from drivetrain.ports.control import ControlRecord

_RAN: msgspec.json.Decoder[EvalRanV1] = msgspec.json.Decoder(EvalRanV1)


class Ran(msgspec.Struct, frozen=True):
    """A run as the log has it."""

    seq: int
    """Of its record."""
    run: EvalRanV1


Runs = Mapping[str, Ran]
"""A Report's id -> the run that made it."""


def runs_in(records: Iterable[ControlRecord]) -> dict[str, Ran]:
    """Every run that the log tells of; of two records of one Report the first counts, so none is amended later."""
    found: dict[str, Ran] = {}
    for record in records:
        if record.kind != EVAL_RAN:
            continue
        try:
            run = _RAN.decode(record.body)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        if record.subject == subject_of_run(run.report):
            found.setdefault(run.report, Ran(record.seq, run))
    return found


def subject_of_run(report: str) -> str:
    """The subject of a run's record: the Report as lineage names it."""
    return f"report:eval@{report}"


def unrecorded(runs: Runs, report: str, needed: EvidenceV1, before_seq: int | None = None) -> str:
    """Why the log does not say that a run made this Report for this gate; empty where it does.

    before_seq: of the record that cites it; None: it is about to be cited.
    """
    ran = runs.get(report)
    if ran is None:
        return "the control log has no record of a run that made it; run the eval again"
    if (ran.run.eval, ran.run.workflow, ran.run.passed) != (needed.eval, needed.workflow, True):
        return "the control log says that its run was another one, or did not pass"
    if before_seq is not None and ran.seq > before_seq:
        return "the control log has its run only after what cites it"
    return ""


def is_older(runs: Runs, seq: int) -> bool:
    """Whether a record is from before runs were recorded at all, so that the Reports which it cites have no record.

    What was live then stays so. Nothing new is released upon such a Report.
    """
    return all(seq < one.seq for one in runs.values())


def check_recorded(records: Iterable[ControlRecord], evidence: Sequence[EvidenceV1]) -> None:
    """Raises: DrivetrainError where the log has no run that made a Report which is about to be cited."""
    cited = [one for one in evidence if one.report]
    runs = runs_in(records) if cited else {}
    for one in cited:
        why = unrecorded(runs, one.report, one)
        if why:
            raise not_proved(one, why)


def not_proved(evidence: EvidenceV1, why: str) -> DrivetrainError:
    """Why a Report is not taken, for the person who must act."""
    return DrivetrainError(
        f"Report {evidence.report} does not prove that eval {evidence.eval} of {evidence.workflow} passed: {why}.",
        do=f"Run `drivetrain eval run {evidence.eval}`: answers that are kept cost nothing. Then propose it anew.",
    )
