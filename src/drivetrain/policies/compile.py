"""A policy made ready to decide: its table in the engine or its function, its version, and its coin.

Owns what a Decision is: which action, under which rule, with which chance, and what happens where the policy fails.
Compiled once per Snapshot by whoever serves or replays it; `decide` never waits and touches nothing but its arguments.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.policies import Action, Case, Explore, Policy
from drivetrain.policies.cases import SEALED, apart, part_of, wanted
from drivetrain.policies.engine import Engine, EngineFault
from drivetrain.policies.exploration import chances, toss
from drivetrain.policies.functions import source_of
from drivetrain.policies.graph_parts import CONTEXT, RULE_FIELD, Graphs
from drivetrain.policies.graph_reading import path_of
from drivetrain.policies.graphs import read_graphs
from drivetrain.policies.verdict import PolicyFailed, Verdict
from drivetrain.project.policy_checks import (
    ACTION_CHARS_MAX,
    FOLDER,
    REASON_CHARS_MAX,
    plain_text,
    unrecordable,
)

CONTEXT_BYTES_MAX = 64 * 1024
"""What a table reads of one Case, as JSON; what it may do with it is bounded by this."""
NO_RULE = "no rule matches"
EXPLORED = "explored"
"""The reason of an action that the coin chose."""

_ENCODE = msgspec.json.Encoder().encode


class Own(msgspec.Struct, frozen=True, kw_only=True):
    """What the policy itself says of a Case, before `otherwise` and the coin."""

    action: str = ""
    """Empty where it failed."""
    reason: str = ""
    rule: str = ""
    values: Mapping[str, Any] = {}
    failed: str = ""


def as_policy(value: Policy | str, workflow: str) -> Policy:
    """A workflow's `policy` as a Policy: the name of a table's file stands for a policy named like the workflow."""
    return value if isinstance(value, Policy) else Policy(workflow, table=value)


def compile_policy(
    policy: Policy | str,
    files: Mapping[str, bytes],
    *,
    workflow: str = "",
    clock_ns: Callable[[], int] = time.thread_time_ns,
) -> CompiledPolicy:
    """The policy of a workflow, ready to decide.

    files: the Snapshot's. clock_ns: by which `limit_ms` is measured; by default this thread's own time, so that a busy
    machine changes no Decision.
    Raises: DrivetrainError where its table is missing or refused, or where the extra `policies` is not installed.
    Costs milliseconds for a table of a thousand rules.
    """
    declared = as_policy(policy, workflow)
    if declared.decide is not None:
        if declared.table is not None:
            raise DrivetrainError(
                f"The policy `{declared.name}` has a table and a function.", do="Keep one: `table=` or `decide=`."
            )
        return CompiledPolicy(declared, source_of(declared.decide, files), None, None, clock_ns)
    if declared.table is None:
        raise DrivetrainError(
            f"The policy `{declared.name}` has neither a table nor a function.", do="Give it `table=` or `decide=`."
        )
    main = table_file(declared.table, files)
    graphs = read_graphs(main, files)
    content = b"\0".join(part for file in sorted(graphs.files) for part in (file.encode(), files[file]))
    return CompiledPolicy(declared, content, graphs, Engine(graphs), clock_ns)


def table_file(table: str, files: Mapping[str, bytes]) -> str:
    """Path of a table in a project. Raises: DrivetrainError with the nearest one."""
    path = path_of(table)
    if path not in files or not path.startswith(FOLDER):
        known = [one.removeprefix(FOLDER) for one in files if one.startswith(FOLDER) and one.endswith(".json")]
        raise DrivetrainError(
            f"There is no decision table `{table}`.",
            looked=[FOLDER],
            do=did_you_mean(table.removeprefix(FOLDER), known),
        )
    return path


class CompiledPolicy:
    """One version of a policy. Immutable; the same Case and Call id give the same Verdict for ever."""

    def __init__(
        self,
        declared: Policy,
        content: bytes,
        graphs: Graphs | None,
        engine: Engine | None,
        clock_ns: Callable[[], int],
    ) -> None:
        self.declared = declared
        self.name = declared.name
        self.graphs = graphs
        """Of a table; None of a function."""
        self.version = _version(declared, content)
        """First 16 hex digits of the SHA-256 over table or source, actions, exploration and `otherwise`."""
        self.reads = graphs.reads if graphs is not None else declared.reads
        """Fields of the Case that it reads; of a function what it declares, and empty where it declares nothing."""
        self.otherwise = declared.otherwise
        self._actions = frozenset(declared.actions)
        self._explore = _in_force(declared.explore)
        self._engine = engine
        self._function = declared.decide
        self._context = wanted(self.reads)
        self._sealed = wanted(one for one in self.reads if one.partition(".")[0] in SEALED)
        self._limit_ns = declared.limit_ms * 1_000_000
        self._clock_ns = clock_ns

    def decide(self, case: Case, call_id: str) -> Verdict:
        """What is done with one Call's answer.

        Raises: PolicyFailed where the policy cannot decide and has no `otherwise`; nothing else.
        """
        own = self.own(case)
        if own.failed:
            return self._instead(own)
        explore = self._explore
        if explore is None:
            return self._chosen(own)
        coin = toss(explore, call_id, self.version)
        action = coin.action if coin.explores else own.action
        taken = action == own.action
        return Verdict(
            action=action,
            reason=own.reason if taken else EXPLORED,
            rule=own.rule,
            values=own.values if taken else {},
            chosen=own.action,
            explored=coin.explores,
            propensity=chances(explore, own.action)[action],
        )

    def chosen(self, case: Case) -> Verdict:
        """What the policy itself does with a Case, as if no coin were tossed. Raises: PolicyFailed."""
        own = self.own(case)
        return self._instead(own) if own.failed else self._chosen(own)

    def action_chances(self, case: Case) -> dict[str, float]:
        """Action -> the chance with which it is taken in this Case; they add up to 1. Raises: PolicyFailed."""
        own = self.own(case)
        if own.failed:
            return {self._instead(own).action: 1.0}
        return chances(self._explore, own.action)

    def sealed_inputs(self, case: Case) -> dict[str, Any]:
        """`{"input": ..., "features": ..., "answer": ...}`: what it reads of the Case, as plain JSON values.

        Of a function that declares no `reads`, all of it. Raises: TypeError where a value has no JSON.
        """
        if self._function is not None and not self.reads:
            part: dict[str, Any] = {name: getattr(case, name) for name in SEALED}
        else:
            part = part_of(case, self._sealed)
        plain: dict[str, Any] = msgspec.json.decode(_ENCODE(part))
        return plain

    def own(self, case: Case) -> Own:
        """What the policy itself says, without `otherwise` and without the coin. Never raises."""
        own = self._by_function(case) if self._function is not None else self._by_table(case)
        if not own.failed and self._actions and own.action not in self._actions:
            return Own(rule=own.rule, failed="its action is not among `actions`")
        return own

    def _chosen(self, own: Own) -> Verdict:
        return Verdict(
            action=own.action,
            reason=own.reason,
            rule=own.rule,
            values=own.values,
            chosen=own.action,
            propensity=chances(self._explore, own.action)[own.action],
        )

    def _instead(self, own: Own) -> Verdict:
        if self.otherwise is None:
            raise PolicyFailed(self.name, own.failed)
        other = self.otherwise
        return Verdict(
            action=other.action,
            reason=other.reason,
            rule=own.rule,
            values=other.values,
            chosen=other.action,
            failed=own.failed,
        )

    def _by_function(self, case: Case) -> Own:
        assert self._function is not None
        try:
            said = self._function(apart(case))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  the user's code may raise anything, SystemExit too
            return Own(failed=f"its function raised {type(error).__name__}{_line_of(error)}")
        if isinstance(said, str):
            return _own(said, "", {}, "")
        if not isinstance(said, Action):
            return Own(failed=f"its function gave a {type(said).__name__} instead of an action")
        return _own(said.action, said.reason, said.values, "")

    def _by_table(self, case: Case) -> Own:
        assert self._engine is not None
        try:
            context = _ENCODE(part_of(case, self._context))
        except (TypeError, ValueError, RecursionError) as error:
            return Own(failed=f"what it reads has no JSON ({type(error).__name__})")
        if len(context) > CONTEXT_BYTES_MAX:
            return Own(failed=f"what it reads is larger than {CONTEXT_BYTES_MAX} bytes")
        began = self._clock_ns()
        try:
            result = self._engine.evaluate(context.decode())
        except EngineFault as error:
            return Own(failed=f"its table fails with {error}")
        if self._clock_ns() - began > self._limit_ns:
            return Own(failed=f"its table took longer than {self.declared.limit_ms} ms")
        if not isinstance(result, dict):
            return Own(failed="its table gives a list; one rule has to decide, so use the hit policy `first`")
        rule = _take_rule(result)
        action, reason = result.pop("action", None), result.pop("reason", None)
        if action is None:
            return Own(rule=rule, failed=NO_RULE if not rule else "its rule gives no action")
        for name in CONTEXT:
            result.pop(name, None)  # passed through
        return _own(action, "" if reason is None else reason, result, rule)


def _own(action: Any, reason: Any, values: Any, rule: str) -> Own:
    """What was said, as a record; what cannot be recorded is a failure."""
    action, reason = plain_text(action), plain_text(reason)
    if action is None or not 0 < len(action) <= ACTION_CHARS_MAX:
        return Own(rule=rule, failed=f"its action is no text of 1 to {ACTION_CHARS_MAX} characters")
    if reason is None or len(reason) > REASON_CHARS_MAX:
        return Own(rule=rule, failed=f"its reason is no text of at most {REASON_CHARS_MAX} characters")
    why = unrecordable(values)
    return (
        Own(rule=rule, failed=f"its values {why}")
        if why
        else Own(action=action, reason=reason, rule=rule, values=values)
    )


def _take_rule(result: dict[str, Any]) -> str:
    """Takes the hidden column out of a result, wherever an output path put it."""
    own = result.pop(RULE_FIELD, None)
    nested = [_take_rule(value) for name, value in result.items() if isinstance(value, dict) and name not in CONTEXT]
    return str(own or next((one for one in nested if one), ""))


def _in_force(explore: Explore | None) -> Explore | None:
    return explore if explore is not None and explore.actions and explore.share > 0 else None


def _version(declared: Policy, content: bytes) -> str:
    """Whatever changes Decisions changes it."""
    otherwise = declared.otherwise
    terms = [
        "table" if declared.decide is None else "function",
        sorted(declared.actions),
        None if declared.explore is None else [declared.explore.share, list(declared.explore.actions)],
        None if otherwise is None else [otherwise.action, otherwise.reason, msgspec.to_builtins(otherwise.values)],
        declared.limit_ms if declared.decide is None else 0,
    ]
    said = msgspec.json.encode(terms, order="deterministic")
    return hashlib.sha256(len(said).to_bytes(8, "big") + said + content).hexdigest()[:16]


def _line_of(error: BaseException) -> str:
    """Where it was raised: no value of the Case is in it."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return "" if at is None else f" at line {at.tb_lineno}"
