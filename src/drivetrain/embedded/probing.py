"""Probes of pinned models, wired: which are due, their frozen rows, the Calls, the baseline on disk, the Report.

Called by `drivetrain probe`. Each model is asked through the
first variant that names it, alone: no rule, no other variant, no check and no policy stand between.
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any

import msgspec

from drivetrain.adapters.files import key_file
from drivetrain.adapters.sqlite import SqliteControlLog, open_control_log
from drivetrain.core.calls import EVAL
from drivetrain.core.codec import MalformedJson, parse_json
from drivetrain.core.declarations import Variant
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.reports import ReportV1
from drivetrain.embedded.applying import person
from drivetrain.embedded.evaluating import Asker, asking
from drivetrain.embedded.modelling import reports_in
from drivetrain.embedded.probe_baselines import Baselines
from drivetrain.embedded.probe_rows import Frozen, frozen_rows
from drivetrain.evals import probing
from drivetrain.evals.cases import Case
from drivetrain.evals.probing import AnswerV1, BaselineV1, Probed
from drivetrain.evals.running import answer_of
from drivetrain.evals.upgrading.candidate import price_of
from drivetrain.evals.workflow_key import route_key
from drivetrain.execution.call import CallResult
from drivetrain.project.retirement import Retirement, pinned_models, retirements
from drivetrain.project.snapshot import Snapshot
from drivetrain.providers.deprecation import is_deprecated

KEY_FILE = "probe.key"
"""In the keys folder: words of answers are hashed with it."""
ACCEPTED = "probe.accepted"
"""The control log's kind of a baseline that a person accepted; the subject is the model."""
ROWS = 30
"""Of the Dataset that are asked: a change of one answer in five is shown by as many."""
TEMPLATE_TOKENS = 200
"""Added to an input's bytes in a worst case, for what a dialect puts around messages."""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be asked."""

    dataset: str = ""
    """`NAME` or `NAME@NUMBER`; empty: the baseline's, else what `frozen_rows` finds."""
    rows: int = ROWS
    repeats: int = 1
    """Answers per row; a baseline has `probing.REPEATS` at least."""
    accept: bool = False
    """Whether it makes a new baseline, whatever was before."""


