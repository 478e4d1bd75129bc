"""Outcomes from clients: one, a list, or `{"outcomes": [...]}`; all are recorded or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from drivetrain.core.calls import OutcomeV1
from drivetrain.core.codec import MalformedJson, parse_json
from drivetrain.core.declarations import Workflow
from drivetrain.core.outcomes import OutcomeMistake, read_outcome
from drivetrain.execution.admission import bad_request
from drivetrain.execution.plan import WorkflowPlan

OUTCOMES_MAX = 10_000
"""In one request."""


class CallableWorkflows(Mapping[str, Workflow[Any, Any]]):
    """The workflows that a key may call: business keys can be guessed, so nobody names another's Calls by them."""

    def __init__(self, plans: Mapping[str, WorkflowPlan], may_call: Callable[[str], bool]) -> None:
        self._plans = plans
        self._may_call = may_call

    def __getitem__(self, name: str) -> Workflow[Any, Any]:
        if not self._may_call(name):
            raise KeyError(name)
        return self._plans[name].workflow

    def __iter__(self) -> Iterator[str]:
        return filter(self._may_call, self._plans)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def read_outcomes(
    raw: bytes, *, key: str, now_ns: int, workflows: Mapping[str, Workflow[Any, Any]] | None = None
) -> list[OutcomeV1]:
    """What a request says. key: name of its API key. workflows: those whose Calls it may name by business key.

    Raises: RequestError that names the first outcome that is wrong, and how.
    """
    try:
        body = parse_json(raw)
    except MalformedJson as error:
        raise bad_request(f"the body is no valid JSON: {error}", code="invalid_json") from error
    if isinstance(body, dict) and "outcomes" in body:
        for name in body:
            if name != "outcomes":
                message = f"`{name[:64]}` stands beside `outcomes`; write it into each of them"
                raise bad_request(message, param=name[:64])
        body = body["outcomes"]
    given = body if isinstance(body, list) else [body]
    if not given or len(given) > OUTCOMES_MAX:
        raise bad_request(f"give between 1 and {OUTCOMES_MAX} outcomes, not {len(given)}", param="outcomes")
    found = []
    for place, one in enumerate(given):
        try:
            # Of one request, too, the later one holds: each arrives a nanosecond after the one before it.
            found.append(read_outcome(one, workflows or {}, arrived_ns=now_ns + place, api_key=key))
        except OutcomeMistake as error:
            where = f"outcomes[{place}].{error.field}" if error.field else f"outcomes[{place}]"
            raise bad_request(f"{where} {error.what}", param=where, code=error.code) from error
    return found
