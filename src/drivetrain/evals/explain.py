"""What moved a metric of Decisions between two periods: models, policy, or the mix of traffic.

The metric is a function of three things, and each of the eight combinations of old and new is computed by replay: the
Calls of one period, answered by the models of either, decided by the policy of either. The change is then shared out by
Shapley over the six orders. What a replay cannot know without asking a provider anew stays unknown: then a share has
bounds where the metric has, and none otherwise. Nothing here knows how a Call is replayed; `World` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.policies import Action, Case, Policy
from drivetrain.evals.past import Lost, NotKept, clusters
from drivetrain.statistics.bootstrap import RESAMPLES, Interval, load_numpy, percentiles, resample
from drivetrain.statistics.shapley import shapley, shapley_bounds, subsets, weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODEL, POLICY, TRAFFIC = "model", "policy", "traffic"
FACTORS = (MODEL, POLICY, TRAFFIC)
LEVEL = 0.95
METRIC_MAX = 1e100
"""Of one Decision's number, whatever its unit: sums and their squares stay finite."""
STATES_MAX = 20
"""Combinations of models and policy that were live in one period; each is a replay of every Call of the other."""

Combination = frozenset[str]
"""Which of `FACTORS` are those of the second period."""


class State(msgspec.Struct, frozen=True):
    """What was live when a Call was decided."""

    model: str
    """Names the route and its models; two that are the same answer the same."""
    policy: str
    """The policy's version."""


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """One Decision of a period."""

    call_id: str
    state: State
    action: Action
    cluster: str
    """Decisions of one name are resampled together."""
    subject: Any
    """Whatever `World` needs to replay it."""


class Ask(Exception):
    """What a Call would have been answered is known to nobody but a provider."""

    def __init__(self, references: Sequence[str]) -> None:
        self.references = tuple(references)
        """`provider/model` of each attempt that would have to be sent."""
        super().__init__(", ".join(references))


class Unanswered(Exception):
    """With these models, or under this policy, the Call has no Decision at all."""


class World(Protocol):
    """How a Call is replayed. Every method raises Lost where what it needs was not kept."""

    def acted(self, moment: Moment) -> Action:
        """What was decided, with its values."""

    def case(self, moment: Moment, model: str) -> Case:
        """The Case of a Call, answered by `model`; by its own where that is the same. Raises: Ask, Unanswered, Lost."""

    def decide(self, moment: Moment, case: Case, policy: str) -> Action:
        """The action of a policy's version, exploration included. Raises: Unanswered, Lost."""


class Metric(msgspec.Struct, frozen=True):
    """A metric of Decisions: the mean of a number of each."""

    name: str
    of: Callable[[Action, Case | None], float]
    is_share: bool
    """Whether the number is 0 or 1, so that what is not known of a Call has bounds."""


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What one factor moved."""

    factor: str
    known: bool
    interval: Interval | None = None
    """Where it is known."""
    least: float | None = None
    """Where it is not: the least and the most that it can be; None where the metric has no bounds."""
    most: float | None = None


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """The metric in one combination."""

    second: tuple[str, ...]
    """Which factors are those of the second period."""
    known: bool
    value: float | None
    """None where it is not known."""
    unknown_decisions: int = 0
    """Calls of which it is not known what they would have been."""


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """One period as it was."""

    decisions: int
    used: int
    """Of which all combinations were replayed, as far as they can be known."""
    value: float
    """The metric over all its Decisions; over those used where a function of the project computes it."""
    states: tuple[tuple[State, int], ...]
    """What was live, and for how many Decisions."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What moved the metric."""

    metric: str
    first: Period
    second: Period
    change: Interval
    """Over the Decisions used; the shares sum to it."""
    shares: tuple[Share, ...]
    values: tuple[Value, ...]
    asks: Mapping[str, int]
    """`provider/model` -> Calls that would have to be sent to it for what is unknown."""
    lost: Mapping[str, int]
    """Why Decisions were left out -> how many."""
    alone: Mapping[str, Interval]
    """`policy in first`, `policy in second`: what the other period's policy moves with a period's own traffic and
    models; known whenever the Cases are, whatever a provider would have answered."""

    @property
    def change_from(self) -> float:
        """The metric of the first period, over the Decisions used."""
        return next(one.value for one in self.values if not one.second) or 0.0

    @property
    def change_to(self) -> float:
        """The metric of the second period, over the Decisions used."""
        return self.change_from + self.change.value

    @property
    def known(self) -> bool:
        """Whether every share is known."""
        return all(share.known for share in self.shares)


def metric_of(policy: Policy, name: str) -> Metric:
    """A metric that the policy declares. Raises: DrivetrainError with the known names."""
    declared = policy.metrics.get(name)
    if declared is None:
        raise DrivetrainError(
            f"The policy `{policy.name}` declares no metric `{name}`. {did_you_mean(name, policy.metrics)}",
            do=f'Declare it: `metrics={{"{name}": "ACTION"}}` is the share of an action.',
        )
    if callable(declared):
        function = declared
        return Metric(name, lambda action, case: _number(function, action, case, name), False)
    actions = frozenset([declared] if isinstance(declared, str) else declared)
    return Metric(name, lambda action, _case: float(action.action in actions), True)