USUAL = Wish()


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """One model that is about to be probed."""

    model: str
    workflow: str
    variant: str
    workflows: tuple[str, ...]
    """All whose routes name it."""
    frozen: Frozen | None = None
    """None where there is nothing to ask."""
    why: str = ""
    """Then: why."""
    baseline: BaselineV1 | None = None
    """None where this probe makes one."""
    anew: str = ""
    """Why an earlier baseline does not hold any more."""
    repeats: int = 1
    worst_nano_usd: int = 0
    """What it costs at most."""

    @property
    def calls(self) -> int:
        """That it makes."""
        return len(self.frozen.cases) * self.repeats if self.frozen is not None else 0

    @property
    def likely_nano_usd(self) -> int:
        """What it costs, as Calls of its baseline did; 0 where nobody knows."""
        return self.baseline.cost_nano_usd * self.calls if self.baseline is not None else 0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe of one model came to."""

    model: str
    workflow: str
    state: str
    """`baseline`, `unchanged`, `changed`, or `not asked`: nothing was asked, or too little was answered."""
    verdict: str
    report: str = ""
    cost_nano_usd: int = 0
    probed: Probed | None = None


class Probes:
    """The probes of one loaded project."""

    def __init__(self, snapshot: Snapshot, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.snapshot = snapshot
        self._now_ns = now_ns
        self._baselines = Baselines(snapshot.data_folder)

    def alone(self) -> AbstractContextManager[None]:
        """Around a plan and its run: baselines are counted by one at a time. Raises: DrivetrainError."""
        return self._baselines.alone()

    def retirements(self) -> tuple[Retirement, ...]:
        """What is known of the ends of its pinned models."""
        today = datetime.fromtimestamp(self._now_ns() // 10**9, tz=UTC).date()
        return retirements(self.snapshot, today, is_deprecated)

    def plan(self, model: str = "", wish: Wish = USUAL) -> list[Planned]:
        """What would be asked, and what it costs.

        Raises: DrivetrainError where a name is unknown or a Dataset does not fit.
        """
        known = pinned_models(self.snapshot)
        if model and model not in known:
            raise DrivetrainError(f"No route names the pinned model `{model[:100]}`.", do=did_you_mean(model, known))
        if not known:
            raise DrivetrainError("No route names a provider's model, so there is nothing to probe.")
        chosen = {model: known[model]} if model else known
        return [self._planned(one, names, wish) for one, names in chosen.items()]

    def run(
        self,
        planned: Sequence[Planned],
        *,
        reason: str = "",
        limit_nano_usd: int | None = None,
        level: float = probing.LEVEL,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> list[Outcome]:
        """Asks, compares, keeps. level: of false alarms over all models and probes since their baselines.

        reason: of accepted baselines, for the control log. Raises: DrivetrainError.
        """
        outcomes: list[Outcome] = []
        each, spent = level / max(1, len(pinned_models(self.snapshot))), 0
        for one in planned:
            if one.frozen is None or is_stopped():
                why = one.why or "it was stopped before"
                outcomes.append(Outcome(model=one.model, workflow=one.workflow, state="not asked", verdict=why))
                continue
            left = None if limit_nano_usd is None else max(0, limit_nano_usd - spent)
            answers, cost_nano_usd, out = self._ask(one, one.frozen.cases, left, is_stopped)
            spent += cost_nano_usd
            if out or is_stopped():
                why = "its limit was reached before every row was asked" if out else "it was stopped before its end"
                outcomes.append(
                    Outcome(
                        model=one.model,
                        workflow=one.workflow,
                        state="not asked",
                        verdict=why,
                        cost_nano_usd=cost_nano_usd,
                    )
                )
            elif one.baseline is None:
                outcomes.append(self._begin(one, one.frozen, answers, cost_nano_usd, reason))
            else:
                # Rows of a person who was erased since are gone from the Dataset, and here.
                rows = {row: seen for row, seen in one.baseline.rows.items() if row in one.frozen.present}
                baseline = msgspec.structs.replace(one.baseline, rows=rows)
                outcomes.append(self._compare(one, baseline, answers, cost_nano_usd, each))
        return outcomes

    # What is asked.

    def _planned(self, model: str, workflows: tuple[str, ...], wish: Wish) -> Planned:
        workflow = workflows[0]
        variant = next(
            one for one in self.snapshot.workflows[workflow].route if isinstance(one, Variant) and one.model == model
        )
        named = Planned(model=model, workflow=workflow, variant=variant.name, workflows=workflows)
        before = self._baselines.read(model)
        kept = before.dataset if before is not None else ""
        frozen = frozen_rows(self.snapshot, workflow, wish.dataset or kept, rows=wish.rows)
        if isinstance(frozen, str):
            return msgspec.structs.replace(named, why=frozen)
        anew = "" if before is None else self._why_anew(before, variant, frozen, wish.accept)
        baseline = before if before is not None and not anew else None
        repeats = wish.repeats if baseline is not None else max(probing.REPEATS, wish.repeats)
        if baseline is not None:
            known = tuple(one for one in frozen.cases if one.row in baseline.rows)
            frozen = msgspec.structs.replace(frozen, cases=known)
        return msgspec.structs.replace(
            named, frozen=frozen, baseline=baseline, anew=anew, repeats=repeats,
            worst_nano_usd=self._worst(variant, frozen.cases) * repeats,
        )  # fmt: skip

    def _why_anew(self, before: BaselineV1, variant: Variant, frozen: Frozen, accept: bool) -> str:
        if accept:
            return "a person accepts what it answers now"
        if before.key != self._key(before.workflow, variant) or before.variant != variant.name:
            return "the project changed what it is asked"
        return "" if before.dataset == frozen.dataset else f"its rows are of {frozen.dataset} now"

    def _key(self, workflow: str, variant: Variant) -> str:
        if workflow not in self.snapshot.workflows:
            return ""
        return route_key(alone(self.snapshot, workflow, variant), workflow)

    def _worst(self, variant: Variant, cases: Sequence[Case]) -> int:
        day = datetime.fromtimestamp(self._now_ns() // 10**9, tz=UTC).date().isoformat()
        price = price_of(self.snapshot, variant.model, day)
        texts = [self.snapshot.templates.get(one, "") for one in (variant.system, variant.prompt) if one]
        around = sum(len(one.encode()) for one in texts) + TEMPLATE_TOKENS
        busy_us = variant.timeout_ms * 1_000
        return sum(
            price.worst_case_nano_usd(len(one.raw) + around, variant.max_output_tokens, busy_us) for one in cases
        )

    def _ask(
        self, one: Planned, cases: Sequence[Case], limit_nano_usd: int | None, is_stopped: Callable[[], bool]
    ) -> tuple[dict[str, list[AnswerV1]], int, bool]:
        """Row -> answers, what they cost, and whether the limit kept some from being asked."""
        declared, variant = self.snapshot.workflows[one.workflow], self._variant(one)
        found: dict[str, list[AnswerV1]] = defaultdict(list)
        key = key_file(self.snapshot.keys_folder / KEY_FILE)
        rows = [(case.row, case.raw) for _ in range(one.repeats) for case in cases]
        with asking(alone(self.snapshot, one.workflow, variant), limit_nano_usd=limit_nano_usd) as asker:
            for row, result in asker.ask_all(one.workflow, rows, door=EVAL, tags=(f"probe={one.model}",)):
                answer = _seen(asker, result, key, typed=declared.output is not None)
                if answer is not None:
                    found[row].append(answer)
                if is_stopped():
                    asker.stop()
            return dict(found), asker.spent_nano_usd, asker.out_of_budget

    # What is kept.

    def _begin(
        self, one: Planned, frozen: Frozen, answers: Mapping[str, list[AnswerV1]], cost_nano_usd: int, reason: str
    ) -> Outcome:
        rows = {row: tuple(seen) for row, seen in answers.items() if len(seen) > 1}
        if len(rows) < probing.ROWS_MIN:
            why = f"only {len(rows)} of {len(frozen.cases)} rows were answered twice: no baseline was made"
            return Outcome(
                model=one.model, workflow=one.workflow, state="not asked", verdict=why, cost_nano_usd=cost_nano_usd
            )
        key = self._key(one.workflow, self._variant(one))
        made = BaselineV1(
            model=one.model, workflow=one.workflow, variant=one.variant, key=key,
            dataset=frozen.dataset, content_hash=frozen.content_hash, made_ns=self._now_ns(), made_by=person(),
            reason=reason, rows=rows, cost_nano_usd=cost_nano_usd // max(1, one.calls),
        )  # fmt: skip
        if one.anew and reason:
            body = {"workflows": [f"workflow:{name}" for name in one.workflows], "dataset": frozen.dataset,
                    "reason": reason}  # fmt: skip
            self._control().append(kind=ACCEPTED, actor=person(), subject=one.model, body=body)
        self._baselines.write(made)
        why = f"; the one before does not hold: {one.anew}" if one.anew else ""
        verdict = f"baseline of {len(rows)} rows, {one.repeats} answers each{why}"
        return Outcome(
            model=one.model, workflow=one.workflow, state="baseline", verdict=verdict, cost_nano_usd=cost_nano_usd
        )

    def _compare(
        self,
        one: Planned,
        baseline: BaselineV1,
        answers: Mapping[str, list[AnswerV1]],
        cost_nano_usd: int,
        level: float,
    ) -> Outcome:
        number = baseline.probes + 1
        probed = probing.probe(baseline.rows, answers, number=number, level=level)
        if not probed.changed and probed.rows < probing.ROWS_MIN:
            return Outcome(
                model=one.model,
                workflow=one.workflow,
                state="not asked",
                verdict=probed.verdict,
                cost_nano_usd=cost_nano_usd,
            )
        # Counted before anybody is told, so that no probe that alarmed is forgotten and tried again for nothing.
        self._baselines.write(msgspec.structs.replace(baseline, probes=number))
        terms: dict[str, str | int | float | bool] = {"probe": number, "level": level, "cost_nano_usd": cost_nano_usd}
        report = reports_in(self.snapshot.data_folder, self.snapshot.keys_folder).put(
            self._report(one, baseline, probed, terms)
        )
        state = "changed" if probed.changed else "unchanged"
        return Outcome(
            model=one.model, workflow=one.workflow, state=state, verdict=probed.verdict, report=report,
            cost_nano_usd=cost_nano_usd, probed=probed,
        )  # fmt: skip

    def _report(
        self, one: Planned, baseline: BaselineV1, probed: Probed, terms: Mapping[str, str | int | float | bool]
    ) -> ReportV1:
        facts: dict[str, str | int | float | bool] = {
            "model": one.model, "variant": one.variant, "changed": probed.changed, "rows": probed.rows, **terms,
            "log_evidence": probed.log_evidence, "log_needed": probed.log_needed, "dataset": baseline.dataset,
            "snapshot": self.snapshot.short_hash,
        }  # fmt: skip
        body = {**msgspec.to_builtins(probed), "baseline_ns": baseline.made_ns, "workflows": list(one.workflows)}
        return ReportV1(
            kind="probe", subject=f"workflow:{one.workflow}", made_ns=self._now_ns(), made_by=person(),
            inputs=(f"dataset:{baseline.dataset}",), verdict=f"{one.model}: {probed.verdict}.", facts=facts, body=body,
        )  # fmt: skip

    def _variant(self, one: Planned) -> Variant:
        route = self.snapshot.workflows[one.workflow].route
        return next(step for step in route if isinstance(step, Variant) and step.name == one.variant)

    def _control(self) -> SqliteControlLog:
        return open_control_log(self.snapshot.data_folder, self.snapshot.keys_folder)


def alone(snapshot: Snapshot, workflow: str, variant: Variant) -> Snapshot:
    """The Snapshot with one workflow that asks one variant: what a model answers, before anything is made of it."""
    step: Any = copy.copy(variant)
    step.accept = None
    declared: Any = copy.copy(snapshot.workflows[workflow])
    declared.route, declared.validators, declared.degrade = (step,), (), ()
    declared.policy = declared.cache = declared.rollout = None
    return msgspec.structs.replace(snapshot, workflows={workflow: declared})


def _seen(asker: Asker, result: CallResult, key: bytes, *, typed: bool) -> AnswerV1 | None:
    """What is kept of a Call; None where no model answered it, which tells nothing of the model."""
    last = result.attempts[-1] if result.attempts else None
    if last is None or last.status != 200 or last.failure:
        return None
    answer = answer_of(result, asker.said(result.call_id), typed=typed)
    form = answer.finish_reason if result.status == "answered" else f"{result.status} {answer.error}"
    body = _body(result)
    return probing.answer_of(
        answer.text, key=key, form=form, tokens=last.usage.output_tokens, model=str(body.get("model") or ""),
        fingerprint=str(body.get("system_fingerprint") or ""), call_id=result.call_id,
    )  # fmt: skip


def _body(result: CallResult) -> Mapping[str, Any]:
    if result.status != "answered":
        return {}
    try:
        found = parse_json(result.body)
    except MalformedJson:
        return {}
    return found if isinstance(found, dict) else {}
