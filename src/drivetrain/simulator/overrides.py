"""What a test may ask of one request: `x-simulate: failure=status:503 latency_ms=5`, or the same in the message as
`[[simulate ...]]`.

Called by `desk` only where the TOML says `allow_overrides = true`.
"""

import re
from collections.abc import Iterator

import msgspec

from drivetrain.simulator.failures import FAILURE_KINDS, STATUS_KIND, Failure
from drivetrain.simulator.mistakes import suggestion

_IN_MESSAGE = re.compile(r"\[\[simulate ([^\]]*)\]\]")
_KEYS = ("failure", "latency_ms", "first_token_ms", "tokens_per_s", "output_tokens", "model", "times")
_CUT_AT_BYTE = "cut_at_byte"


class BadOverride(Exception):
    """An override that cannot be read; the message says why."""


class Override(msgspec.Struct, kw_only=True):
    """What replaces the TOML for one request; None keeps the TOML's value."""

    failure: Failure | None = None
    latency_ms: float | None = None
    first_token_ms: float | None = None
    tokens_per_s: float | None = None
    output_tokens: int | None = None
    model: str | None = None
    """Only for this model; a fallback that is sent the same message answers well."""
    times: int | None = None
    """Only for the first so many identical requests."""


def overrides_in(header: bytes | None, message: str) -> list[Override]:
    """Every override of a request. Raises: BadOverride."""
    found = [] if header is None else [_parsed(header.decode("latin-1"))]
    if "[[simulate " in message:
        found += [_parsed(match) for match in _IN_MESSAGE.findall(message)]
    return found


def without_overrides(message: str) -> str:
    """The message as if no override were in it."""
    return _IN_MESSAGE.sub("", message).strip() if "[[simulate " in message else message


def _parsed(text: str) -> Override:
    override = Override()
    for key, value in _pairs(text):
        if key == "failure":
            override.failure = _failure(value)
        elif key == "model":
            override.model = value
        elif key in ("times", "output_tokens"):
            setattr(override, key, int(_number(key, value)))
        else:
            setattr(override, key, _number(key, value))
    return override


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for word in text.replace(",", " ").split():
        key, equals, value = word.partition("=")
        if not equals or key not in _KEYS:
            raise BadOverride(f"The override {word!r} is not key=value with a known key.{suggestion(key, _KEYS)}")
        yield key, value


def _failure(value: str) -> Failure:
    kind, _, argument = value.partition(":")
    if kind == STATUS_KIND:
        status = _number("status", argument)
        if not 400 <= status <= 599:
            raise BadOverride(f"The override failure={value} needs a status from 400 to 599.")
        return Failure(STATUS_KIND, status)
    if kind == _CUT_AT_BYTE:
        return Failure("cut", _number(_CUT_AT_BYTE, argument))
    if kind not in FAILURE_KINDS:
        known = (STATUS_KIND, _CUT_AT_BYTE, *FAILURE_KINDS)
        raise BadOverride(f"The override failure={value} names no known failure.{suggestion(kind, known)}")
    return Failure(kind, _number(kind, argument) if argument else -1)


def _number(key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e9:
        raise BadOverride(f"The override {key} needs a number of at least 0; found {value!r}.")
    return number
