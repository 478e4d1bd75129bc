"""An attempt at a trained model: the row that it is asked about, and its answer as the workflow's output.

Owns what stands between a Call and `Environment.models`. How names meet is `project.model_fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from drivetrain.core.codec import JSON, MSGPACK
from drivetrain.core.declarations import Workflow
from drivetrain.core.errors import RequestError
from drivetrain.core.models import SCHEME, SCORED_DECODER, Pinned, Scored
from drivetrain.inference.answering import ROW_BYTES_MAX
from drivetrain.ports.inference import ModelRequest
from drivetrain.project.model_fit import CONFIDENCE, SCORES, Fit, fit
from drivetrain.providers.answers import Unusable
from drivetrain.routing.checks import Features

CANDIDATES_MAX = 1_000
"""Of one ranking, as scorers take them; more are a query for a search engine."""

Read = Callable[[Any, Mapping[str, Any], Any], Any]
"""(input, features, candidate) -> a column's value."""


class TrainedStep:
    """A trained model as a variant of one workflow."""

    __slots__ = ("_candidates", "_columns", "_fit", "_name", "_slo_ms", "pinned")

    def __init__(self, pinned: Pinned, workflow: Workflow[Any, Any]) -> None:
        self.pinned = pinned
        self._name = workflow.name
        self._fit: Fit = fit(pinned.signature, workflow)
        attributes = _attributes(workflow.input)
        self._columns: tuple[Read, ...] = tuple(
            _reader(kind, name, attributes, workflow.name) for kind, name in self._fit.columns
        )
        signature = pinned.signature
        self._candidates = (
            (attributes[signature.candidates], signature.candidate_id) if signature.task == "ranking" else None
        )
        self._slo_ms = (workflow.slo.p99_ms or 0) if workflow.slo is not None else 0

    @property
    def reference(self) -> str:
        """The version, as records name it: `models:/NAME/NUMBER`."""
        return SCHEME + self.pinned.id

    def request(self, value: Any, features: Features, timeout_ms: int) -> ModelRequest:
        """What is asked. Raises: RequestError where the input has no such row."""
        known = features or {}
        if self._candidates is None:
            row = [read(value, known, None) for read in self._columns]
        else:
            field, id_field = self._candidates
            listed = getattr(value, field)
            if not isinstance(listed, list | tuple | None):
                raise RequestError(422, f"`{field}` is no list of candidates", code="row_refused", param=field)
            if len(listed or ()) > CANDIDATES_MAX:
                message = f"`{field}` lists more than {CANDIDATES_MAX} candidates"
                raise RequestError(422, message, code="too_many_candidates", param=field)
            row = [[_of(one, id_field), [read(value, known, one) for read in self._columns]] for one in listed or ()]
        try:
            encoded = MSGPACK.encode(row)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            message = f"the model of workflow `{self._name}` takes no such value ({type(error).__name__})"
            raise RequestError(422, message, code="row_refused") from None
        if len(encoded) > ROW_BYTES_MAX:
            message = f"the row has {len(encoded):,} bytes; a model takes at most {ROW_BYTES_MAX:,}"
            raise RequestError(422, message, code="row_refused")
        return ModelRequest(self.pinned, encoded, timeout_ms, self._slo_ms)

    def text(self, body: bytes) -> str:
        """The model's answer as a message's content: JSON of the output type's fields, or a text. Raises: Unusable."""
        try:
            scored = SCORED_DECODER.decode(body)
        except msgspec.MsgspecError as error:
            raise Unusable(f"the model's answer cannot be read: {error}") from error
        result = self._result(scored)
        if not self._fit.target:
            return result if isinstance(result, str) else JSON.encode(result).decode()
        answer: dict[str, Any] = {self._fit.target: result}
        if CONFIDENCE in self._fit.fills:
            answer[CONFIDENCE] = scored.confidence
        if SCORES in self._fit.fills:
            answer[SCORES] = scored.scores
        return JSON.encode(answer).decode()

    def _result(self, scored: Scored) -> Any:
        task = self.pinned.signature.task
        if task == "classification":
            found: Any = scored.label
        elif task == "regression":
            found = scored.value
        elif self._fit.ids_only:
            return [one.id for one in scored.ranking]
        else:
            id_name = self.pinned.signature.candidate_id
            return [{id_name: one.id, "score": one.score} for one in scored.ranking]
        if found is None:
            raise Unusable(f"{self.pinned.id} answered without a {task} result")
        return found


def _attributes(declared: type[Any] | None) -> dict[str, str]:
    """Name in JSON -> attribute."""
    if declared is None:
        return {}
    return dict(zip(declared.__struct_encode_fields__, declared.__struct_fields__, strict=True))


def _reader(kind: str, name: str, attributes: Mapping[str, str], workflow: str) -> Read:
    if kind == "input":
        attribute = attributes[name]
        return lambda value, _features, _candidate: getattr(value, attribute)
    if kind == "text":
        return lambda value, _features, _candidate: value.text
    if kind == "candidate":
        return lambda _value, _features, candidate: _of(candidate, name)

    def feature(_value: Any, features: Mapping[str, Any], _candidate: Any) -> Any:
        if name not in features:
            message = f"the model of workflow `{workflow}` needs the feature `{name}`, which its FeatureService lacks"
            raise RequestError(500, message, code="feature_unknown", kind="server_error")
        return features[name]

    return feature


def _of(candidate: Any, name: str) -> Any:
    return candidate.get(name) if isinstance(candidate, dict) else getattr(candidate, name, None)
