"""One Outcome as somebody gives it, checked: the same rules for HTTP, files and Python."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from drivetrain.core.calls import OutcomeV1
from drivetrain.core.declarations import Workflow
from drivetrain.core.errors import did_you_mean
from drivetrain.core.ids import is_call_id
from drivetrain.core.times import parse_iso

NAME_CHARS_MAX = 128
"""Of a metric and of a source."""
VALUE_CHARS_MAX = 4_096
KEY_CHARS_MAX = 256
"""Of a business key: an order's number, not a document."""
NUMBER_MAX = int(sys.float_info.max)
FIELDS = ("call_id", "workflow", "key", "metric", "value", "source", "event_time")
DEFAULT_SOURCE = "api"


class OutcomeMistake(ValueError):
    """What is wrong with one Outcome, and in which field."""

    def __init__(self, field: str, what: str, *, code: str = "invalid_value", alone: str = "") -> None:
        super().__init__(f"{field} {what}" if field else what)
        self.field = field
        """Empty where it is not about one."""
        self.what = what
        """What follows the field's name in a sentence."""
        self.code = code
        self.alone = alone
        """The same where the field was named already; empty: `what` can stand there."""


def read_outcome(
    given: Any, workflows: Mapping[str, Workflow[Any, Any]], *, arrived_ns: int, api_key: str = ""
) -> OutcomeV1:
    """The Outcome that an object of `FIELDS` tells. workflows: those that it may name. Raises: OutcomeMistake.

    It names its Call by `call_id`, or its Calls by `workflow` and `key`. Without `event_time` it happened on arrival.
    """
    if not isinstance(given, Mapping):
        raise OutcomeMistake("", "must be an object", code="invalid_type")
    for name in given:
        if name not in FIELDS:
            raise OutcomeMistake("", f"has no field `{str(name)[:64]}`. {did_you_mean(str(name)[:64], FIELDS)}")
    call_id, workflow, business_key = _target(given, workflows)
    return OutcomeV1(
        call_id,
        _short_text(given.get("metric"), "metric"),
        _short_text(given.get("source", DEFAULT_SOURCE), "source"),
        _value(given.get("value")),
        _event_ns(given.get("event_time"), arrived_ns),
        arrived_ns,
        api_key,
        workflow,
        business_key,
    )


def business_key_of(value: Any) -> str:
    """The text under which a business key is kept, in Calls and in Outcomes; empty where `value` can be none.

    A text stays as it is, a whole number is its digits: `4711` and `"4711"` are one key.
    """
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**KEY_CHARS_MAX:
        value = str(value)
    if not isinstance(value, str) or len(value) > KEY_CHARS_MAX or not value.isprintable():
        return ""
    return value


def _target(given: Mapping[Any, Any], workflows: Mapping[str, Workflow[Any, Any]]) -> tuple[str, str, str]:
    """Call id, workflow, business key; what the Outcome does not name is empty."""
    if given.get("workflow") is None and given.get("key") is None:
        call_id = given.get("call_id")
        if not isinstance(call_id, str) or not is_call_id(call_id):
            what = "must be the id of a Call, as the header x-request-id gave it"
            raise OutcomeMistake("call_id", what)
        return call_id, "", ""
    if given.get("call_id") is not None:
        raise OutcomeMistake("call_id", "stands beside `workflow` and `key`; name the Call by one of them")
    name = given.get("workflow")
    if not isinstance(name, str) or not name:
        raise OutcomeMistake("workflow", "must be the name of the workflow whose Calls have this key")
    workflow = workflows.get(name)
    if workflow is None:
        seen = f"`{name[:64]}`. {did_you_mean(name[:64], workflows)}"
        raise OutcomeMistake("workflow", f"names no workflow: {seen}", alone=f"there is no workflow {seen}")
    if workflow.outcome_key is None:
        what = f"is `{name[:64]}`, which declares no `outcome_key`; name its Calls by `call_id`"
        raise OutcomeMistake("workflow", what)
    key = business_key_of(given.get("key"))
    if not key:
        what = f"must be what `{workflow.outcome_key}` held: a text of 1 to {KEY_CHARS_MAX} printable characters"
        raise OutcomeMistake("key", f"{what}, or a whole number")
    return "", name, key


def _short_text(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value or len(value) > NAME_CHARS_MAX or not value.isprintable():
        what = f"must be a text of 1 to {NAME_CHARS_MAX} printable characters"
        raise OutcomeMistake(field, what, code="invalid_type")
    return value


def _value(value: Any) -> str | float | bool:
    if isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= NUMBER_MAX else None
    if isinstance(value, str) and len(value) > VALUE_CHARS_MAX:
        raise OutcomeMistake("value", f"is longer than {VALUE_CHARS_MAX} characters")
    if isinstance(value, str) and any("\ud800" <= one <= "\udfff" for one in value):
        raise OutcomeMistake("value", "must be text that UTF-8 can hold")
    if not isinstance(value, str | float | bool) or (isinstance(value, float) and not math.isfinite(value)):
        raise OutcomeMistake("value", "must be a string, a number or true/false")
    return value


def _event_ns(text: Any, arrived_ns: int) -> int:
    if text is None:
        return arrived_ns
    try:
        event_ns = parse_iso(text)
        if not -(2**63) <= event_ns < 2**63:
            raise OverflowError
    except (TypeError, ValueError, OverflowError) as error:
        what = "must be an ISO 8601 time from 1678 to 2261, such as 2026-01-31T12:00:00Z"
        raise OutcomeMistake("event_time", what) from error
    return event_ns
