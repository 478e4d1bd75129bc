"""What `drivetrain check` asks this room: every mistake in the gates and schemas of a project's evals, and notices.

What is wrong with a declaration itself is noted while a project is loaded, by `project.eval_checks`. No row is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from drivetrain.core.errors import DrivetrainError, Problem, did_you_mean
from drivetrain.core.evals import Eval, Scorer
from drivetrain.core.scorers import scorers_of
from drivetrain.evals.gate_text import ACCURACY, PAIRED, SCORE, SLICES, Gate, parse_gate
from drivetrain.evals.json_schema import mistakes
from drivetrain.project.snapshot import Snapshot

LINES_MAX = 200
"""Below an eval's first line: so far is a gate's text looked for, to name its line."""


class Readable(Protocol):
    """A Snapshot, or as much of a project that has mistakes."""

    @property
    def evals(self) -> Mapping[str, Eval]: ...

    @property
    def root(self) -> Path: ...

    @property
    def files(self) -> Mapping[str, bytes]: ...


def check(project: Readable) -> Iterator[Problem]:
    """Every mistake in the evals' gates and in their scorers' schemas, whatever else is wrong with the evals."""
    for declared in project.evals.values():
        for text in declared.gates:
            try:
                gate = parse_gate(text)
            except DrivetrainError as error:
                yield _problem(project, declared, error.what, text, do=error.do)
                continue
            yield from _gate(project, declared, gate)
        for scorer in scorers_of(declared):
            for wrong in mistakes(_schema(scorer)) if _schema(scorer) is not None else ():
                yield _problem(project, declared, f"scorer `{scorer.name}`: {wrong}.", "json_schema")


def notices(snapshot: Snapshot) -> Iterator[str]:
    """What is worth knowing and is no mistake."""
    for declared in snapshot.evals.values():
        if not declared.gates:
            yield f"eval `{declared.name}` has no gates, so that it proves nothing for a Release"
        found = {one.name: one for one in scorers_of(declared)}
        try:
            gates = [gate for gate in map(parse_gate, declared.gates) if gate.kind in (SCORE, *PAIRED)]
            judged = [gate for gate in gates if _scorer(gate, found).kind == "judge"]
        except (DrivetrainError, KeyError):
            continue  # `check` says why
        if len(judged) < len(gates):
            continue  # another gate over a score may carry them
        for gate in judged:
            if not _scorer(gate, found).options.get("labels"):
                yield (
                    f"eval `{declared.name}`: no people's labels are named for the judge of `{gate.text}`, so that the "
                    'gate cannot pass; name their column: `dt.scorers.judge(..., labels="COLUMN")`'
                )


def _gate(project: Readable, declared: Eval, gate: Gate) -> Iterator[Problem]:
    names = [one.name for one in scorers_of(declared)]
    if gate.scorer and gate.scorer not in names:
        yield _problem(
            project, declared, f"gate `{gate.text}` names `{gate.scorer}`, which is no scorer of it.", gate.text,
            do=did_you_mean(gate.scorer, [ACCURACY, *names]),
        )  # fmt: skip
    if gate.suite and gate.suite not in declared.suites:
        do = did_you_mean(gate.suite, declared.suites)
        if not declared.suites:
            do = f'Declare it: `suites={{"{gate.suite}": "DATASET"}}`.'
        yield _problem(
            project, declared, f"gate `{gate.text}` names `{gate.suite}`, which is no suite of it.", gate.text, do=do
        )  # fmt: skip
    if gate.kind == SLICES and not declared.slices:
        yield _problem(
            project, declared, f"gate `{gate.text}` is about slices, and it has none.", gate.text,
            do='Name the columns that part its rows: `slices=["COLUMN"]`.',
        )  # fmt: skip


def _schema(scorer: Scorer) -> Any:
    return scorer.options.get("schema") if scorer.kind == "json_schema" else None


def _scorer(gate: Gate, found: Mapping[str, Scorer]) -> Scorer:
    return found[gate.scorer] if gate.scorer else next(iter(found.values()))


def _problem(project: Readable, declared: Eval, what: str, near: str, *, do: str = "") -> Problem:
    file = declared.place.file.removeprefix(f"{project.root}/")
    said = what.replace("Gate", "gate", 1) if what.startswith("Gate") else what
    return Problem(
        what=f"Eval `{declared.name}`: {said}",
        file=file, line=_line(project, file, declared.place.line, near), do=do,
    )  # fmt: skip


def _line(project: Readable, file: str, first: int, near: Any) -> int:
    """The line at which a text stands, from the declaration's first line on; that one where it is not found."""
    content = project.files.get(file, b"").decode("utf-8", "replace").splitlines()
    lines = content[first - 1 : first - 1 + LINES_MAX] if first else []
    wanted = str(near).strip()
    return next((first + place for place, line in enumerate(lines) if wanted and wanted in line), first)
