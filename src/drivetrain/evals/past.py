"""Past Decisions as another policy can see them: the Case that each was made from, as far as it was kept.

A Decision keeps what its own policy reads. A candidate that reads more finds it where the Call's payloads were kept,
and nowhere else: what was not kept is never taken for null, and a Decision that needs it is counted as not re-decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.calls import Call
from drivetrain.core.declarations import Workflow
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.policies import Case, DecisionRecordV1, DecisionV1
from drivetrain.lake.subjects import ERASED
from drivetrain.ports.journal import Vault

SEALED_AS = "decision"
"""The kind under which a Decision's record is sealed."""
CLUSTERS_MIN = 20
"""With Calls of fewer people, resampling people says less than it seems to: then each Call counts by itself."""
NOT_KEPT = "what the candidate reads was not kept"
GONE = "erased, or older than payloads are kept"
ALTERED = "its record was altered"
NOTHING_SEALED = "nothing of what it was made from was kept"
_RECORD: msgspec.msgpack.Decoder[DecisionRecordV1] = msgspec.msgpack.Decoder(DecisionRecordV1)

Whole = Callable[[Call], Case]
"""The whole Case from a Call's payloads. Raises: DrivetrainError where they were not kept."""


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """One Decision of the past."""

    call: Call
    """Without its payloads."""
    decision: DecisionV1
    case: Case
    """Whole, or with views in it that note what was asked for and not kept."""
    missed: set[str]
    """What was asked for and not kept, such as `input.country`; filled while a policy decides."""
    is_whole: bool
    values: Mapping[str, Any] = {}
    """What belonged to the action, where that was kept."""

    @property
    def chosen(self) -> str:
        """What the policy itself would have done, exploration left out."""
        return self.decision.chosen or self.decision.action

    @property
    def cluster(self) -> str:
        """Calls of one person belong together."""
        return cluster_of(self.call)

    def truth(self, metric: str) -> str | float | bool | None:
        """The Outcome that holds, of whichever source spoke last; None where none has arrived."""
        known = [one for one in self.call.outcomes if one.metric == metric]
        return max(known, key=lambda one: one.arrived_ns).value if known else None


def cluster_of(call: Call) -> str:
    """Whose Call it is; by itself where nobody knows, or nobody may know any more."""
    user = call.attribution.user
    return user if user and not user.startswith(ERASED) else call.call_id


def clusters(names: Sequence[str]) -> Sequence[str] | None:
    """Which Calls are resampled together; None where too few people made them, and each stands for itself."""
    return names if len(set(names)) >= CLUSTERS_MIN else None


class Lost(Exception):
    """Why a Decision cannot be re-decided; the text is one of a few, so that they can be counted."""


class PastReader:
    """Opens what Decisions were made from."""

    def __init__(self, vault: Vault, workflow: Workflow[Any, Any], whole: Whole | None = None) -> None:
        """workflow: its types are those that a policy's function sees. whole: opens payloads; None: nobody does."""
        self._vault = vault
        self._workflow = workflow
        self._whole = whole

    def open(self, call: Call) -> Past:
        """The Case as its Decision kept it. Raises: Lost."""
        decision = call.decision
        assert decision is not None
        if not decision.sealed:
            return self.open_whole(call, NOTHING_SEALED)
        try:
            opened = self._vault.open(call.call_id, SEALED_AS, decision.sealed)
        except ValueError:
            raise Lost(ALTERED) from None
        if opened is None:
            raise Lost(GONE)
        missed: set[str] = set()
        record = _RECORD.decode(opened)
        case = kept_case(record, decision, call, self._workflow, missed)
        return Past(
            call=_light(call), decision=decision, case=case, missed=missed, is_whole=False, values=record.values
        )

    def open_whole(self, call: Call, otherwise: str = NOT_KEPT) -> Past:
        """The whole Case from the Call's payloads. Raises: Lost, with `otherwise` as the reason."""
        decision = call.decision
        assert decision is not None
        if self._whole is None:
            raise Lost(otherwise)
        try:
            case = self._whole(call)
        except DrivetrainError:
            raise Lost(otherwise) from None
        return Past(call=_light(call), decision=decision, case=case, missed=set(), is_whole=True)


