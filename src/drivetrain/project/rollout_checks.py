"""Everything that is wrong with a workflow's Rollout: its stages, its guards and its shadow.

Called where workflows are checked.
"""

from __future__ import annotations

from typing import Any

from drivetrain.core.errors import did_you_mean
from drivetrain.core.rollouts import GUARDS, Guard, Rollout, Shadow, Stage
from drivetrain.project.tables import amount_fix, amount_mistake
from drivetrain.project.workflow_notes import WorkflowNotes, is_number, is_whole, kind, written

STAGES_MAX = 20
"""More of them is a slip: ten already double a share from 0.1 % on."""
GUARDS_MAX = 20
"""They share one error level, so each further one makes all slower."""
MINUTES_MAX = 60 * 24 * 30
"""A stage of a month is forgotten."""
UNITS_MAX = 1_000_000
LEVEL_MIN = 0.5
OUTCOMES = ("score", "outcome")
"""Guards of a metric."""
STAGE_HELP = "Write for example dt.Stage(share=0.05, minutes=10)."


class RolloutCheck:
    """The Rollout of one workflow."""

    def __init__(self, notes: WorkflowNotes) -> None:
        self._notes = notes

    def run(self) -> None:
        rollout = self._notes.workflow.rollout
        if rollout is None:
            return
        if not isinstance(rollout, Rollout):
            self._note(
                "has a `rollout` that is no Rollout.", value=kind(rollout), do="Write `rollout=dt.Rollout(...)`."
            )
            return
        self._unknown(rollout)
        if not is_number(rollout.level) or not LEVEL_MIN <= rollout.level < 1:
            self._note(
                f"has a wrong `level` of its rollout; it is a number from {LEVEL_MIN} to below 1.", "level",
                value=written(rollout.level), do="Leave it out for 0.95.",
            )  # fmt: skip
        self._stages(rollout.stages)
        self._guards(rollout.guards)
        if rollout.shadow is not None:
            self._shadow(rollout.shadow)

    def _unknown(self, rollout: Rollout) -> None:
        for name in rollout.unknown:
            known = [one for one in Rollout.__slots__ if one not in ("place", "unknown")]
            self._note(f"has a rollout with no argument `{name}`.", name, do=did_you_mean(name, known))

    def _stages(self, stages: tuple[Any, ...]) -> None:
        if not 1 <= len(stages) <= STAGES_MAX:
            self._note(f"has a rollout with {len(stages)} stages; it has 1 to {STAGES_MAX}.", "stages")
        share = 0.0
        for number, one in enumerate(stages, 1):
            if not isinstance(one, Stage):
                self._note(f"has a stage {number} that is no Stage.", "stages", value=kind(one), do=STAGE_HELP)
                continue
            if not is_number(one.share) or not 0 < one.share <= 1:
                self._note(
                    f"has a wrong share of stage {number}; it is above 0 and at most 1.", "stages",
                    value=written(one.share), do=STAGE_HELP,
                )  # fmt: skip
            elif one.share <= share:
                self._note(
                    f"has a stage {number} whose share does not grow.", "stages", value=written(one.share),
                    do="Units keep their arm, so each stage has a larger share than the one before.",
                )  # fmt: skip
            else:
                share = one.share
            self._minutes(one.minutes, f"stage {number}", "stages")
            if not is_whole(one.units, 1, UNITS_MAX):
                self._note(
                    f"has wrong units of stage {number}; they are a whole number from 1 to {UNITS_MAX:,}.", "stages",
                    value=written(one.units),
                )  # fmt: skip

    def _guards(self, guards: tuple[Any, ...]) -> None:
        if len(guards) > GUARDS_MAX:
            self._note(f"has a rollout with {len(guards)} guards; it has at most {GUARDS_MAX}.", "guards")
        seen: set[tuple[str, str]] = set()
        for one in guards:
            if not isinstance(one, Guard):
                self._note(
                    "has a guard that is no Guard.", "guards", value=kind(one), do='Write dt.Guard(watch="errors").'
                )
                continue
            if one.watch not in GUARDS:
                self._note(
                    "has a guard that watches nothing we know.", "guards", value=written(one.watch),
                    do=did_you_mean(str(one.watch), GUARDS),
                )  # fmt: skip
                continue
            if not isinstance(one.metric, str):
                self._note(f"has a guard `{one.watch}` with a wrong `metric`.", "guards", value=kind(one.metric))
                continue
            if (one.watch, one.metric) in seen:
                self._note(f"has two guards of `{one.watch}`.", "guards", do="Keep one.")
            seen.add((one.watch, one.metric))
            self._guard(one)

    def _guard(self, one: Guard) -> None:
        most = 1.0 if one.watch in ("errors", "latency") else float("inf")
        if not is_number(one.margin) or not 0 <= one.margin < most:
            self._note(
                f"has a wrong `margin` of the guard `{one.watch}`.", "guards", value=written(one.margin),
                do="Write the harm that is accepted, such as 0.01 for one point of errors, or leave it out.",
            )  # fmt: skip
        if (one.watch in OUTCOMES) != bool(one.metric):
            self._note(
                f"has a guard `{one.watch}` with a wrong `metric`.", "guards", value=written(one.metric),
                do="`outcome` and `score` need one, the name that its Outcomes have; others have none.",
            )  # fmt: skip
        if not isinstance(one.higher_is_better, bool):
            self._note(
                f"has a wrong `higher_is_better` of the guard `{one.watch}`.", "guards",
                value=written(one.higher_is_better), do="Write True or False.",
            )  # fmt: skip
        if not is_whole(one.slow_ms, 0, 3_600_000) or (one.slow_ms and one.watch != "latency"):
            self._note(
                f"has a wrong `slow_ms` of the guard `{one.watch}`.", "guards", value=written(one.slow_ms),
                do="Only `latency` takes it: whole milliseconds.",
            )  # fmt: skip

    def _shadow(self, shadow: Any) -> None:
        if not isinstance(shadow, Shadow):
            self._note(
                "has a shadow that is no Shadow.", "shadow", value=kind(shadow), do="Write dt.Shadow(share=0.1)."
            )
            return
        if not is_number(shadow.share) or not 0 < shadow.share <= 1:
            self._note(
                "has a wrong share of its shadow; it is above 0 and at most 1.", "shadow", value=written(shadow.share)
            )
        self._minutes(shadow.minutes, "its shadow", "shadow")
        mistake = amount_mistake(shadow.usd_per_day)
        if mistake is not None:
            self._note(
                f"has a wrong `usd_per_day` of its shadow, which {mistake}", "shadow",
                value=written(shadow.usd_per_day), do=amount_fix(shadow.usd_per_day),
            )  # fmt: skip

    def _minutes(self, minutes: object, of: str, argument: str) -> None:
        if not is_number(minutes) or not 0 < float(minutes) <= MINUTES_MAX:
            self._note(
                f"has wrong minutes of {of}; they are above 0 and at most {MINUTES_MAX:,}.", argument,
                value=written(minutes),
            )  # fmt: skip

    def _note(self, what: str, *arguments: str, value: str = "", do: str = "") -> None:
        self._notes.note(what, "rollout", *arguments, value=value, do=do)
