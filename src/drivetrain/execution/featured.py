"""A Call's features: read before its route, seen by its rules, checks and prompts, and sealed into its record.

Owns how an input becomes the keys of its entities, and what a missing entity means. Where vectors are kept is for the
room `features/`; a replay gives back what was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from drivetrain.core.calls import Attribution
from drivetrain.core.codec import MSGPACK
from drivetrain.core.declarations import Workflow
from drivetrain.core.errors import DrivetrainError, RequestError
from drivetrain.core.features import FeatureRecordV1, FeaturesSeenV1
from drivetrain.core.outcomes import business_key_of
from drivetrain.execution.admission import Admitted
from drivetrain.execution.environment import FeaturesDoor

MISSING = "features_missing"
UNAVAILABLE = "features_unavailable"

Fields = tuple[tuple[str, Callable[[Any, Attribution], Any]], ...]


class FeaturePlan:
    """What a workflow needs of its FeatureService, compiled."""

    __slots__ = ("_fields", "_refuses", "_workflow", "service")

    def __init__(self, workflow: Workflow[Any, Any]) -> None:
        features = workflow.features
        self._workflow = workflow.name
        self.service: str = features if isinstance(features, str) else features.name
        names = {*(workflow.input.__struct_fields__ if workflow.input is not None else ()), *workflow.entity_keys}
        self._fields: Fields = tuple(
            (name, _reader(workflow.entity_keys.get(name, name), typed=workflow.input is not None))
            for name in sorted(names)
        )
        self._refuses = workflow.features_missing == "refuse"

    def read(self, door: FeaturesDoor | None, admitted: Admitted, who: Attribution, now_ns: int) -> Featured:
        """Raises: RequestError where they cannot be had, or where an entity is missing and the workflow refuses it."""
        given = {name: read(admitted.value, who) for name, read in self._fields}
        if door is None:
            raise unavailable(self._workflow, "this process reads none")
        try:
            seen = door.read(self.service, given, now_ns)
        except RequestError:
            raise
        except DrivetrainError as error:
            raise unavailable(self._workflow, error.what) from error
        if seen.missing and self._refuses:
            named = ", ".join(f"`{name}`" for name in seen.missing)
            message = f"no features are known of {named}, and workflow `{self._workflow}` does not go on without"
            if seen.as_of_ns == 0:
                message += ". They were never materialized: run `drivetrain features materialize`"
            raise RequestError(422, message, code=MISSING, kind="invalid_request_error")
        record = FeatureRecordV1(seen.given, seen.values, seen.views)
        return Featured(
            seen.values,
            FeaturesSeenV1(self.service, seen.fingerprint, seen.as_of_ns, seen.stale, seen.missing),
            MSGPACK.encode(record),
        )


class Featured(msgspec.Struct, frozen=True):
    """The features of one Call."""

    values: Mapping[str, Any]
    seen: FeaturesSeenV1
    """For its record, not sealed yet."""
    record: bytes
    """What is sealed into it: a `FeatureRecordV1` as msgpack."""


def unavailable(workflow: str, why: str) -> RequestError:
    """Nothing is answered without the features that a workflow says it needs."""
    return RequestError(
        503, f"the features of workflow `{workflow}` cannot be read: {why}", code=UNAVAILABLE, kind="server_error",
        retry_after_s=1,
    )  # fmt: skip


def business_key(field: str) -> Callable[[Any], str]:
    """How a Call's business key is read from its input; empty where there is none that can be one."""
    return lambda value: business_key_of(getattr(value, field, None))


def _reader(source: str, *, typed: bool) -> Callable[[Any, Attribution], Any]:
    """A value of a Call: a field of its input, `user`, or `tag:NAME`."""
    if source.startswith("tag:"):
        prefix = source[4:] + "="
        return lambda _value, who: next((tag[len(prefix) :] for tag in who.tags if tag.startswith(prefix)), None)
    if source == "user" and not typed:
        return lambda _value, who: who.user or None
    return lambda value, who: getattr(value, source, who.user or None if source == "user" else None)
