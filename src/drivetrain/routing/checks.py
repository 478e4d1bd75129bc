"""The user's rules, checks and validators, called at one boundary that turns what they raise into a reason."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from drivetrain.core.declarations import Check, Reject, Rule, Variant, Workflow

SLOW_MS = 5.0
"""The user's code stalls every call of a worker while it runs; beyond this it is counted by name."""


class Slow(msgspec.Struct):
    """How often a function of the user's overran, and its longest run."""

    count: int = 0
    longest_ms: float = 0.0


SlowCode = dict[str, Slow]


class Matched(msgspec.Struct, frozen=True):
    """What a rule did with an input."""

    matched: bool
    output: Any = None
    error: str = ""


class RuleStep:
    """A rule, ready to be tried."""

    __slots__ = ("_name", "_rule", "_slow", "name")

    def __init__(self, workflow: str, rule: Rule, slow: SlowCode) -> None:
        self._rule = rule
        self._slow = slow
        self._name = f"{workflow}.{rule.name}"
        self.name = rule.name

    def try_on(self, value: Any) -> Matched:
        """Whether the rule answers. A rule that raises does not, and says so."""
        rule, started = self._rule, time.perf_counter()
        try:
            if not rule.when(value):
                return Matched(False)
            return Matched(True, rule.then(value) if callable(rule.then) else rule.then)
        except Exception as error:  # noqa: BLE001  the boundary to the user's code
            return Matched(False, None, f"rule raised {type(error).__name__}")
        finally:
            note_time(self._slow, self._name, started)


def compiled_checks(workflow: Workflow[Any, Any], variant: Variant, slow: SlowCode) -> tuple[Check, ...]:
    """Everything an answer of `variant` must pass, in order: `accept`, then the workflow's validators."""
    accept = variant.accept
    declared: list[Check | Callable[..., Any]] = []
    if isinstance(accept, Sequence):
        declared += accept
    elif accept is not None:
        declared.append(accept)
    prefix = f"{workflow.name}.{variant.name}"
    return tuple(_measured(_as_check(one), prefix, slow) for one in (*declared, *workflow.validators))


def failing(checks: tuple[Check, ...], output: Any, value: Any) -> str | None:
    """The first reason against `output`, or None."""
    for check in checks:
        reason = check.test(output, value)
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


def _as_check(declared: Check | Callable[..., Any]) -> Check:
    if isinstance(declared, Check):
        return declared
    name = getattr(declared, "__name__", type(declared).__name__)
    takes_input = _takes_two(declared)

    def test(output: Any, value: Any) -> str | None:
        verdict = declared(output, value) if takes_input else declared(output)
        if verdict is None or verdict is True:
            return None
        return verdict if isinstance(verdict, str) and verdict else f"{name} said no"

    return Check(name, test)


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in kinds and one.default is inspect.Parameter.empty for one in parameters) >= 2


def _measured(check: Check, prefix: str, slow: SlowCode) -> Check:
    name = f"{prefix}.{check.name}"

    def test(output: Any, value: Any) -> str | None:
        started = time.perf_counter()
        try:
            return check.test(output, value)
        except Reject as reject:
            return str(reject) or f"{check.name} rejected it"
        except Exception as error:  # noqa: BLE001  the boundary to the user's code
            return f"{check.name} raised {type(error).__name__}"
        finally:
            note_time(slow, name, started)

    return Check(check.name, test)