def explain(
    first: Sequence[Moment],
    second: Sequence[Moment],
    world: World,
    metric: Metric,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Explanation:
    """Raises: DrivetrainError where a period has no Decision, or none that can be replayed, or numpy is missing."""
    load_numpy()  # first: without it no trained model can be loaded either, and all would be called lost
    for name, moments in (("first", first), ("second", second)):
        if not moments:
            raise DrivetrainError(f"The {name} period has no Decision.", do="Choose days on which Calls were decided.")
    found = _Tables(world, metric, (_mixture(first), _mixture(second)))
    tables = (found.table(first, 0), found.table(second, 1))
    draws = []
    for place, (name, table) in enumerate(zip(("first", "second"), tables, strict=True)):
        if not table.clusters:
            why = next((one for one, _ in found.lost.most_common(1)), "nothing of them was kept")
            raise DrivetrainError(
                f"No Decision of the {name} period can be replayed: {why}.",
                do='Keep what replays need: `retention="full"` or "sampled" of the workflow, or `reads` of the policy.',
            )
        draws.append(resample(table.columns, seed=seed + place, clusters=clusters(table.clusters), resamples=resamples))
    points = {
        some: _bounds(some, [draw.rows.sum(axis=0, keepdims=True) for draw in draws]) for some in subsets(FACTORS)
    }
    drawn = {some: _bounds(some, [draw.sums for draw in draws]) for some in subsets(FACTORS)}
    unknown = {some: found.unknown(some) for some in subsets(FACTORS)}
    whole, none = frozenset(FACTORS), frozenset[str]()
    change = percentiles(float(points[whole][0][0] - points[none][0][0]), drawn[whole][0] - drawn[none][0], LEVEL)
    return Explanation(
        metric=metric.name,
        first=found.period(first, 0, tables[0]),
        second=found.period(second, 1, tables[1]),
        change=change,
        shares=_shares(metric, points, drawn, unknown),
        values=tuple(
            Value(
                second=tuple(sorted(some)), known=not unknown[some],
                value=None if unknown[some] else float(points[some][0][0]), unknown_decisions=unknown[some],
            )
            for some in subsets(FACTORS)
        ),
        asks=dict(found.asks.most_common()),
        lost=dict(found.lost.most_common()),
        alone={
            "policy in first": _gap(points, drawn, frozenset({POLICY}), none),
            "policy in second": _gap(points, drawn, whole, frozenset({MODEL, TRAFFIC})),
        },
    )  # fmt: skip


class _Table(msgspec.Struct):
    """One period's Decisions: per model and policy of either period a sum, a count, and a count of what is unknown."""

    columns: list[list[float]]
    clusters: list[str]


class _Tables:
    """Every combination of every Decision, replayed once."""

    def __init__(self, world: World, metric: Metric, mixtures: tuple[Counter[State], Counter[State]]) -> None:
        self._world = world
        self._metric = metric
        self._mixtures = mixtures
        self.lost: Counter[str] = Counter()
        self.asks: Counter[str] = Counter()
        self._unknown: Counter[tuple[int, int, int]] = Counter()

    def table(self, moments: Sequence[Moment], period: int) -> _Table:
        """One row per Decision of which every combination was kept; columns as `_place` says."""
        rows: list[list[float]] = []
        clusters: list[str] = []
        for moment in moments:
            try:
                row, unknown, asks = self._row(moment, period)
            except Lost as why:
                self.lost[str(why)] += 1
                continue
            rows.append(row)
            clusters.append(moment.cluster)
            self.asks.update(asks)
            self._unknown.update((period, *cell) for cell in unknown)
        return _Table([list(column) for column in zip(*rows, strict=True)], clusters)

    def unknown(self, some: Combination) -> int:
        """Calls of the combination's traffic of which it is not known what they would have been."""
        return self._unknown[(int(TRAFFIC in some), int(MODEL in some), int(POLICY in some))]

    def period(self, moments: Sequence[Moment], period: int, table: _Table) -> Period:
        """The period as it was."""
        if self._metric.is_share:
            value = sum(self._metric.of(one.action, None) for one in moments) / len(moments)
        else:
            above, below, _ = _place(period, period)
            value = sum(table.columns[above]) / sum(table.columns[below])
        states = tuple(self._mixtures[period].most_common())
        return Period(decisions=len(moments), used=len(table.clusters), value=value, states=states)

    def _row(self, moment: Moment, period: int) -> tuple[list[float], list[tuple[int, int]], Counter[str]]:
        row = [0.0] * 12
        unknown: list[tuple[int, int]] = []
        asks: Counter[str] = Counter()
        cases: dict[str, Case | Ask | None] = {}
        numbers: dict[State, float | None] = {}
        for model in (0, 1):
            for policy in (0, 1):
                above, below, open_ = _place(model, policy)
                for state, weight in self._states(moment, period, model, policy):
                    try:
                        if state not in numbers:
                            numbers[state] = self._number(moment, state, cases)
                        number = numbers[state]
                        if number is not None:
                            row[above] += weight * number
                            row[below] += weight
                    except Ask as ask:
                        row[open_] += weight
                        asks.update(set(ask.references))
                if row[open_]:
                    unknown.append((model, policy))
        return row, unknown, Counter(dict.fromkeys(asks, 1))

    def _states(self, moment: Moment, period: int, model: int, policy: int) -> list[tuple[State, float]]:
        """What answers and decides the Call in a combination, with weights that sum to 1.

        Its own period's part is its own. The other period's is what was live there, in the proportions of its
        Decisions; models and policy of one period stand together as they were.
        """
        own = moment.state
        if model == period and policy == period:
            return [(own, 1.0)]
        mixture = self._mixtures[1 - period]
        total = sum(mixture.values())
        states: Counter[State] = Counter()
        for state, count in mixture.items():
            answers = own.model if model == period else state.model
            decides = own.policy if policy == period else state.policy
            states[State(answers, decides)] += count
        return [(state, count / total) for state, count in states.items()]

    def _number(self, moment: Moment, state: State, cases: dict[str, Case | Ask | None]) -> float | None:
        """The metric's number of one Call; None where it would have no Decision. Raises: Ask, Lost."""
        recorded = state == moment.state
        if recorded and self._metric.is_share:
            return self._metric.of(moment.action, None)
        case = self._case(moment, state.model, cases)
        if case is None:
            return None
        if recorded:
            return self._metric.of(self._world.acted(moment), case)
        try:
            return self._metric.of(self._world.decide(moment, case, state.policy), case)
        except Unanswered:
            return None

    def _case(self, moment: Moment, model: str, cases: dict[str, Case | Ask | None]) -> Case | None:
        if model not in cases:
            try:
                cases[model] = self._world.case(moment, model)
            except Unanswered:
                cases[model] = None
            except Ask as ask:
                cases[model] = ask
        found = cases[model]
        if isinstance(found, Ask):
            raise found
        return found


def _mixture(moments: Sequence[Moment]) -> Counter[State]:
    """What was live, and for how many Decisions. Raises: DrivetrainError where it changed too often to be replayed."""
    states = Counter(moment.state for moment in moments)
    if len(states) > STATES_MAX:
        raise DrivetrainError(
            f"{len(states)} combinations of models and policy were live in one period.",
            do=f"Choose shorter periods; at most {STATES_MAX} combinations are replayed.",
        )
    return states


def _place(model: int, policy: int) -> tuple[int, int, int]:
    """The columns of a model's and a policy's period: the sum, the Decisions, the weight of what is unknown."""
    first = (model * 2 + policy) * 3
    return first, first + 1, first + 2


def _bounds(
    some: Combination, sums: Sequence[NDArray[np.float64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The metric by what is known, and the least and the most that it can be with numbers from 0 to 1."""
    numpy = load_numpy()
    above, below, open_ = (sums[TRAFFIC in some][:, at] for at in _place(int(MODEL in some), int(POLICY in some)))
    every = numpy.where(below + open_ == 0, numpy.nan, below + open_)
    known = above / numpy.where(below == 0, numpy.nan, below)
    return known, above / every, (above + open_) / every


_Bounds = Mapping[Combination, tuple[Any, Any, Any]]


def _shares(metric: Metric, points: _Bounds, drawn: _Bounds, unknown: Mapping[Combination, int]) -> tuple[Share, ...]:
    numpy = load_numpy()
    table = weights(FACTORS)
    exact = shapley(FACTORS, lambda some: float(points[some][0][0]))
    ends = shapley_bounds(FACTORS, {some: (float(one[1][0]), float(one[2][0])) for some, one in points.items()})
    shares = []
    for factor in FACTORS:
        if not any(unknown.values()):
            values = numpy.sum([weight * drawn[some][0] for some, weight in table[factor].items()], axis=0)
            shares.append(Share(factor=factor, known=True, interval=percentiles(exact[factor], values, LEVEL)))
        elif metric.is_share:
            shares.append(Share(factor=factor, known=False, least=ends[factor][0], most=ends[factor][1]))
        else:
            shares.append(Share(factor=factor, known=False))
    return tuple(shares)


def _gap(points: _Bounds, drawn: _Bounds, after: Combination, before: Combination) -> Interval:
    value = float(points[after][0][0] - points[before][0][0])
    return percentiles(value, drawn[after][0] - drawn[before][0], LEVEL)


def _number(function: Callable[..., Any], action: Action, case: Case | None, name: str) -> float:
    try:
        value = function(action, case)
    except (Exception, SystemExit) as fault:  # noqa: BLE001  it is the project's own code
        if isinstance(fault, NotKept | KeyError):
            raise Lost("what the metric reads was not kept") from None
        raise DrivetrainError(f"The metric `{name}` fails with {type(fault).__name__}.") from None
    if not isinstance(value, bool | int | float) or not abs(value) <= METRIC_MAX:
        raise DrivetrainError(
            f"The metric `{name}` gave {type(value).__name__} instead of a finite number.",
            do=f"Return a number of at most {METRIC_MAX:g}.",
        )
    return float(value)
