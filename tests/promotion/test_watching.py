"""What a rollout does next, played in virtual time."""

from __future__ import annotations

import random
from collections.abc import Iterator

from drivetrain.core.calls import Attribution, Call, Outcome
from drivetrain.core.releases import WHOLE, ActiveRollout, GuardV1, RolloutV1, StageV1
from drivetrain.promotion.watching import Step, Watch

LIVE, CANDIDATE = "a" * 64, "b" * 64
SECOND = 1_000_000_000
MINUTE = 60 * SECOND
START = 10 * MINUTE
ERRORS = (GuardV1(watch="errors"),)


def active(
    *shares: float, stage: int = 0, guards: tuple[GuardV1, ...] = ERRORS, minutes: float = 10, units: int = 20,
    paused: bool = False, workflows: tuple[str, ...] = ("triage",), shadow: float = 0.0,
) -> ActiveRollout:  # fmt: skip
    stages = tuple(StageV1(share_ppm=int(share * WHOLE), minutes=minutes, units=units) for share in shares)
    if shadow:
        stages = (StageV1(share_ppm=0, minutes=minutes, shadow_ppm=int(shadow * WHOLE)), *stages)
    return ActiveRollout(
        release=2, snapshot=CANDIDATE, workflows=workflows, stage=stage,
        rollout=RolloutV1(id="c" * 16, stages=stages, guards=guards),
        stage_ns=START, started_ns=START, paused=paused,
    )  # fmt: skip


def call(number: int, at_s: float, *, candidate: bool, **fields: object) -> Call:
    opened_ns = START + int(at_s * SECOND)
    given = {
        "call_id": f"call_{number}", "opened_ns": opened_ns, "closed_ns": opened_ns + SECOND // 5,
        "snapshot": (CANDIDATE if candidate else LIVE)[:16], "workflow": "triage", "door": "chat", "stream": False,
        "attribution": Attribution(user=f"{'c' if candidate else 'l'}{number % 200}"), "status": "answered",
        "cost_nano_usd": 1_000_000, **fields,
    }  # fmt: skip
    return Call(**given)  # type: ignore[arg-type]


def traffic(
    seconds: int, *, failing: float = 0.0, share: float = 0.2, seed: int = 1, workflow: str = "triage"
) -> Iterator[Call]:
    draw = random.Random(seed)
    for number in range(seconds * 20):
        candidate = draw.random() < share
        status = "failed" if draw.random() < (failing if candidate else 0.01) else "answered"
        yield call(number, number / 20, candidate=candidate, status=status, workflow=workflow)


def played(watch: Watch, calls: Iterator[Call]) -> tuple[float, Step | None]:
    """When which step is taken, looked at every second."""
    at_s = 1
    for one in calls:
        while one.opened_ns > START + at_s * SECOND:
            step = watch.look(START + at_s * SECOND)
            if step is not None:
                return at_s, step
            at_s += 1
        watch.see(one)
    return at_s, watch.look(START + at_s * SECOND)


def test_ten_points_of_errors_are_rolled_back_within_a_minute() -> None:
    at_s, step = played(Watch(active(0.2), LIVE), traffic(60, failing=0.11))
    assert step is not None
    assert (step.event, step.guard) == ("aborted", "errors")
    assert at_s <= 60
    assert "Guard `errors`" in step.verdict
    assert "failed Calls" in step.verdict
    assert f"after {at_s}.0 seconds of stage 1" in step.verdict, "no minutes of what took seconds"
    assert step.evidence["units_candidate"] > 0


def test_what_a_stage_waits_for_is_told_in_seconds_below_a_minute() -> None:
    watch = Watch(active(0.2, minutes=2), LIVE)
    assert watch.waits(START + 30 * SECOND)[0] == "1.5 minutes"
    assert watch.waits(START + 95 * SECOND)[0] == "25.0 seconds"


def test_a_candidate_that_is_no_worse_goes_on_after_its_minutes_and_is_completed_after_the_last_stage() -> None:
    watch = Watch(active(0.2, 0.5), LIVE)
    at_s, step = played(watch, traffic(620, failing=0.01))
    assert step is not None
    assert (step.event, step.stage, at_s) == ("stage", 1, 600)
    assert "0.5" in step.verdict
    assert "no guard broke" in step.verdict
    last = Watch(active(0.2, 0.5, stage=1), LIVE)
    _, step = played(last, traffic(620, failing=0.01, share=0.5))
    assert step is not None
    assert (step.event, step.stage) == ("completed", 1)


def test_nothing_goes_on_where_nothing_was_seen() -> None:
    watch = Watch(active(0.2), LIVE)
    much_later = START + 1_000 * MINUTE
    assert watch.look(much_later) is None
    assert [one.split(":")[0] for one in watch.waits(much_later)] == ["evidence"] * 3
    for number in range(19):
        watch.see(call(number, 1, candidate=True))
        watch.see(call(number, 1, candidate=False))
    assert watch.look(much_later) is None
    assert watch.waits(much_later)[0] == "evidence: the candidate arm has seen 19 of 20 units"
    watch.see(call(19, 1, candidate=True))
    watch.see(call(19, 1, candidate=False))
    step = watch.look(much_later)
    assert step is not None
    assert step.event == "completed"


