"""What another policy would have been worth, under the gains that a policy declares, and what cannot be known of it.

Two questions that must not be mixed up. Where the Outcome is a truth about the case, whatever was done with it (it was
fraud), each action's gain is known for each Call, and both policies are compared on the same Calls. Where the Outcome
came about by what was done (the customer came back), only the action that was taken showed its gain: then chances that
exploration logged give an estimate, and without them nothing does. Which of the two holds is for people to say.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.policies import Case, Gains
from drivetrain.evals.past import clusters
from drivetrain.evals.redeciding import FAILS, Redecided
from drivetrain.project.policy_checks import GAIN_USD_MAX
from drivetrain.statistics.bootstrap import RESAMPLES, Interval, bootstrap, ratio
from drivetrain.statistics.off_policy import Logged, OffPolicy, off_policy, tries_needed

ANY = "*"
"""In `Gains.usd`: every other value of the Outcome."""
LEVEL = 0.95
PRECISION = 0.1
"""Of the spread of gains: how closely an action's mean gain is to be known, when we say how many Calls that takes."""
UNEVEN = 0.5
"""Where an action's Outcomes arrive less than so often as another's, that is told: they may be odd cases."""
CALLS_MIN = 30
"""With fewer Calls the share of them that have an Outcome says little."""
WEIGHT_ERRORS = 4.0
"""Standard errors by which the mean weight may differ from 1 before the logged chances are doubted."""


class Direct(msgspec.Struct, frozen=True, kw_only=True):
    """Gains per Decision in USD, on the same Calls."""

    decisions: int
    """With an Outcome."""
    before: Interval
    candidate: Interval
    difference: Interval
    """Of the pairs: candidate minus before."""


class Needed(msgspec.Struct, frozen=True, kw_only=True):
    """What it would take to know what an action is worth where it was not done."""

    action: str
    calls: int
    """That must get it by exploration."""
    within_usd: float
    """Then its mean gain is known to within so much."""
    decisions_at_one_percent: int
    """Decisions of the kind in question that pass until then, where 1 % of them gets it."""


