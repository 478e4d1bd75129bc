"""Which logged Calls are replayed, and what their answers are held against.

Calls of callers only: what evals, judges, shadows and probes asked says nothing of the traffic. Of the newest ones a
sample is drawn by the hash of their ids, each slice alike or all that it has, with the weight that makes the sample
speak for all of them. Pure: whoever calls it opens payloads.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.calls import Call
from drivetrain.core.codec import MalformedJson, parse_json
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.datasets.sampling import allotted
from drivetrain.evals.past import cluster_of
from drivetrain.evals.upgrading.pairs import Side

EXPECTED = "expected"
"""The Outcome's metric that says what is right, unless it is named otherwise or as a field of the output."""
NO_SLICE = "(none)"
ATTRIBUTES: Mapping[str, Callable[[Call], str]] = {
    "variant": lambda call: call.variant,
    "team": lambda call: call.attribution.team,
    "tenant": lambda call: call.attribution.tenant,
    "use_case": lambda call: call.attribution.use_case,
    "key": lambda call: call.attribution.key,
}
"""What a Call can be sliced by beside its tags and its input's fields."""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One Call that could be replayed."""

    call_id: str
    slice: str
    asked: bytes
    """A digest of its input: equal inputs have equal ones."""


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """One Call that is replayed."""

    call_id: str
    slice: str
    weight: float


def slice_of(call: Call, by: str, value: Any) -> str:
    """A Call's slice. by: an attribute, `tag:NAME`, or a field of the input; value: the input as plain values."""
    if not by:
        return ""
    attribute = ATTRIBUTES.get(by)
    if attribute is not None:
        return attribute(call) or NO_SLICE
    if by.startswith("tag:"):
        name = by.removeprefix("tag:")
        said = [one.partition("=")[2] or "yes" for one in call.attribution.tags if one.partition("=")[0] == name]
        return said[0] if said else NO_SLICE
    for part in by.removeprefix("input.").split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None:
        return NO_SLICE
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def take(seen: Sequence[Seen], rows: int) -> list[Taken]:
    """So many of them, the same ones each time: every slice an equal share, or all that it has."""
    parts: dict[str, list[Seen]] = {}
    for one in seen:
        parts.setdefault(one.slice, []).append(one)
    ordered = sorted(parts.items(), key=lambda item: (len(item[1]), item[0]))
    shares = allotted([len(part) for _, part in ordered], rows)
    found: list[Taken] = []
    for (name, part), share in zip(ordered, shares, strict=True):
        chosen = sorted(part, key=lambda one: hashlib.blake2b(one.call_id.encode(), digest_size=8).digest())[:share]
        found += [Taken(call_id=one.call_id, slice=name, weight=len(part) / share) for one in chosen]
    return found


def repeated_share(seen: Sequence[Seen]) -> float:
    """The share of Calls whose input was asked before, among these."""
    return 1 - len({one.asked for one in seen}) / len(seen) if seen else 0.0


def side_of(call: Call, text: str | None, *, typed: bool) -> Side:
    """What was answered. typed: whether the workflow has an output type, so that its texts are JSON."""
    value: Any = None
    if typed and text is not None:
        try:
            value = parse_json(text.encode("utf-8", "replace"))
        except MalformedJson:
            value = None
    return Side(
        text=text, value=value, error=call.error, finish_reason=call.finish_reason,
        # What a cached answer would have cost: the candidate is asked anew, too.
        cost_nano_usd=call.cost_nano_usd + sum(one.saved_nano_usd for one in call.attempts),
        latency_us=max((one.ended_us for one in call.attempts), default=0),
        tokens=sum(one.usage.output_tokens for one in call.attempts), call_id=call.call_id,
    )  # fmt: skip


def group_of(call: Call) -> str:
    """Calls of one person belong together; empty where it stands for itself."""
    cluster = cluster_of(call)
    return "" if cluster == call.call_id else hashlib.blake2b(cluster.encode(), digest_size=8).hexdigest()


class Truths:
    """What Outcomes say is right."""

    def __init__(self, said: Sequence[str], output_fields: Sequence[str]) -> None:
        """said: `METRIC` or `FIELD=METRIC`; none: a metric named `expected`, or as a field of the output is.

        Raises: DrivetrainError where a field is none of the output's.
        """
        self._fields = tuple(output_fields)
        self.metrics: dict[str, str] = {}
        """Metric -> the output's field that it is the truth of; empty: of the whole answer."""
        for one in said:
            field, equals, metric = one.partition("=")
            if not equals:
                field, metric = (one if one in self._fields else self._only()), one
            if field and field not in self._fields:
                raise DrivetrainError(
                    f"The output has no field `{field[:80]}`. {did_you_mean(field, self._fields)}".rstrip(),
                    do=f"It has {', '.join(f'`{name}`' for name in self._fields) or 'none: it is a text'}.",
                )
            self.metrics[metric] = field
        if not said:
            self.metrics = {name: name for name in self._fields}
            self.metrics.setdefault(EXPECTED, self._only())

    def of(self, call: Call) -> Any:
        """What is right: a value, or the output's fields -> values; None where no Outcome says so."""
        found: dict[str, Any] = {}
        latest: dict[str, int] = {}
        for one in call.outcomes:
            field = self.metrics.get(one.metric)
            if field is not None and one.arrived_ns >= latest.get(field, 0):
                found[field], latest[field] = one.value, one.arrived_ns
        if not self._fields:
            return found.get("")
        return {name: value for name, value in found.items() if name} or None

    def _only(self) -> str:
        return self._fields[0] if len(self._fields) == 1 else ""


def label_of(side: Side) -> str:
    """An answer as a label: without the numbers beside it, such as a confidence; as it is where it has nothing else."""
    label = _unnumbered(side.value)
    if label in (None, {}, []):
        return side.text or ""
    return msgspec.json.encode(label, order="deterministic").decode()


def _unnumbered(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = ((name, _unnumbered(one)) for name, one in value.items())
        return {name: one for name, one in kept if one not in (None, {}, [])}
    if isinstance(value, list):
        return [one for one in map(_unnumbered, value) if one not in (None, {}, [])]
    return None if isinstance(value, int | float) and not isinstance(value, bool) else value


def labels_share(answers: Iterable[str], least: int) -> tuple[int, float]:
    """(how many different answers there are, share of Calls whose answer was given at least so often)."""
    counts = Counter(answers)
    total = sum(counts.values())
    return len(counts), sum(many for many in counts.values() if many >= least) / total if total else 0.0
