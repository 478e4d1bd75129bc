"""Is a candidate worth it, wired: the ledger's Calls, the vault, a frozen Dataset, the candidate's answers, the Report.

Owns the order: everything that can be wrong without a Call is told first, then the candidate is asked. What Calls are
held against is `upgrade_calls.py`. Called by `drivetrain upgrade`.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from drivetrain.adapters.files import FileVault
from drivetrain.adapters.sqlite import open_control_log
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.money import Usage
from drivetrain.core.sql import literal
from drivetrain.core.times import NS_PER_S
from drivetrain.datasets.datasets import Datasets
from drivetrain.datasets.sources import FromCalls
from drivetrain.datasets.workplaces import staging_folder
from drivetrain.embedded.applying import person
from drivetrain.embedded.asking import lake_for
from drivetrain.embedded.evaluating import Asker, asking
from drivetrain.embedded.modelling import reports_in
from drivetrain.embedded.upgrade_calls import CALL_BYTES_MAX, LoggedCalls, Opened
from drivetrain.embedded.upgrade_pages import Done
from drivetrain.evals.cases import Case
from drivetrain.evals.past import CLUSTERS_MIN, clusters
from drivetrain.evals.run_files import Kept, RunFiles
from drivetrain.evals.run_judges import EvalJudges
from drivetrain.evals.running import Progress, Runner
from drivetrain.evals.upgrading import page as pages
from drivetrain.evals.upgrading.candidate import price_of, variant_named, variants_of, with_candidate
from drivetrain.evals.upgrading.from_files import upgrade_of_recorded
from drivetrain.evals.upgrading.judged import Judge, compares, judge_by
from drivetrain.evals.upgrading.logged import Taken, label_of, repeated_share, take
from drivetrain.evals.upgrading.marking import plausible_readings, readings_of
from drivetrain.evals.upgrading.pairs import Marked, Pair, shuffled
from drivetrain.evals.upgrading.recorded import Columns, read_recorded
from drivetrain.evals.upgrading.replaying import Replayed, Waiting, replay
from drivetrain.evals.upgrading.result import About, Spent, Upgrade, report_of, upgrade_of
from drivetrain.evals.upgrading.verdict import Asked, frame_of
from drivetrain.evals.upgrading.worth import DAYS, Traffic, engineering_of, instead_of, migration_of
from drivetrain.evals.workflow_key import workflow_key
from drivetrain.ports.disk import write_whole
from drivetrain.project.files import find_root
from drivetrain.project.load import load, unload
from drivetrain.project.snapshot import Snapshot

TAG = "upgrade"
"""On every Call of a replay, so that its cost can be told apart."""
FROZEN = "frozen-{}.json"
"""Beside a replay's answers: which Calls it is about, until it has ended."""
NAME_CHARS = 64
DAY_NS = 86_400 * NS_PER_S
"""Traffic of a shorter time is not extrapolated: it is taken for a day's."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be replayed."""

    workflow: str
    candidate: str
    """`provider/model`, or a trained model."""
    variant: str = ""
    """Whose model is replaced; empty: the one that had a part in most Calls."""
    rows: int = 500
    since_ns: int = 0
    slice: str = ""
    expected: tuple[str, ...] = ()
    """`METRIC` or `FIELD=METRIC` of Outcomes that say what is right."""
    reading: str = ""
    limit_nano_usd: int | None = None
    engineering: tuple[float, int] = (0.0, 0)
    """Hours, and nano-USD per hour."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What would be asked, and what it would cost."""

    workflow: str
    variant: str
    before: str
    after: str
    calls: int
    """That would be replayed at most; the verdict may need fewer."""
    considered: int
    """The newest Calls that they are drawn from."""
    truths: dict[str, int]
    """What they would be held against -> how many of those considered."""
    mean_nano_usd: int
    """Per Call, at the candidate's price and the tokens that were used before."""
    total_nano_usd: int
    limit_nano_usd: int | None

    @property
    def lines(self) -> tuple[str, ...]:
        """For people."""
        truths = ", ".join(f"{pages.TRUTHS[name]}: {many:,}" for name, many in self.truths.items())
        limit = "" if self.limit_nano_usd is None else f", at most {pages.usd_text(self.limit_nano_usd)}"
        return (
            f"{self.before} -> {self.after} in variant {self.variant} of workflow {self.workflow}",
            f"Calls: up to {self.calls:,} of the newest {self.considered:,}",
            f"held against: {truths}",
            f"cost: about {pages.usd_text(self.mean_nano_usd)} per Call, {pages.usd_text(self.total_nano_usd)} in "
            f"all{limit}",
        )


