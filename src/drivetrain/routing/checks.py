"""The user's rules, checks and validators, called at one boundary that turns what they raise into a reason."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.declarations import Check, Reject, Rule, Variant, Workflow

SLOW_MS = 5.0
"""The user's code stalls every call of a worker while it runs; beyond this it is counted by name."""
NAME_CHARACTERS_MAX = 64
"""Of a missing name that a reason tells; a longer one is no name of a field or feature."""


class Slow(msgspec.Struct):
    """How often a function of the user's overran, and its longest run."""

    count: int = 0
    longest_ms: float = 0.0


SlowCode = dict[str, Slow]
Features = Mapping[str, Any] | None
"""What a Call's FeatureService gave it; None where its workflow names none."""


class Matched(msgspec.Struct, frozen=True):
    """What a rule did with an input."""

    matched: bool
    output: Any = None
    error: str = ""


class CheckStep(msgspec.Struct, frozen=True):
    """A check as it is run: measured, and what it raises turned into a reason."""

    name: str
    against: Callable[[Any, Any, Features], str | None]
    """(output, input, features) -> None, or the reason against it."""


class RuleStep:
    """A rule, ready to be tried."""

    __slots__ = ("_name", "_rule", "_slow", "_then_takes", "_when_takes", "name")

    def __init__(self, workflow: str, rule: Rule, slow: SlowCode) -> None:
        self._rule = rule
        self._slow = slow
        self._name = f"{workflow}.{rule.name}"
        self._when_takes = _takes(rule.when)
        self._then_takes = _takes(rule.then) if callable(rule.then) else 0
        self.name = rule.name

    def try_on(self, value: Any, features: Features = None) -> Matched:
        """Whether the rule answers. A rule that raises does not, and says so."""
        rule, started = self._rule, time.perf_counter()
        when: Callable[..., Any] = rule.when
        try:
            if not (when(value, features) if self._when_takes >= 2 else when(value)):
                return Matched(False)
            then: Any = rule.then
            if self._then_takes:
                then = then(value, features) if self._then_takes >= 2 else then(value)
            return Matched(True, then)
        except Exception as error:  # noqa: BLE001  the boundary to the user's code
            return Matched(False, None, f"rule raised {_told(error)}")
        finally:
            note_time(self._slow, self._name, started)


def compiled_checks(workflow: Workflow[Any, Any], variant: Variant, slow: SlowCode) -> tuple[CheckStep, ...]:
    """Everything an answer of `variant` must pass, in order: `accept`, then the workflow's validators."""
    accept = variant.accept
    declared: list[Check | Callable[..., Any]] = []
    if isinstance(accept, Sequence):
        declared += accept
    elif accept is not None:
        declared.append(accept)
    prefix = f"{workflow.name}.{variant.name}"
    return tuple(_measured(_as_step(one), prefix, slow) for one in (*declared, *workflow.validators))


def failing(tests: tuple[CheckStep, ...], output: Any, value: Any, features: Features = None) -> str | None:
    """The first reason against `output`, or None."""
    for test in tests:
        reason = test.against(output, value, features)
        if reason is not None:
            return reason
    return None


def note_time(slow: SlowCode, name: str, started: float) -> None:
    """Counts a run of the user's code that took longer than `SLOW_MS`."""
    took_ms = (time.perf_counter() - started) * 1000
    if took_ms > SLOW_MS:
        seen = slow.setdefault(name, Slow())
        seen.count += 1
        seen.longest_ms = max(seen.longest_ms, took_ms)


def _as_step(declared: Check | Callable[..., Any]) -> CheckStep:
    if isinstance(declared, Check):
        check = declared
        return CheckStep(check.name, lambda output, value, _features: check.test(output, value))
    name = getattr(declared, "__name__", type(declared).__name__)
    takes = _takes(declared)

    def against(output: Any, value: Any, features: Features) -> str | None:
        verdict = declared(*(output, value, features)[:takes])
        if verdict is None or verdict is True:
            return None
        return verdict if isinstance(verdict, str) and verdict else f"{name} said no"

    return CheckStep(name, against)


def _takes(function: Callable[..., Any]) -> int:
    """How many of its arguments must be given by position: 1 to 3."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return min(3, max(1, sum(one.kind in kinds and one.default is inspect.Parameter.empty for one in parameters)))


def _told(error: Exception) -> str:
    """An exception's type, and the name that it misses where the raising code itself holds that name.

    No other text: it may quote the input, and reasons stand unencrypted in the record.
    """
    kind, name = type(error).__name__, None
    if isinstance(error, KeyError):
        name = error.args[0] if error.args else None
    elif isinstance(error, AttributeError | NameError):
        name = error.name
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None or not isinstance(name, str) or len(name) > NAME_CHARACTERS_MAX or not name.isidentifier():
        return kind
    code = place.tb_frame.f_code
    return f"{kind}: {name!r}" if name in code.co_names or name in code.co_consts else kind


def _measured(test: CheckStep, prefix: str, slow: SlowCode) -> CheckStep:
    name = f"{prefix}.{test.name}"

    def against(output: Any, value: Any, features: Features) -> str | None:
        started = time.perf_counter()
        try:
            return test.against(output, value, features)
        except Reject as reject:
            return str(reject) or f"{test.name} rejected it"
        except Exception as error:  # noqa: BLE001  the boundary to the user's code
            return f"{test.name} raised {_told(error)}"
        finally:
            note_time(slow, name, started)

    return CheckStep(test.name, against)