def test_a_guard_without_its_outcomes_waits_for_them() -> None:
    watch = Watch(active(0.2, guards=(GuardV1(watch="outcome", metric="solved"),)), LIVE)
    for number in range(40):
        watch.see(call(number, 1, candidate=number % 2 == 0))
    late = START + 11 * MINUTE
    assert watch.waits(late) == ["evidence: guard `outcome:solved` has seen nothing to compare"]
    for number in (0, 1):
        watch.see_outcome(metric="solved", value=True, arrived_ns=late, call_id=f"call_{number}")
    assert not watch.waits(late)


def test_late_and_corrected_outcomes_break_a_guard() -> None:
    def judged(corrected: bool) -> Step | None:
        watch = Watch(active(0.2, guards=(GuardV1(watch="outcome", metric="solved"),)), LIVE)
        for number in range(800):
            watch.see(call(number, 1, candidate=number % 4 == 0, business_key=f"order-{number}"))
            watch.see_outcome(
                metric="solved", value=number % 4 != 0, arrived_ns=1, workflow="triage", business_key=f"order-{number}"
            )
        if corrected:
            for number in range(800):
                watch.see_outcome(metric="solved", value=True, arrived_ns=2, call_id=f"call_{number}")
                watch.see_outcome(metric="solved", value=False, arrived_ns=1, call_id=f"call_{number}")  # an older one
        return watch.look(START + MINUTE)

    step = judged(corrected=False)
    assert step is not None
    assert step.guard == "outcome:solved"
    assert judged(corrected=True) is None


def test_outcomes_that_a_call_carries_count_too() -> None:
    watch = Watch(active(0.2, guards=(GuardV1(watch="score", metric="grade"),)), LIVE)
    for number in range(800):
        worse = number % 4 == 0
        grade = Outcome(metric="grade", source="judge", value=0.2 if worse else 0.9, event_ns=0, arrived_ns=1)
        watch.see(call(number, 1, candidate=worse, outcomes=(grade,)))
    step = watch.look(START + MINUTE)
    assert step is not None
    assert step.guard == "score:grade"


def test_a_pause_stays_but_guards_still_roll_back() -> None:
    watch = Watch(active(0.2, paused=True), LIVE)
    assert played(watch, traffic(620, failing=0.01))[1] is None
    _, step = played(Watch(active(0.2, paused=True), LIVE), traffic(60, failing=0.2))
    assert step is not None
    assert step.event == "aborted"


def test_what_the_candidate_does_not_admit_is_its_error() -> None:
    watch = Watch(active(0.2), LIVE)
    for number in range(400):
        refused = number % 5 == 0
        notes = ("canary refused: invalid_input",) if refused else ()
        watch.see(call(number, 1, candidate=False, notes=notes))
    step = watch.look(START + MINUTE)
    assert step is not None
    assert step.guard == "errors"
    assert watch.standing(START + MINUTE).calls_candidate == 80


def test_only_calls_of_this_stage_and_of_both_arms_count() -> None:
    watch = Watch(active(0.2), LIVE)
    watch.see(call(1, -1, candidate=True, status="failed"))  # of the stage before
    watch.see(call(2, 1, candidate=True, workflow="other"))
    watch.see(call(3, 1, candidate=True, door="python"))
    watch.see(call(4, 1, candidate=True, door="shadow"))
    watch.see(call(5, 1, candidate=True, snapshot="d" * 16))
    standing = watch.standing(START + MINUTE)
    assert (standing.calls_live, standing.calls_candidate) == (0, 0)
    watch.see(call(6, 1, candidate=True))
    assert watch.standing(START + MINUTE).calls_candidate == 1


def test_a_small_workflow_is_not_hidden_by_a_large_one() -> None:
    watch = Watch(active(0.2, workflows=("triage", "refund")), LIVE)
    for number in range(4_000):
        watch.see(call(number, 1, candidate=number % 5 == 0, status="failed" if number % 100 == 7 else "answered"))
    assert watch.look(START + MINUTE) is None
    for number in range(150):
        worse = number % 5 == 0
        watch.see(call(number, 1, candidate=worse, workflow="refund", status="failed" if worse else "answered"))
    step = watch.look(START + MINUTE)
    assert step is not None
    assert "of `refund`" in step.verdict


def test_a_shadow_is_compared_by_its_errors_and_goes_on_only_where_it_was_seen() -> None:
    shadowed = active(0.2, shadow=0.5, guards=(GuardV1(watch="errors"), GuardV1(watch="latency")))
    watch = Watch(shadowed, LIVE)
    late = START + 11 * MINUTE
    for number in range(50):
        watch.see(call(number, 1, candidate=False))
    assert watch.look(late) is None  # the shadow has seen nothing
    for number in range(50):
        watch.see(call(number, 1, candidate=True, door="shadow", closed_ns=START + 100 * SECOND))
    step = watch.look(late)
    assert step is not None
    assert (step.event, step.stage) == ("stage", 1)
    for number in range(300):
        watch.see(call(number, 1, candidate=False))
        watch.see(call(number, 1, candidate=True, door="shadow", status="failed"))
    step = watch.look(late)
    assert step is not None
    assert (step.event, step.guard) == ("aborted", "errors")


def test_a_share_of_all_has_no_arm_beside_it_and_goes_on_by_time() -> None:
    watch = Watch(active(0.5, 1.0, stage=1), LIVE)
    for number in range(40):
        watch.see(call(number, 1, candidate=True))
    assert watch.look(START + MINUTE) is None
    step = watch.look(START + 10 * MINUTE)
    assert step is not None
    assert step.event == "completed"