class Upgrading:
    """One upgrade of one workflow's variant."""

    def __init__(
        self, wanted: Wanted, asked: Asked, project: Path | None = None, *, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        """Raises: DrivetrainError where workflow, variant or candidate are not what they should be."""
        self.wanted, self.asked, self._now_ns = wanted, asked, now_ns
        self.snapshot = load(find_root(project or Path.cwd()).resolve())
        self._vault = FileVault(self.snapshot.keys_folder, payload_days=self.snapshot.ledger.payload_days)
        self.logged = LoggedCalls(
            self.snapshot, wanted.workflow, self._vault, slice_by=wanted.slice, expected=wanted.expected,
            reading=wanted.reading,
        )  # fmt: skip
        self.workflow = self.logged.workflow
        self._day = time.strftime("%Y-%m-%d", time.gmtime(now_ns() / NS_PER_S))
        self.price = price_of(self.snapshot, wanted.candidate, self._day)
        if not variants_of(self.workflow):
            raise DrivetrainError(f"Workflow `{wanted.workflow}` asks no model: there is nothing to upgrade.")
        if wanted.variant:
            variant_named(self.workflow, wanted.variant)
        self._looked: tuple[list[Opened], str] | None = None

    def plan(self) -> Plan:
        """What would be asked. Raises: DrivetrainError where nothing can be replayed."""
        found, variant_name = self._look()
        variant = variant_named(self.workflow, variant_name)
        unload(with_candidate(self.snapshot, self.workflow, variant, self.wanted.candidate))
        chosen = self.logged.worth_asking(found)
        usage = [
            Usage(
                input_tokens=sum(attempt.usage.input_tokens for attempt in one.call.attempts),
                output_tokens=sum(attempt.usage.output_tokens for attempt in one.call.attempts),
            )
            for one in chosen
        ]  # fmt: skip
        mean = sum(self.price.cost_nano_usd(one) for one in usage) // len(usage)
        calls = min(self.wanted.rows, len(chosen))
        return Plan(
            workflow=self.wanted.workflow, variant=variant_name, before=variant.model, after=self.wanted.candidate,
            calls=calls, considered=len(found), truths=self.logged.truths(chosen), mean_nano_usd=mean,
            total_nano_usd=mean * calls, limit_nano_usd=self.wanted.limit_nano_usd,
        )  # fmt: skip

    def run(self, progress: Progress = lambda _stage, _share: None) -> Done:
        """Asks the candidate until the verdict is settled. Raises: DrivetrainError."""
        found, variant_name = self._look()
        variant = variant_named(self.workflow, variant_name)
        candidate = with_candidate(self.snapshot, self.workflow, variant, self.wanted.candidate)
        key = workflow_key(candidate, self.wanted.workflow)
        files, folder = RunFiles(self.snapshot.data_folder), f"{TAG}.{_plain_name(self.wanted.workflow)}"
        with contextlib.ExitStack() as held:
            held.callback(unload, candidate)
            mark = held.enter_context(self.logged.marking())  # what runs the project's code forks, so before any thread
            held.enter_context(files.alone(folder))
            held.callback(self._vault.close)
            frozen_path = self.snapshot.data_folder / "evals" / folder / FROZEN.format(self._wish_key(key))
            frozen = _read_frozen(frozen_path) or self._freeze(found, frozen_path)
            waiting = self._waiting(frozen, found)
            if not waiting:
                frozen_path.unlink(missing_ok=True)
                raise DrivetrainError("None of the frozen Calls can be opened any more.", do="Run it again.")
            kept = held.enter_context(files.answers(folder, key))
            asker = held.enter_context(asking(candidate, limit_nano_usd=self.wanted.limit_nano_usd))
            runner = Runner(
                asker, self.wanted.workflow, kept, self._vault, team=self.workflow.team,
                typed=self.workflow.output is not None, now_ns=self._now_ns, tags=(f"{TAG}={self.wanted.workflow}",),
            )  # fmt: skip
            pairs = [one.pair for one in waiting]
            replayed = replay(
                waiting, runner, mark, self.asked, frame_of(pairs), over=lambda: asker.out_of_budget,
                progress=progress, judge=self._judge(candidate, asker, kept),
            )  # fmt: skip
            if not replayed.marked:
                raise _unanswered(replayed, self.wanted.limit_nano_usd)
            upgrade = self._upgrade(frozen, found, variant_name, pairs, replayed)
        done = self._keep(upgrade, replayed.marked, found)
        if replayed.stopped != "budget":
            frozen_path.unlink(missing_ok=True)
        return done

    @staticmethod
    def of_files(
        paths: Sequence[Path], columns: Columns, asked: Asked, *, workflow: str = "", reading: str = "",
        engineering: tuple[float, int] = (0.0, 0), project: Path | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> Done:  # fmt: skip
        """Judges recorded outcomes; the Report is kept where there is a project. Raises: DrivetrainError."""
        recorded = read_recorded(paths, columns)
        upgrade = upgrade_of_recorded(
            recorded, columns, asked, reading=reading, workflow=workflow, migration=engineering_of(*engineering)
        )
        report = report_of(upgrade, made_ns=now_ns(), made_by=person())
        snapshot = _project(project, workflow)
        report_id, control = "", None
        if snapshot is not None:
            report_id = reports_in(snapshot.data_folder, snapshot.keys_folder, now_ns=now_ns).put(report)
            control = open_control_log(snapshot.data_folder, snapshot.keys_folder)
        return Done(
            upgrade=upgrade, report=report, report_id=report_id, pairs={one.id: one for one in recorded.pairs},
            asked=recorded.asked, control=control,
        )  # fmt: skip

    def _look(self) -> tuple[list[Opened], str]:
        """The newest Calls that can be replayed, and the variant whose model is replaced."""
        if self._looked is None:
            self._looked = self.logged.newest(self.wanted.since_ns, self._now_ns(), self.wanted.variant)
        return self._looked

    def _freeze(self, found: Sequence[Opened], path: Path) -> Frozen:
        """The Calls that are replayed, as a Dataset, and noted so that a killed run goes on with the same."""
        chosen = self.logged.worth_asking(found)
        taken = take([one.seen for one in chosen], self.wanted.rows)
        lake = lake_for(self.snapshot)
        assert lake.objects is not None, "a project's lake has a place for files"
        datasets = Datasets(
            lake, lake.objects, open_control_log(self.snapshot.data_folder, self.snapshot.keys_folder),
            vault=self._vault, root=self.snapshot.root, scratch=staging_folder(self.snapshot.data_folder),
            actor=person(), now_ns=self._now_ns,
        )  # fmt: skip
        listed = ", ".join(literal(one.call_id) for one in taken)
        name = f"{TAG}-{_plain_name(self.wanted.workflow)}"[:NAME_CHARS]
        made = datasets.create(name, FromCalls(f"call_id IN ({listed})"))
        frozen = Frozen(dataset=f"{made.dataset.name}@{made.dataset.number}", taken=tuple(taken))
        write_whole(path, msgspec.json.encode(frozen))
        return frozen

    def _waiting(self, frozen: Frozen, found: Sequence[Opened]) -> list[Waiting]:
        opened = {one.seen.call_id: one for one in found}
        missing = [one.call_id for one in frozen.taken if one.call_id not in opened]
        opened |= {one.seen.call_id: one for one in self.logged.some(missing)}
        pairs, cases = [], {}
        for one in frozen.taken:
            known = opened.get(one.call_id)
            if known is not None:
                pairs.append(known.pair(one))
                cases[one.call_id] = Case(
                    row=hashlib.sha256(one.call_id.encode()).hexdigest()[:16], asked=one.call_id, raw=known.raw,
                    expected=None, values={"call_id": one.call_id}, subject=known.call.attribution.user,
                )  # fmt: skip
        if clusters([pair.group or pair.id for pair in pairs]) is None:
            pairs = [msgspec.structs.replace(pair, group="") for pair in pairs]
        return [Waiting(pair, cases[pair.id]) for pair in shuffled(pairs)]

    def _upgrade(
        self, frozen: Frozen, found: Sequence[Opened], variant_name: str, pairs: Sequence[Pair], replayed: Replayed
    ) -> Upgrade:
        variant = variant_named(self.workflow, variant_name)
        marked, left = replayed.marked, len(pairs) - len(replayed.marked)
        costs = [one.pair.after.cost_nano_usd or 0 for one in marked]
        spent = Spent(
            planned=len(pairs), asked=len(marked), nano_usd=sum(costs),
            judged_nano_usd=replayed.judged_nano_usd, saved_calls=left if replayed.stopped else 0,
            saved_nano_usd=round(sum(costs) / len(costs) * left) if replayed.stopped else 0, stopped=replayed.stopped,
        )  # fmt: skip
        about = About(
            subject=f"workflow:{self.wanted.workflow}", before=variant.model, after=self.wanted.candidate,
            variant=variant_name, scorer=self.logged.scored_by(marked), dataset=frozen.dataset,
        )  # fmt: skip
        texts = [one.pair for one in marked if one.pair.truth == "outcome"]
        readings = plausible_readings(one.expected for one in texts) if self.workflow.output is None else ()
        chosen = self.logged.read_as
        told_by = {one.pair.truth for one in marked}
        warnings = [
            f"{many:,} Calls got no answer from the provider (`{code}`) and are left out."
            for code, many in replayed.passing.items()
        ]
        if self.logged.too_large:
            large = f"{self.logged.too_large:,} Calls have a prompt or an answer of more than {CALL_BYTES_MAX:,} bytes"
            warnings.append(f"{large} and are left out.")
        if not any(pair.group for pair in pairs):
            warnings.append(f"Fewer than {CLUSTERS_MIN} people made these Calls, so each Call stands for itself.")
        if replayed.unjudged:
            warnings.append(f"Of {replayed.unjudged:,} pairs the judge said nothing that can be read: left out.")
        if "judge" in told_by:
            warnings.append("What a judge says is as good as its agreement with people, which its eval measures.")
        if replayed.reused:
            warnings.append(f"{replayed.reused:,} answers are of a run that had not ended; they were not asked again.")
        told = upgrade_of(about, marked, self.asked, spent=spent, warnings=tuple(warnings), frame=frame_of(pairs))
        verdict, engineering = told.verdict, engineering_of(*self.wanted.engineering)
        migration = migration_of(
            self.workflow, variant, spent, verdict, marked, evals=self.logged.evals, engineering=engineering
        )
        money = spent.nano_usd + sum(one.nano_usd or 0 for one in engineering)
        instead = instead_of(self._traffic(found), marked, verdict, money, variant)
        return msgspec.structs.replace(
            told, migration=migration, instead=instead,
            readings=readings_of(texts, [*dict.fromkeys((chosen, *readings))], chosen, self.asked) if readings else (),
        )  # fmt: skip

    def _judge(self, candidate: Snapshot, asker: Asker, kept: Kept) -> Judge | None:
        scorer = self.logged.judge
        if scorer is None:
            return None
        judges = EvalJudges([scorer], candidate, lambda: contextlib.nullcontext(asker), kept, (f"{TAG}=judge",))
        declared = candidate.workflows[scorer.workflow].input
        return judge_by(judges, side_by_side=declared is not None and compares(declared))

    def _traffic(self, found: Sequence[Opened]) -> Traffic:
        span_ns = max(DAY_NS, self._now_ns() - min(one.call.opened_ns for one in found))
        costs = [side.cost_nano_usd or 0 for one in found for side in (one.before,)]
        return Traffic(
            per_30_days=len(found) * DAYS * 86_400 * NS_PER_S / span_ns, mean_nano_usd=sum(costs) / len(costs),
            repeated=repeated_share([one.seen for one in found]),
            answers=tuple(label for one in found if (label := label_of(one.before))),
        )  # fmt: skip

    def _keep(self, upgrade: Upgrade, marked: Sequence[Marked], found: Sequence[Opened]) -> Done:
        report = report_of(upgrade, made_ns=self._now_ns(), made_by=person())
        data, keys = self.snapshot.data_folder, self.snapshot.keys_folder
        report_id = reports_in(data, keys, now_ns=self._now_ns).put(report)
        wanted = {one.pair.id for one in marked}
        return Done(
            upgrade=upgrade, report=report, report_id=report_id, pairs={one.pair.id: one.pair for one in marked},
            asked={one.seen.call_id: one.question for one in found if one.seen.call_id in wanted},
            control=open_control_log(data, keys),
        )  # fmt: skip

    def _wish_key(self, key: str) -> str:
        wish = msgspec.json.encode([key, self.wanted.rows, self.wanted.slice, self.wanted.expected])
        return hashlib.sha256(wish).hexdigest()[:16]


class Frozen(msgspec.Struct, frozen=True, kw_only=True, tag="upgrade.frozen.1"):
    """Which Calls a replay is about."""

    dataset: str
    taken: tuple[Taken, ...]


def _read_frozen(path: Path) -> Frozen | None:
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(path.read_bytes(), type=Frozen)
    return None


def _project(project: Path | None, workflow: str) -> Snapshot | None:
    """The project that files' outcomes belong to; None where there is none and none is needed."""
    if project is None and not workflow:
        try:
            root = find_root(Path.cwd())
        except DrivetrainError:
            return None
    else:
        root = find_root(project or Path.cwd())
    snapshot = load(root.resolve())
    if workflow and workflow not in snapshot.workflows:
        raise DrivetrainError(
            f"There is no workflow `{workflow[:80]}`. {did_you_mean(workflow, snapshot.workflows)}".rstrip()
        )
    return snapshot


def _unanswered(replayed: Replayed, limit: int | None) -> DrivetrainError:
    if replayed.passing:
        told = ", ".join(f"`{code}`: {many:,}" for code, many in replayed.passing.items())
        return DrivetrainError(f"The candidate gave no answer ({told}).", do="Run it again: the same Calls are asked.")
    if replayed.unjudged:
        return DrivetrainError(
            f"Of {replayed.unjudged:,} pairs the judge said nothing that can be read.",
            do="`drivetrain calls show` tells what it answered; say its `scale` where the eval declares it.",
        )
    return DrivetrainError(
        f"Not one Call fits {pages.usd_text(limit or 0)}.",
        do="Raise `--limit-usd`; `--dry-run` tells what it would cost.",
    )


def _plain_name(workflow: str) -> str:
    """A workflow's name as a part of names of Datasets and folders."""
    return re.sub(r"[^a-z0-9_-]", "-", workflow.lower())[:NAME_CHARS]
