"""Runs of evals in a project, wired: its Datasets, its Snapshot, its vault, its Reports, and what it is compared with.

Owns the order: everything that can be wrong without a Call is told first, then rows are asked, then gates are judged
once. Called by `drivetrain eval run` and by `drivetrain.run_eval`.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import msgspec

from drivetrain.adapters.files import FileVault
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.evals import Eval
from drivetrain.core.money import nano_usd
from drivetrain.core.reports import ReportV1
from drivetrain.core.scorers import scorers_of
from drivetrain.embedded.applying import person
from drivetrain.embedded.asking import lake_for
from drivetrain.embedded.eval_baseline import NOTHING_BEFORE, Baseline, baseline_of
from drivetrain.embedded.eval_owners import owned
from drivetrain.embedded.eval_recorded import keep_run
from drivetrain.embedded.evaluating import Asker, asking
from drivetrain.embedded.modelling import reports_in
from drivetrain.embedded.releasing import live_of
from drivetrain.embedded.training import datasets_in
from drivetrain.evals.cases import Case, Given, cases_of, some_of
from drivetrain.evals.eval_key import eval_key
from drivetrain.evals.gates import GateResult, judge_gates, needs_baseline, parse_gate
from drivetrain.evals.rows import Run
from drivetrain.evals.run_files import BegunV1, Kept, RunFiles
from drivetrain.evals.run_judges import EvalJudges, judges_of
from drivetrain.evals.run_report import Against, Spent, eval_report
from drivetrain.evals.running import Progress, Ran, Runner
from drivetrain.evals.scoring import CompiledScorer, compiled
from drivetrain.evals.workflow_key import workflow_key
from drivetrain.project.files import find_root
from drivetrain.project.load import load
from drivetrain.project.snapshot import Snapshot

RUN_TAG = "eval={}"
"""On every Call of a run, so that its cost can be told apart."""


def silent(stage: str, share: float) -> None:
    """Tells nobody how far it is."""


class Wished(TypedDict, total=False):
    """The fields of a Wish, as arguments."""

    against: str | None
    limit_usd: str | None
    concurrency: int | None
    repeats: int | None
    rows: int | None
    cache: bool
    fresh: bool


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """How a run is wanted, where it is not as the eval declares it."""

    against: str | None = None
    """What it is compared with: `live`, the id of a Report, or another project's folder."""
    limit_usd: str | None = None
    concurrency: int | None = None
    repeats: int | None = None
    rows: int | None = None
    """Only so many rows of each Dataset together; then it is no evidence for a Release."""
    cache: bool = True
    """Whether answers are kept, and kept ones used."""
    fresh: bool = False
    """Ask every row anew, and keep these answers in place of the old ones."""


class EvalResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a run."""

    report: ReportV1
    report_id: str
    """Empty where it was stopped before it had ended: then nothing is kept but answers."""
    run: Run
    baseline: Run | None
    gates: tuple[GateResult, ...]
    stopped: str = ""
    """Why it is not finished; empty where it is."""

    @property
    def passed(self) -> bool:
        """Whether it finished and every gate passed; a run of a part of the rows, too."""
        return not self.stopped and all(one.state == "passed" for one in self.gates)


def run_eval(
    name: str,
    project: Path | str | Snapshot | None = None,
    *,
    progress: Progress = silent,
    now_ns: Callable[[], int] = time.time_ns,
    **wish: Unpack[Wished],
) -> EvalResult:
    """Runs an eval of the project in or above a folder, and keeps its Report. wish: the fields of `Wish`.

    Costs what its Calls do, less what was answered before; a second run of the same costs nothing. Ctrl-C ends it once
    the Calls under way have ended. Raises: ProjectError, DrivetrainError; then no Call was made, or what was answered
    is kept for the next run.
    """
    snapshot = project if isinstance(project, Snapshot) else load(find_root(Path(project or Path.cwd())))
    return _EvalRun(snapshot, declared_eval(snapshot, name), Wish(**wish), progress, now_ns).run()


def declared_eval(snapshot: Snapshot, name: str) -> Eval:
    """Raises: DrivetrainError where the project declares no such eval."""
    found = snapshot.evals.get(name)
    if found is None:
        raise DrivetrainError(
            f"The project declares no eval `{name[:100]}`.",
            looked=[f"{len(snapshot.evals)} declared: {', '.join(sorted(snapshot.evals)[:20]) or 'none'}"],
            do=did_you_mean(name, snapshot.evals) if snapshot.evals else "Write a dt.Eval in `evals/`.",
        )
    return found


class _Paired(msgspec.Struct, frozen=True):
    """What a run is compared with, and why it is not finished."""

    baseline: Run | None = None
    against: Against | None = None
    stopped: str = ""
    alone: str = ""
    """Why it is its own baseline, so that nothing can be worse; empty where it is not."""


class _AskedRows(msgspec.Struct, frozen=True):
    """What rows a run is of."""

    cases: Sequence[Case]
    datasets: Sequence[str]
    partial: str
    """Why they are no evidence for a Release; empty where they are."""


class _EvalRun:
    """One run."""

    def __init__(
        self, snapshot: Snapshot, declared: Eval, wish: Wish, progress: Progress, now_ns: Callable[[], int]
    ) -> None:
        self.snapshot, self.declared, self.wish = snapshot, declared, wish
        self.progress, self.now_ns = progress, now_ns
        self.workflow = snapshot.workflows[declared.workflow]
        self.key = workflow_key(snapshot, declared.workflow)
        self.eval_key = eval_key(declared, snapshot)
        self.gates = [parse_gate(one) for one in declared.gates]
        self.repeats = _at_least_one(wish.repeats, declared.repeats, "--repeats")
        self.concurrency = _at_least_one(wish.concurrency, declared.concurrency, "--concurrency")
        self.limit = _limit(wish.limit_usd, declared)
        self.files = RunFiles(snapshot.data_folder)
        self.vault = FileVault(snapshot.keys_folder, payload_days=snapshot.ledger.payload_days)
        self.notices: list[str] = []
        self.spent = 0
        self.interrupted = False

    def run(self) -> EvalResult:
        """Raises: DrivetrainError."""
        with contextlib.ExitStack() as held:
            # Scorers that run the project's code fork, so they are there before anything starts a thread.
            scorers = {name: held.enter_context(one) for name, one in self._scorers().items()}
            held.enter_context(self.files.alone(self.declared.name))
            held.callback(self.vault.close)
            given, references = self._given()
            cases = owned(cases_of(self.declared, self.workflow, given), lake_for(self.snapshot))
            whole = len(cases)
            if self.wish.rows is not None and self.wish.rows < whole:
                cases = some_of(cases, _at_least_one(self.wish.rows, 1, "--rows"))
            wanted = self._baseline()
            ran, judges = self._ask(self.snapshot, self.key, cases, scorers)
            run = self._as_run(ran, self.key, references[0])
            paired = _Paired(stopped=self._why_stopped(ran))
            if not paired.stopped and wanted is not None:
                paired = self._compare(wanted, run, cases, scorers)
            elif not paired.stopped and any(map(needs_baseline, self.gates)):
                # The first run of all is what later ones are measured by.
                paired = _Paired(run, alone=NOTHING_BEFORE)
                self.notices.append(f"It is compared with itself: {NOTHING_BEFORE}.")
            return self._end(
                run, paired, ran, judges, _AskedRows(cases, references, self._partial(cases, whole, wanted))
            )

    def _end(self, run: Run, paired: _Paired, ran: Ran, judges: EvalJudges | None, asked: _AskedRows) -> EvalResult:
        """Gates, the Report, and what is kept."""
        baseline, stopped = paired.baseline, paired.stopped
        gates: tuple[GateResult, ...] = ()
        calibrations = judges.calibrations(run, asked.cases) if judges is not None else {}
        if not stopped:
            gates = judge_gates(
                self.gates, run, baseline, scorers=scorers_of(self.declared), calibrations=calibrations,
                alone=paired.alone,
            )  # fmt: skip
        if ran.passing:
            told = ", ".join(f"{count:,} by `{code}`" for code, count in sorted(ran.passing.items()))
            self.notices.append(
                f"Rows without an answer: {told}. They count as wrong; the next run asks them again, and no other."
            )
        report = eval_report(
            run, snapshot=self.snapshot.hash, datasets=asked.datasets, gates=gates,
            spent=Spent(now_nano_usd=self.spent, reused=ran.reused, limit_nano_usd=self.limit),
            made_ns=self.now_ns(), made_by=person(), finished=not stopped, partial=asked.partial,
            against=paired.against, baseline=baseline, calibrations=calibrations,
            notices=[*self.notices, *([stopped] if stopped else [])],
        )  # fmt: skip
        report_id = ""
        if not self.interrupted:
            report_id = reports_in(self.snapshot.data_folder, self.snapshot.keys_folder, now_ns=self.now_ns).put(report)
            run = msgspec.structs.replace(run, report=report_id)
            keep_run(self.snapshot, self.files, report, run, baseline)
        return EvalResult(
            report=report, report_id=report_id, run=run, baseline=baseline, gates=gates, stopped=stopped
        )  # fmt: skip

    def _compare(
        self, wanted: Baseline, run: Run, cases: Sequence[Case], scorers: Mapping[str, CompiledScorer]
    ) -> _Paired:
        """The baseline on the same rows; what of it was asked before is not asked again."""
        key = workflow_key(wanted.snapshot, self.declared.workflow)
        before = self.spent
        stopped = alone = ""
        if key == self.key:
            baseline, alone = run, f"the workflow answers as {wanted.what} does"
            self.notices.append(f"The workflow answers as {wanted.what} does: nothing differs.")
        else:
            ran, _ = self._ask(wanted.snapshot, key, cases, scorers)
            baseline = self._as_run(ran, key, run.dataset)
            why = self._why_stopped(ran)
            stopped = f"{why} It happened while {wanted.what} was asked, to compare with." if why else ""
        against = Against(
            what=wanted.what, workflow_key=key, snapshot=wanted.snapshot.hash, spent_nano_usd=self.spent - before
        )
        return _Paired(baseline, against, stopped, alone)

    def _ask(
        self, snapshot: Snapshot, key: str, cases: Sequence[Case], scorers: Mapping[str, CompiledScorer]
    ) -> tuple[Ran, EvalJudges | None]:
        """Every row through one Snapshot's workflow."""
        left = None if self.limit is None else max(0, self.limit - self.spent)
        declared = snapshot.workflows[self.declared.workflow]
        with (
            self.files.answers(self.declared.name, key) if self.wish.cache else Kept(None) as kept,
            asking(snapshot, concurrency=self.concurrency, limit_nano_usd=left) as asker,
            self._stopping(asker),
        ):
            if self.wish.fresh:
                kept.add(BegunV1(self.now_ns()))
            tags = (RUN_TAG.format(self.declared.name),)
            runner = Runner(
                asker, self.declared.workflow, kept, self.vault, team=declared.team,
                typed=declared.output is not None, now_ns=self.now_ns, tags=tags,
            )  # fmt: skip

            @contextlib.contextmanager
            def judging() -> Iterator[Asker]:
                """Judges are those of the project as it is, whoever is judged."""
                if snapshot is self.snapshot:
                    yield asker
                    return
                rest = None if left is None else max(0, left - asker.spent_nano_usd)
                with asking(self.snapshot, concurrency=self.concurrency, limit_nano_usd=rest) as other:
                    try:
                        with self._stopping(other):
                            yield other
                    finally:
                        self.spent += other.spent_nano_usd

            judges = judges_of(self.declared, self.snapshot, judging, kept, tags)
            if judges is not None:
                judges.check(cases)
            try:
                ran = runner.run(cases, scorers, repeats=self.repeats, judges=judges, progress=self.progress)
            finally:
                self.spent += asker.spent_nano_usd
        return ran, judges

    @contextlib.contextmanager
    def _stopping(self, asker: Asker) -> Iterator[None]:
        """The first Ctrl-C starts no further row; a second one leaves at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(*_: object) -> None:
            self.interrupted = True
            asker.stop()
            signal.signal(signal.SIGINT, before)

        before = signal.signal(signal.SIGINT, stop)
        if self.interrupted:
            asker.stop()
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _scorers(self) -> dict[str, CompiledScorer]:
        """Name -> what scores; judges are asked and not called."""
        output = self.workflow.output
        fields = [one.encode_name for one in msgspec.structs.fields(output)] if output is not None else []
        found: dict[str, CompiledScorer] = {}
        for one in scorers_of(self.declared):
            if one.kind != "judge":
                found[one.name] = compiled(one, fields, output=output)
        return found

    def _given(self) -> tuple[list[Given], list[str]]:
        """The eval's Dataset and its suites, and what they are called."""
        datasets = datasets_in(self.snapshot, now_ns=self.now_ns)
        given = []
        for suite, reference in (("", self.declared.dataset), *self.declared.suites.items()):
            found = datasets.show(reference)
            given.append(Given(found, datasets.rows(f"{found.name}@{found.number}"), suite))
        return given, [f"{one.dataset.name}@{one.dataset.number}" for one in given]

    def _baseline(self) -> Baseline | None:
        if self.wish.against is None and not any(map(needs_baseline, self.gates)):
            return None
        return baseline_of(self.snapshot, self.declared.name, self.declared.workflow, self.wish.against)

    def _partial(self, cases: Sequence[Case], whole: int, wanted: Baseline | None) -> str:
        """Why a run, though its gates may pass, justifies no Release; empty where it does."""
        if len(cases) < whole:
            return f"Only {len(cases):,} of {whole:,} rows were asked, so it justifies no Release"
        if self.repeats < self.declared.repeats:
            return f"Rows were asked {self.repeats} times and not {self.declared.repeats}, so it justifies no Release"
        if wanted is None or not any(map(needs_baseline, self.gates)):
            return ""
        live = live_of(self.snapshot.root, self.snapshot.environment)
        if live.release and live.snapshot != wanted.snapshot.hash:
            return f"It is compared with {wanted.what} and not with what is live, so it justifies no Release"
        return ""

    def _as_run(self, ran: Ran, key: str, dataset: str) -> Run:
        return Run(
            eval=self.declared.name, workflow=self.declared.workflow, workflow_key=key, eval_key=self.eval_key,
            dataset=dataset, rows=ran.rows,
        )  # fmt: skip

    def _why_stopped(self, ran: Ran) -> str:
        if ran.finished:
            return ""
        if self.interrupted:
            why = "It was stopped"
        elif self.limit is None:
            why = "It could not go on"
        else:
            why = f"It was stopped by its budget of {self.limit / 1e9:g} USD"
        return f"{why}: {ran.missing:,} answers are missing. What was answered is kept; run it again to go on."


def _at_least_one(wished: int | None, declared: int, option: str) -> int:
    found = declared if wished is None else wished
    if found < 1:
        raise DrivetrainError(f"`{option}` is at least 1, not {found}.")
    return found


def _limit(wished: str | None, declared: Eval) -> int | None:
    said: Any = declared.usd if wished is None else wished
    if said is None:
        return None
    try:
        return nano_usd(said)
    except ValueError as error:
        raise DrivetrainError(f"{error}.", do='Write an amount of USD, such as `--limit-usd "0.50"`.') from None
