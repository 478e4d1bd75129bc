"""Outcomes from clients: one, a list, or `{"outcomes": [...]}`; all are recorded or none."""

from __future__ import annotations

import math
import sys
from typing import Any

from drivetrain.core.calls import OutcomeV1
from drivetrain.core.codec import MalformedJson, parse_json
from drivetrain.core.errors import did_you_mean
from drivetrain.core.ids import is_call_id
from drivetrain.core.times import parse_iso
from drivetrain.execution.admission import bad_request

OUTCOMES_MAX = 10_000
"""In one request."""
NAME_CHARS_MAX = 128
VALUE_CHARS_MAX = 4_096
NUMBER_MAX = int(sys.float_info.max)
FIELDS = ("call_id", "metric", "value", "source", "event_time")


def read_outcomes(raw: bytes, *, key: str, now_ns: int) -> list[OutcomeV1]:
    """Raises: RequestError that names the first outcome that is wrong, and how."""
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
    # Of one request, too, the later one holds: each arrives a nanosecond after the one before it.
    return [_read(one, f"outcomes[{place}]", key, now_ns, now_ns + place) for place, one in enumerate(given)]


def _read(given: Any, where: str, key: str, now_ns: int, arrived_ns: int) -> OutcomeV1:
    if not isinstance(given, dict):
        raise bad_request(f"{where} must be an object", param=where, code="invalid_type")
    for name in given:
        if name not in FIELDS:
            raise bad_request(f"{where} has no field `{name[:64]}`. {did_you_mean(name[:64], FIELDS)}", param=where)
    call_id = given.get("call_id")
    if not isinstance(call_id, str) or not is_call_id(call_id):
        message = f"{where}.call_id must be the id of a Call, as the header x-request-id gave it"
        raise bad_request(message, param=f"{where}.call_id")
    metric = _short_text(given.get("metric"), f"{where}.metric")
    source = _short_text(given.get("source", "api"), f"{where}.source")
    value = given.get("value")
    if isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= NUMBER_MAX else None
    if isinstance(value, str) and len(value) > VALUE_CHARS_MAX:
        raise bad_request(f"{where}.value is longer than {VALUE_CHARS_MAX} characters", param=f"{where}.value")
    if not isinstance(value, str | float | bool) or (isinstance(value, float) and not math.isfinite(value)):
        raise bad_request(f"{where}.value must be a string, a number or true/false", param=f"{where}.value")
    event_ns = arrived_ns
    if given.get("event_time") is not None:
        try:
            event_ns = parse_iso(given["event_time"])
            if not -(2**63) <= event_ns < 2**63:
                raise OverflowError
        except (TypeError, ValueError, OverflowError) as error:
            message = f"{where}.event_time must be an ISO 8601 time from 1678 to 2261, such as 2026-01-31T12:00:00Z"
            raise bad_request(message, param=f"{where}.event_time") from error
    return OutcomeV1(call_id, metric, source, value, event_ns, arrived_ns, key)


def _short_text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value or len(value) > NAME_CHARS_MAX or not value.isprintable():
        message = f"{where} must be a text of 1 to {NAME_CHARS_MAX} printable characters"
        raise bad_request(message, param=where, code="invalid_type")
    return value