def kept_case(
    record: DecisionRecordV1,
    decision: DecisionV1,
    call: Call,
    workflow: Workflow[Any, Any],
    missed: set[str],
) -> Case:
    """The Case as far as a Decision's record holds it; `missed` hears what is asked for beyond that."""
    inputs, facts = record.inputs, record.case_facts
    kept: dict[str, Any] = {}
    for name in ("input", "answer"):
        kind = workflow.input if name == "input" else workflow.output
        kept[name] = _view(inputs[name], kind, name, missed) if name in inputs else Kept({}, name, missed)
    confidence = facts.get("confidence", decision.confidence)
    return Case(
        input=kept["input"],
        # Without a FeatureService there was nothing to keep.
        features={} if workflow.features is None else KeptMap(inputs.get("features") or {}, "features", missed),
        answer=kept["answer"],
        confidence=confidence,
        variant=facts.get("variant", call.variant),
        cost_usd=facts.get("cost_usd", call.cost_nano_usd / 1e9),
        degraded=facts.get("degraded", call.degraded),
    )


class NotKept(AttributeError):
    """A policy asked for what was not kept."""


class Kept:
    """A record of which some fields were kept, as a policy's function sees it."""

    __slots__ = ("_fields", "_kind", "_missed", "_path")

    def __init__(self, fields: Mapping[str, Any], path: str, missed: set[str], kind: Any = None) -> None:
        """kind: the Record that it is a part of, where that is known: its fields may have other names in JSON."""
        self._fields = fields
        self._path = path
        self._missed = missed
        self._kind = kind

    def __getattr__(self, attribute: str) -> Any:
        name = _json_names(self._kind).get(attribute, attribute)
        if name not in self._fields:
            self._missed.add(f"{self._path}.{name}")
            raise NotKept(f"{self._path}.{name} was not kept")
        value = self._fields[name]
        return Kept(value, f"{self._path}.{name}", self._missed) if isinstance(value, Mapping) else value

    def kept_fields(self) -> Mapping[str, Any]:
        """What there is, as plain JSON values."""
        return self._fields


class KeptMap(Mapping[str, Any]):
    """Features of which some were kept."""

    __slots__ = ("_fields", "_missed", "_path")

    def __init__(self, fields: Mapping[str, Any], path: str, missed: set[str]) -> None:
        self._fields = fields
        self._path = path
        self._missed = missed

    def __getitem__(self, name: str) -> Any:
        try:
            return self._fields[name]
        except KeyError:
            self._missed.add(f"{self._path}.{name}")
            raise

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def plain(case: Case) -> Case:
    """The same with plain JSON values, as a decision table sees it."""
    return msgspec.structs.replace(
        case,
        input=_builtins(case.input),
        features=dict(case.features),
        answer=_builtins(case.answer),
    )


def value_at(case: Case, path: str) -> Any:
    """What stands at `input.order.country`, `features.orders_7d`, `answer.intent` or `variant`.

    Below a null is null. Raises: KeyError where nothing stands, or nothing was kept.
    """
    first, *rest = path.split(".")
    if first not in case.__struct_fields__:
        raise KeyError(path)
    value: Any = getattr(case, first)
    for name in rest:
        if value is None:
            return None
        if isinstance(value, Kept):
            value = value.kept_fields()
        if isinstance(value, Mapping):
            value = value[name]
        elif name in getattr(value, "__struct_fields__", ()):
            value = getattr(value, name)
        else:
            raise KeyError(path)
    return value


def has(case: Case, path: str) -> bool:
    """Whether something stands at a path."""
    try:
        value_at(case, path)
    except KeyError:
        return False
    return True


def _view(value: Any, kind: Any, path: str, missed: set[str]) -> Any:
    """A kept value as its own type where every field of it was kept."""
    if not isinstance(value, Mapping):
        return value
    names = _json_names(kind)
    if names and all(name in value for name in names.values()):
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError:
            pass  # another version of the workflow's types made it
    return Kept(value, path, missed, kind)


def _json_names(kind: Any) -> Mapping[str, str]:
    """Attribute -> name in JSON; empty of what is no Record."""
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return {}
    return dict(zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True))


def _builtins(value: Any) -> Any:
    return value.kept_fields() if isinstance(value, Kept) else msgspec.to_builtins(value)


def _light(call: Call) -> Call:
    """Thousands of Calls are held at a time; none needs its payloads any more."""
    return msgspec.structs.replace(call, request=b"", answers=b"", attempts=(), features=None)
