"""Everything that is wrong with how policies are declared: their parts, their actions, and the files that they name.

Called by `load`, which hands in every workflow. What is in a table is checked by the room `policies`.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.codec import MSGPACK
from drivetrain.core.declarations import Place, Workflow
from drivetrain.core.errors import did_you_mean
from drivetrain.core.policies import Action, Explore, Gains, Policy
from drivetrain.project.names import NAME, NAME_HELP
from drivetrain.project.problems import Problems, shown
from drivetrain.project.spots import Spots
from drivetrain.project.workflow_notes import is_whole, kind, written

FOLDER = "policies/"
SHARE_MOST = 0.5
"""Of `explore`: above it the policy itself would be the exception."""
EXPLORED_MOST = 64
"""Actions that are tried; each gets a part of a small share."""
ACTIONS_MOST = 256
ACTION_CHARS_MAX = 64
REASON_CHARS_MAX = 200
VALUES_BYTES_MAX = 16 * 1024
"""Of an action's values, as JSON: they are sealed with every Decision."""
LIMIT_MOST_MS = 1_000
"""Tables are evaluated in the gateway's loop, which is replaced where it is silent for two seconds."""
GAIN_USD_MAX = 1e15
"""Of one Decision's gain: more than there is, and its square is a finite number."""
READS = ("input", "features", "answer", "confidence", "cost_usd", "variant", "degraded")
"""Roots of what a policy sees."""
_ARGUMENTS = (
    "table", "decide", "actions", "otherwise", "explore", "gains", "metrics", "reads", "limit_ms",
)  # fmt: skip


def check_policies(
    workflows: Sequence[Workflow[Any, Any]], files: Mapping[str, bytes], spots: Spots, problems: Problems
) -> None:
    """Notes every mistake in the policies that workflows declare. files: the project's, by path."""
    seen: dict[int, Policy] = {}
    names: dict[str, Policy] = {}
    for workflow in workflows:
        policy = workflow.policy
        if policy is None:
            continue
        if isinstance(policy, str):
            _check_table(f"Workflow `{workflow.name}`", policy, files, spots.of(workflow, "policy"), problems)
        elif not isinstance(policy, Policy):
            place = spots.of(workflow, "policy")
            problems.add(
                f"Workflow `{workflow.name}` has a policy that is none.", file=place.file, line=place.line,
                value=kind(policy), do='Write a dt.Policy, or a file in `policies/`: `policy="refund.json"`.',
            )  # fmt: skip
        elif id(policy) not in seen:
            seen[id(policy)] = policy
            _PolicyCheck(policy, files, spots, problems).run()
            first = names.setdefault(str(policy.name), policy)
            if first is not policy:
                place, before = spots.of(policy), spots.of(first)
                problems.add(
                    f"Policy `{policy.name}` is declared twice; first in {before.file}:{before.line}.",
                    file=place.file, line=place.line, do="Give one of them another name.",
                )  # fmt: skip


def plain_text(value: Any) -> str | None:
    """A text, without what a subclass adds to it; None where it is no text that can be recorded."""
    if not isinstance(value, str):
        return None
    text = str.__str__(value)
    try:
        return text if text.isascii() or text.encode() else None
    except UnicodeEncodeError:
        return None


def unrecordable(values: Any) -> str:
    """Why an action's values cannot be recorded and answered; empty where they can."""
    if not isinstance(values, Mapping) or not all(type(name) is str for name in values):
        return "are no object"
    if not values:
        return ""
    try:
        size = max(len(msgspec.json.encode(values)), len(MSGPACK.encode(values)))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        return f"cannot be recorded ({type(error).__name__})"
    if size > VALUES_BYTES_MAX:
        return f"are larger than {VALUES_BYTES_MAX} bytes"
    return "" if _is_finite(values) else "hold a number that is not finite"