class Worth(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the candidate's worth."""

    metric: str
    depends_on_action: bool
    outcomes: int
    """Re-decided Decisions with an Outcome."""
    direct: Direct | None = None
    by_segment: Mapping[str, Interval] = {}
    """Segment -> the difference per Decision; of the direct comparison only."""
    off_policy: OffPolicy | None = None
    needed: tuple[Needed, ...] = ()
    unknown: tuple[str, ...] = ()
    """What cannot be known, and why, each in a sentence."""


def worth(
    redecided: Sequence[Redecided],
    gains: Gains,
    *,
    depends_on_action: bool,
    segments: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Worth:
    """Raises: DrivetrainError where the declared gains do not cover an action and an Outcome that occur."""
    known = []
    fails = 0
    for place, one in enumerate(redecided):
        truth = one.past.truth(gains.metric)
        if truth is None:
            continue
        if one.chosen == FAILS:
            fails += 1
            continue
        known.append((place, one, truth))
    unknown = _uneven(redecided, gains.metric)
    if fails:
        unknown.append(f"The candidate cannot decide {fails} Calls at all; they are in no value.")
    if not known:
        unknown.append(f"No Decision has the Outcome `{gains.metric}` yet, so that nothing can be said of worth.")
        return Worth(metric=gains.metric, depends_on_action=depends_on_action, outcomes=0, unknown=tuple(unknown))
    if depends_on_action:
        return _by_chance(known, gains, unknown, seed, resamples)
    columns: list[list[float]] = [[], [], [], []]
    for _, one, truth in known:
        old = gain(gains, one.past.chosen, truth, one.past.case)
        new = gain(gains, one.chosen, truth, one.past.case)
        for column, value in zip(columns, (old, new, new - old, 1.0), strict=True):
            column.append(value)
    names = [one.past.cluster for _, one, _ in known]
    before, candidate, difference = bootstrap(
        columns,
        [ratio(0, 3), ratio(1, 3), ratio(2, 3)],
        seed=seed,
        clusters=clusters(names),
        level=LEVEL,
        resamples=resamples,
    )
    by_segment: dict[str, Interval] = {}
    if segments is not None:
        members: dict[str, list[int]] = defaultdict(list)
        for at, (place, _, _) in enumerate(known):
            members[segments[place]].append(at)
        for name, places in members.items():
            kept = [[column[at] for at in places] for column in (columns[2], columns[3])]
            (by_segment[name],) = bootstrap(
                kept, [ratio(0, 1)], seed=seed, clusters=clusters([names[at] for at in places]), resamples=resamples
            )
    return Worth(
        metric=gains.metric, depends_on_action=False, outcomes=len(known),
        direct=Direct(decisions=len(known), before=before, candidate=candidate, difference=difference),
        by_segment=by_segment, unknown=tuple(unknown),
    )  # fmt: skip


def gain(gains: Gains, action: str, truth: str | float | bool, case: Case) -> float:
    """USD of an action once the truth is known. Raises: DrivetrainError where the declared gains do not say."""
    if not isinstance(gains.usd, Mapping):
        try:
            value = gains.usd(action, truth, case)
        except (Exception, SystemExit) as fault:  # noqa: BLE001  the project's own code; what it says may quote a person
            raise DrivetrainError(
                f"The gains' function fails on `{action}` with {type(fault).__name__}.",
                do="Mend it, or let it read only what Decisions keep: see `reads` of the policy.",
            ) from None
    else:
        row = gains.usd.get(action)
        text = outcome_text(truth)
        found = row.get(text, row.get(ANY)) if row is not None else None
        if found is None:
            raise DrivetrainError(
                f"The declared gains do not say what `{action}` is worth where `{gains.metric}` is `{text[:64]}`.",
                looked=[f"gains of {', '.join(f'`{name}`' for name in gains.usd) or 'no action'}"],
                do=f'Add `"{action}": {{"{text[:64]}": ...}}` to `Gains(usd=...)`, or `"{ANY}"` for any other value.',
            )
        value = found
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= GAIN_USD_MAX:
        raise DrivetrainError(f"The gains of `{action}` are no finite number, but {type(value).__name__}.")
    return float(value)


def outcome_text(value: str | float | bool) -> str:
    """An Outcome's value as `Gains.usd` names it: `true`, `3`, `0.5`, or the text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _by_chance(
    known: Sequence[tuple[int, Redecided, str | float | bool]],
    gains: Gains,
    unknown: list[str],
    seed: int,
    resamples: int,
) -> Worth:
    """By the chances that exploration logged."""
    tried: dict[str, set[str]] = defaultdict(set)
    for _, one, _ in known:
        decision = one.past.decision
        if decision.explored:
            tried[decision.version].add(decision.action)
    logged = []
    together = clusters([one.past.cluster for _, one, _ in known]) is not None
    for _, one, truth in known:
        decision = one.past.decision
        possible = {decision.action}
        if decision.propensity < 1:
            # The chance of every other action is not in the record; which ones had any is seen from the log.
            possible |= {one.past.chosen} | tried[decision.version]
        logged.append(
            Logged(
                action=decision.action,
                propensity=decision.propensity,
                gain=gain(gains, decision.action, truth, one.past.case),
                candidate={one.chosen: 1.0},
                before={one.past.chosen: 1.0},
                possible=frozenset(possible),
                cell=f"{one.past.decision.rule}|{one.verdict.rule}|{one.past.chosen}|{one.chosen}",
                cluster=one.past.cluster if together else "",
            )
        )
    found = off_policy(logged, seed=seed, level=LEVEL, resamples=resamples)
    never = Counter(action for one in logged for action in one.candidate if action not in one.possible)
    needed = _needed(never, [one.gain for one in logged], len(logged))
    if never:
        share = found.unknown_share
        named = ", ".join(f"`{action}` in {count}" for action, count in never.most_common())
        unknown.append(
            f"{share:.1%} of the candidate's actions had no chance to be taken ({named}), so what they would have led "
            "to cannot be known from these records; the estimates leave these Calls out."
        )
    if not found.by_chance:
        unknown.append(
            "No Decision was explored, so that only Decisions which stay the same have a known worth. "
            "Give the policy `explore=dt.Explore(share=..., actions=...)`."
        )
    elif found.known and abs(found.weight_mean - 1) > WEIGHT_ERRORS * max(found.weight_mean_error, 1e-12):
        unknown.append(
            f"The weights' mean is {found.weight_mean:.3f} and should be 1: the logged chances are not those with "
            "which actions were taken, and the estimates are not to be trusted."
        )
    return Worth(
        metric=gains.metric, depends_on_action=True, outcomes=len(known), off_policy=found, needed=needed,
        unknown=tuple(unknown),
    )  # fmt: skip


def _needed(never: Mapping[str, int], gains: Sequence[float], calls: int) -> tuple[Needed, ...]:
    """For each action that was never tried where the candidate takes it."""
    middle = math.fsum(gains) / len(gains)
    spread = math.sqrt(math.fsum((one - middle) ** 2 for one in gains) / len(gains))
    if not spread:
        return ()
    tries = tries_needed(spread, spread * PRECISION, LEVEL)
    return tuple(
        Needed(action=action, calls=tries, within_usd=spread * PRECISION, decisions_at_one_percent=tries * 100)
        for action in never
    )


def _uneven(redecided: Iterable[Redecided], metric: str) -> list[str]:
    """Outcomes that arrive for one action and hardly for another: fraud is only seen where something was paid."""
    decisions: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for one in redecided:
        decisions[one.past.decision.action] += 1
        outcomes[one.past.decision.action] += one.past.truth(metric) is not None
    shares = {action: outcomes[action] / count for action, count in decisions.items() if count >= CALLS_MIN}
    if len(shares) < 2:
        return []
    most = max(shares, key=lambda action: shares[action])
    return [
        f"The Outcome `{metric}` is known for {share:.0%} of `{action}` and {shares[most]:.0%} of `{most}`: "
        "those of which it is known may be other cases than the rest."
        for action, share in shares.items()
        if share < UNEVEN * shares[most]
    ]