def _is_finite(value: Any) -> bool:
    """JSON has no NaN: it would arrive as null."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    return all(map(_is_finite, value)) if isinstance(value, list | tuple) else True


def _check_table(label: str, table: object, files: Mapping[str, bytes], place: Place, problems: Problems) -> None:
    if not isinstance(table, str):
        problems.add(
            f"{label} has a `table` that is no file's name.", file=place.file, line=place.line, value=kind(table),
            do='Write for example `table="refund.json"`.',
        )  # fmt: skip
        return
    path = posixpath.normpath(table if table.startswith(FOLDER) else FOLDER + table)
    if path in files and path.startswith(FOLDER):
        return
    known = [one.removeprefix(FOLDER) for one in files if one.startswith(FOLDER) and one.endswith(".json")]
    do = did_you_mean(table.removeprefix(FOLDER), known) if known else "Put the table into `policies/`."
    problems.add(
        f"{label} names a decision table that is not there.",
        file=place.file,
        line=place.line,
        value=shown(table),
        do=do,
    )


class _PolicyCheck:
    """One policy being checked."""

    def __init__(self, policy: Policy, files: Mapping[str, bytes], spots: Spots, problems: Problems) -> None:
        self.policy = policy
        self.files = files
        self.spots = spots
        self.problems = problems

    def run(self) -> None:
        policy = self.policy
        for name in policy.unknown:
            self.note(f"has no argument `{name}`.", name, do=did_you_mean(name, _ARGUMENTS))
        if not isinstance(policy.name, str) or not NAME.fullmatch(policy.name):
            self.note("has a wrong name.", value=written(policy.name), do=NAME_HELP)
        if (policy.table is None) == (policy.decide is None):
            both = "both a table and a function" if policy.table is not None else "neither a table nor a function"
            self.note(f"has {both}.", do='Write one of `table="refund.json"` and `decide=function`.')
        if policy.table is not None:
            _check_table(self.label, policy.table, self.files, self.spots.of(policy, "table"), self.problems)
        if policy.decide is not None and not callable(policy.decide):
            self.note("has a `decide` that is no function.", "decide", value=kind(policy.decide))
        if not is_whole(policy.limit_ms, 1, LIMIT_MOST_MS):
            self.note(
                f"has a wrong `limit_ms`; it is a whole number from 1 to {LIMIT_MOST_MS}.", "limit_ms",
                value=written(policy.limit_ms),
            )  # fmt: skip
        self._actions()
        self._otherwise()
        self._explore()
        self._gains()
        self._metrics()
        self._reads()

    @property
    def label(self) -> str:
        return f"Policy `{self.policy.name}`"

    def note(self, what: str, *arguments: str, value: str = "", do: str = "") -> None:
        place = self.spots.of(self.policy, *arguments)
        self.problems.add(f"{self.label} {what}", file=place.file, line=place.line, value=value, do=do)

    def _actions(self) -> None:
        if len(self.policy.actions) > ACTIONS_MOST:
            self.note(f"has more than {ACTIONS_MOST} actions.", "actions", do="What differs in degree is a value.")
        for action in self.policy.actions:
            if not 0 < len(plain_text(action) or "") <= ACTION_CHARS_MAX:
                self.note(
                    f"has an action that is no text of 1 to {ACTION_CHARS_MAX} characters.", "actions",
                    value=written(action),
                )  # fmt: skip

    def _known(self, action: object, where: str, *arguments: str) -> None:
        """Notes an action that is not among the policy's."""
        if not isinstance(action, str) or not 0 < len(plain_text(action) or "") <= ACTION_CHARS_MAX:
            self.note(f"has {where} that is no action.", *arguments, value=written(action))
        elif self.policy.actions and action not in self.policy.actions:
            self.note(
                f"has {where} that is not among its actions.", *arguments, value=shown(action),
                do=did_you_mean(action, [str(one) for one in self.policy.actions]),
            )  # fmt: skip

    def _otherwise(self) -> None:
        otherwise = self.policy.otherwise
        if otherwise is None:
            return
        if not isinstance(otherwise, Action):
            self.note(
                "has an `otherwise` that is no action.", "otherwise", value=kind(otherwise),
                do='Write for example `otherwise=dt.act("review", "policy_failed")`.',
            )  # fmt: skip
            return
        self._known(otherwise.action, "an `otherwise`", "otherwise")
        reason = plain_text(otherwise.reason)
        if reason is None or len(reason) > REASON_CHARS_MAX:
            self.note(
                f"has an `otherwise` whose reason is no text of at most {REASON_CHARS_MAX} characters.", "otherwise",
                value=written(otherwise.reason),
            )  # fmt: skip
        why = unrecordable(otherwise.values)
        if why:
            self.note(f"has an `otherwise` whose values {why}.", "otherwise", do="Write plain JSON values.")

    def _explore(self) -> None:
        explore = self.policy.explore
        if explore is None:
            return
        if not isinstance(explore, Explore):
            self.note("has an `explore` that is none.", "explore", value=kind(explore), do="Write a dt.Explore.")
            return
        share = explore.share
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if not number or not 0 <= share <= SHARE_MOST:
            self.note(
                f"explores a wrong share; it is a number from 0 to {SHARE_MOST}.", "explore", "share",
                value=written(share),
            )  # fmt: skip
        if not isinstance(explore.actions, tuple | list) or not 0 < len(explore.actions) <= EXPLORED_MOST:
            self.note(f"explores no actions; name 1 to {EXPLORED_MOST} in a tuple.", "explore", "actions")
            return
        for action in explore.actions:
            self._known(action, "an explored action", "explore", "actions")

    def _gains(self) -> None:
        gains = self.policy.gains
        if gains is None:
            return
        if not isinstance(gains, Gains):
            self.note("has `gains` that are none.", "gains", value=kind(gains), do="Write a dt.Gains.")
            return
        if not isinstance(gains.metric, str) or not gains.metric:
            self.note("has gains without an Outcome's name.", "gains", "metric", value=written(gains.metric))
        if callable(gains.usd):
            return
        if not isinstance(gains.usd, Mapping):
            self.note("has gains that are neither a table nor a function.", "gains", "usd", value=kind(gains.usd))
            return
        for action, worth in gains.usd.items():
            self._known(action, "gains for an action", "gains", "usd")
            if not isinstance(worth, Mapping):
                self.note(
                    f"has gains of `{action}` that are no dict.", "gains", "usd", value=kind(worth),
                    do='Write the USD of each value of the Outcome: `{"fraud": -120, "*": 3}`.',
                )  # fmt: skip
                continue
            for value, usd in worth.items():
                if isinstance(usd, bool) or not isinstance(usd, int | float) or not abs(usd) <= GAIN_USD_MAX:
                    self.note(
                        f"has gains of `{action}` for `{value}` that are no number.", "gains", "usd", value=written(usd)
                    )

    def _metrics(self) -> None:
        metrics = self.policy.metrics
        if not isinstance(metrics, Mapping):
            self.note(
                "has `metrics` that are no dict.", "metrics", value=kind(metrics),
                do='Write for example `metrics={"refund_rate": "refund"}`.',
            )  # fmt: skip
            return
        for name, metric in metrics.items():
            if not isinstance(name, str) or not NAME.fullmatch(name):
                self.note("has a metric with a wrong name.", "metrics", value=written(name), do=NAME_HELP)
            if callable(metric):
                continue
            for action in (
                (metric,) if isinstance(metric, str) else metric if isinstance(metric, list | tuple) else (None,)
            ):
                self._known(action, f"a metric `{name}` over an action", "metrics")

    def _reads(self) -> None:
        if self.policy.reads and self.policy.table is not None:
            self.note("has `reads`, which a table says by itself.", "reads", do="Leave it out.")
        for path in self.policy.reads:
            root = path.partition(".")[0] if isinstance(path, str) else ""
            if root not in READS:
                self.note(
                    "reads what no case has.", "reads", value=written(path), do=did_you_mean(root, READS)
                )  # fmt: skip
