"""Counters of a worker, and their sum over all workers in Prometheus' text format.

Labels are workflow, variant, status, reason and the actions of policies: never a key, a user or a text. Each worker
publishes its counters in a file of its own every half second, so that any worker's answer sums them all.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from drivetrain.embedded.serving import SERVED_SUFFIX, Served, lives
from drivetrain.execution.call import CallResult

if TYPE_CHECKING:
    from drivetrain.inference.worker import ModelCounts

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BUCKETS_US = tuple(int(bound * 1_000_000) for bound in BUCKETS_S)
COUNT_MAX = 2**63 - 1
ACTIONS_MAX = 50
"""Of one workflow and policy; a function that names none may make any text an action. Further ones are `OTHER`."""
ACTION_CHARS_MAX = 64
"""A longer one is no name, and counts as `OTHER`."""
OTHER = "other"
Series = dict[str, int]
SERIES = (
    ("refused", "drivetrain_refused_total", "counter", ("reason",), "Requests that became no Call, by reason."),
    ("slow_code", "drivetrain_slow_code_total", "counter", ("function",),
     "Runs of the project's functions that stalled a worker."),
    ("limited", "drivetrain_limited_total", "counter", ("code",), "Calls that a budget or limit refused."),
    ("cached", "drivetrain_cache_hits_total", "counter", ("workflow",), "Attempts answered from the cache."),
    ("saved_nano_usd", "drivetrain_cache_saved_nano_usd_total", "counter", ("workflow",),
     "What cached answers had cost when a provider gave them."),
    ("degraded", "drivetrain_degraded_total", "counter", ("workflow", "kind"),
     "Calls answered by the workflow's ladder, because no variant did."),
    ("decided", "drivetrain_decisions_total", "counter", ("workflow", "policy", "action"),
     "Decisions of policies, by the action that was taken."),
    ("shadow_copies", "drivetrain_shadow_copies_total", "counter", ("workflow", "end"),
     "Copies of Calls for a rollout's shadow, by what became of them."),
    ("shadow_compared", "drivetrain_shadow_compared_total", "counter", ("workflow", "result"),
     "Answers and actions of a rollout's shadow beside the live ones."),
    ("shadow_nano_usd", "drivetrain_shadow_cost_nano_usd_total", "counter", ("workflow",),
     "What a rollout's shadow has cost, in nano-USD."),
    ("withheld", "drivetrain_withheld_total", "counter", ("model", "kind"),
     "Attempts and retries not made because of a model's health."),
    ("model_rows", "drivetrain_model_rows_total", "counter", ("model",), "Rows that a trained model scored."),
    ("model_batches", "drivetrain_model_batches_total", "counter", ("model",), "Batches they were scored in."),
    ("model_refused", "drivetrain_model_refused_total", "counter", ("model",), "Rows that could not be in time."),
    ("model_late", "drivetrain_model_late_total", "counter", ("model",), "Rows whose result came after their SLO."),
    ("model_queue_us", "drivetrain_model_queue_us_total", "counter", ("model",),
     "From the arrivals of rows to the start of their batches, in microseconds."),
    ("model_busy_us", "drivetrain_model_busy_us_total", "counter", ("model",), "Scoring, in microseconds."),
    ("model_waiting", "drivetrain_model_waiting", "gauge", ("model", "worker"), "Rows that wait for a trained model."),
    ("model_predicted_us", "drivetrain_model_predicted_us", "gauge", ("model", "worker"),
     "What a row that came now would take at p99, in microseconds."),
    ("unwell", "drivetrain_model_unwell", "gauge", ("model", "state"),
     "Workers whose circuit for a model is open, half open or paused."),
)  # fmt: skip
"""(field of `Published`, metric, type, labels, help)"""
NOT_A_WORKER = -2
"""What one publishes as its Release that serves none: a model worker, or a gateway worker that has ended."""
RELEASED: tuple[tuple[str, str, Callable[[list[int]], int], str], ...] = (
    ("release", "drivetrain_release", min, "The oldest Release that a worker serves; 0: the project's folder."),
    ("release_override", "drivetrain_release_override", max, "1 where it was released without what it lacked."),
    ("rollout_stage", "drivetrain_rollout_stage", max, "The stage that a canary is in, from 0; -1: there is none."),
    ("rollout_share_ppm", "drivetrain_rollout_share_ppm", max,
     "Share of the units that the candidate answers, in parts per million."),
    ("rollout_unwatched", "drivetrain_rollout_unwatched", max,
     "1 where a canary's watcher shows no life, and live answers everybody."),
)  # fmt: skip
"""(field of `Published`, metric, what holds of all workers, help)"""


class CallCounters(msgspec.Struct):
    """Of one (workflow, variant, status)."""

    calls: int = 0
    cost_nano_usd: int = 0
    duration_us: int = 0
    buckets: list[int] = msgspec.field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))


class AttemptCounters(msgspec.Struct):
    """Of one (workflow, variant, verdict)."""

    attempts: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class Published(msgspec.Struct):
    """What one worker publishes."""

    calls: dict[str, CallCounters] = {}
    attempts: dict[str, AttemptCounters] = {}
    refused: dict[str, int] = {}
    slow_code: dict[str, int] = {}
    limited: dict[str, int] = {}
    """Calls that a limit refused, by code."""
    cached: dict[str, int] = {}
    """Attempts answered from the cache, by workflow."""
    saved_nano_usd: dict[str, int] = {}
    """What those had cost before, by workflow."""
    degraded: dict[str, int] = {}
    """Calls that no variant answered but the ladder did, by `workflow`, NUL, `stale` or `static`."""
    decided: dict[str, int] = {}
    """Decisions, by `workflow`, NUL, policy, NUL, action."""
    shadow_copies: dict[str, int] = {}
    """Of a worker and of the shadow's process, by `workflow`, NUL, how they ended; the next two of the latter alone."""
    shadow_compared: dict[str, int] = {}
    shadow_nano_usd: dict[str, int] = {}
    withheld: dict[str, int] = {}
    """Attempts that were not made because of a model's health, by `provider/model`, NUL, kind."""
    unwell: dict[str, int] = {}
    """1 for each `provider/model`, NUL, state that is not `closed`."""
    model_rows: dict[str, int] = {}
    """Rows that a trained model scored in this process, by `name/number`; so are the next five."""
    model_batches: dict[str, int] = {}
    model_refused: dict[str, int] = {}
    model_late: dict[str, int] = {}
    model_queue_us: dict[str, int] = {}
    model_busy_us: dict[str, int] = {}
    model_waiting: dict[str, int] = {}
    """Rows that wait, by `name/number`, NUL, worker; so is the next one."""
    model_predicted_us: dict[str, int] = {}
    release: int = NOT_A_WORKER
    release_override: int = 0
    rollout_stage: int = -1
    rollout_share_ppm: int = 0
    rollout_unwatched: int = 0
    releases_failed: int = 0
    cache_bytes: int = 0
    limits_failed: int = 0
    running: int = 0
    connections: int = 0
    upstream_connections: int = 0
    ledger_failed: int = 0


class Counters:
    """What one worker counts."""

    __slots__ = ("_actions", "_attempts", "_cached", "_calls", "_decided", "_degraded", "_limited", "_saved_nano_usd",
                 "refused", "running")  # fmt: skip

    def __init__(self) -> None:
        # Arrays: with thousands of workflows, a Call then touches a few cache lines here instead of a dozen objects.
        self._calls: dict[tuple[str, str, str], array[int]] = {}
        """Calls, cost, duration, then one number per bucket."""
        self._attempts: dict[tuple[str, str, str], array[int]] = {}
        """Attempts, input tokens, output tokens."""
        self._limited: Series = {}
        self._cached: Series = {}
        self._saved_nano_usd: Series = {}
        self._degraded: Series = {}
        self._decided: Series = {}
        self._actions: dict[tuple[str, str], set[str]] = {}
        """Those that have a counter of their own, by workflow and policy."""
        self.refused: Series = {}
        self.running = 0

    def count(self, workflow: str, result: CallResult, duration_us: int) -> None:
        """One ended Call. Costs about 1 us."""
        key = (workflow, result.variant, result.status)
        counters = self._calls.get(key)
        if counters is None:
            counters = self._calls[key] = array("q", bytes(8 * (3 + len(BUCKETS_S) + 1)))
        counters[0] += 1
        try:
            counters[1] += result.cost_nano_usd
        except OverflowError:  # a provider reported nonsense, thousands of times; the ledger has no such limit
            counters[1] = COUNT_MAX
        counters[2] += duration_us
        counters[3 + bisect_left(BUCKETS_US, duration_us)] += 1
        for attempt in result.attempts:
            attempt_key = (workflow, attempt.variant, attempt.verdict)
            tried = self._attempts.get(attempt_key)
            if tried is None:
                tried = self._attempts[attempt_key] = array("q", bytes(8 * 3))
            usage = attempt.usage
            tried[0] += 1
            tried[1] += usage.input_tokens
            tried[2] += usage.output_tokens
            if attempt.cached:
                self._cached[workflow] = self._cached.get(workflow, 0) + 1
                saved = self._saved_nano_usd.get(workflow, 0)
                self._saved_nano_usd[workflow] = saved + attempt.saved_nano_usd
        if result.limited is not None:
            code = result.limited.code
            self._limited[code] = self._limited.get(code, 0) + 1
        if result.degraded:
            name = f"{workflow}\x00{result.degraded}"
            self._degraded[name] = self._degraded.get(name, 0) + 1
        decided = result.decision
        if decided is not None:
            name = f"{workflow}\x00{decided.policy}\x00{self._action(workflow, decided.policy, decided.action)}"
            self._decided[name] = self._decided.get(name, 0) + 1

    def _action(self, workflow: str, policy: str, action: str) -> str:
        """The action as a label."""
        known = self._actions.setdefault((workflow, policy), set())
        if action in known:
            return action
        if len(known) >= ACTIONS_MAX or len(action) > ACTION_CHARS_MAX or not action.isprintable():
            return OTHER
        known.add(action)
        return action

    def refuse(self, code: str) -> None:
        """One request that became no Call."""
        self.refused[code] = self.refused.get(code, 0) + 1

    def published(self) -> Published:
        """A copy for others to read."""
        return Published(
            calls={
                "\x00".join(key): CallCounters(one[0], one[1], one[2], one[3:].tolist())
                for key, one in self._calls.items()
            },
            attempts={"\x00".join(key): AttemptCounters(*one) for key, one in self._attempts.items()},
            refused=dict(self.refused),
            limited=dict(self._limited),
            cached=dict(self._cached),
            saved_nano_usd=dict(self._saved_nano_usd),
            degraded=dict(self._degraded),
            decided=dict(self._decided),
            running=self.running,
        )


def count_models(published: Published, worker: str, counts: Mapping[str, ModelCounts]) -> None:
    """Put what a process did with its trained models into what it publishes."""
    for model, one in counts.items():
        published.model_rows[model] = one.rows
        published.model_batches[model] = one.batches
        published.model_refused[model] = one.refused
        published.model_late[model] = one.late
        published.model_queue_us[model] = one.queue_us
        published.model_busy_us[model] = one.busy_us
        if one.loaded:
            published.model_waiting[f"{model}\x00{worker}"] = one.waiting
            published.model_predicted_us[f"{model}\x00{worker}"] = one.predicted_us


def count_served(published: Published, served: Served, *, override: bool, failures: int) -> None:
    """Put what a worker serves into what it publishes."""
    published.release = served.release
    published.release_override = int(override)
    published.releases_failed = failures
    if served.candidate:
        published.rollout_stage = served.stage
        published.rollout_share_ppm = served.share_ppm
        published.rollout_unwatched = int(not served.watched)


_DECODER = msgspec.msgpack.Decoder(Published)


def publish(folder: Path, worker: str, published: Published) -> None:
    """Replaces this worker's file."""
    made = folder / f".{worker}.tmp"
    made.write_bytes(msgspec.msgpack.encode(published))
    os.replace(made, folder / f"{worker}.metrics")


def read_others(folder: Path, worker: str) -> list[Published]:
    """What the other workers published last. worker: `NAME-PID`; of ended ones the counts stay, which never fall."""
    found = []
    for path in sorted(folder.glob("*.metrics")):
        if path.stem == worker:
            continue
        try:
            published = _DECODER.decode(path.read_bytes())
            if not lives(path.stem):
                published.running = published.connections = published.upstream_connections = 0
                published.ledger_failed = published.limits_failed = published.cache_bytes = 0
                published.unwell = published.model_waiting = published.model_predicted_us = {}
                published.release = NOT_A_WORKER
            found.append(published)
        except (OSError, msgspec.MsgspecError):
            continue  # it is being replaced or its worker is gone
    return found


def forget_ended(folder: Path) -> None:
    """Removes what earlier runs of the gateway left."""
    for path in [*folder.glob("*.metrics"), *folder.glob(f"*{SERVED_SUFFIX}")]:
        if not lives(path.stem):
            path.unlink(missing_ok=True)


def text(workers: list[Published]) -> str:
    """The sum in Prometheus' text exposition format, version 0.0.4."""
    lines: list[str] = []
    calls: dict[str, CallCounters] = {}
    attempts: dict[str, AttemptCounters] = {}
    sums: dict[str, Series] = {name: {} for name, *_ in SERIES}
    for worker in workers:
        for key, one in worker.calls.items():
            total = calls.setdefault(key, CallCounters())
            total.calls += one.calls
            total.cost_nano_usd += one.cost_nano_usd
            total.duration_us += one.duration_us
            total.buckets = [a + b for a, b in zip(total.buckets, one.buckets, strict=True)]
        for key, tried in worker.attempts.items():
            sum_of = attempts.setdefault(key, AttemptCounters())
            sum_of.attempts += tried.attempts
            sum_of.input_tokens += tried.input_tokens
            sum_of.output_tokens += tried.output_tokens
        for of, series in sums.items():
            for name, number in getattr(worker, of).items():
                series[name] = series.get(name, 0) + number

    _head(lines, "drivetrain_calls_total", "counter", "Calls that ended.")
    for key, one in calls.items():
        lines.append(f"drivetrain_calls_total{_labels('status', key)} {one.calls}")
    _head(lines, "drivetrain_cost_nano_usd_total", "counter", "Cost of ended Calls, in nano-USD.")
    for key, one in calls.items():
        lines.append(f"drivetrain_cost_nano_usd_total{_labels('status', key)} {one.cost_nano_usd}")
    _head(lines, "drivetrain_call_duration_seconds", "histogram", "From the whole request to the record of its end.")
    for key, one in calls.items():
        labels = _labels("status", key)[1:-1]
        reached = 0
        for bound, number in zip((*BUCKETS_S, float("inf")), one.buckets, strict=True):
            reached += number
            limit = "+Inf" if bound == float("inf") else f"{bound:g}"
            lines.append(f'drivetrain_call_duration_seconds_bucket{{{labels},le="{limit}"}} {reached}')
        lines.append(f"drivetrain_call_duration_seconds_sum{{{labels}}} {one.duration_us / 1_000_000:.6f}")
        lines.append(f"drivetrain_call_duration_seconds_count{{{labels}}} {one.calls}")
    for name, about, of in (
        ("drivetrain_attempts_total", "Attempts of ended Calls.", "attempts"),
        ("drivetrain_input_tokens_total", "Input tokens of ended Calls.", "input_tokens"),
        ("drivetrain_output_tokens_total", "Output tokens of ended Calls.", "output_tokens"),
    ):
        _head(lines, name, "counter", about)
        for key, tried in attempts.items():
            lines.append(f"{name}{_labels('verdict', key)} {getattr(tried, of)}")
    for of, name, kind, label_names, about in SERIES:
        _head(lines, name, kind, about)
        for key, number in sorted(sums[of].items()):
            said = zip(label_names, key.split("\x00"), strict=True)
            inner = ",".join(f'{label}="{_escaped(value)}"' for label, value in said)
            lines.append(f"{name}{{{inner}}} {number}")
    serving = [worker for worker in workers if worker.release != NOT_A_WORKER]
    for of, name, whole, about in RELEASED:
        _head(lines, name, "gauge", about)
        if serving:
            lines.append(f"{name} {whole([getattr(worker, of) for worker in serving])}")
    _head(lines, "drivetrain_release_failures_total", "counter", "Snapshots that a worker was to serve and could not.")
    lines.append(f"drivetrain_release_failures_total {sum(worker.releases_failed for worker in workers)}")
    for name, about, of in (
        ("drivetrain_calls_running", "Calls that run now.", "running"),
        ("drivetrain_connections", "Open client connections.", "connections"),
        ("drivetrain_upstream_connections", "Open connections to providers.", "upstream_connections"),
        ("drivetrain_ledger_failed", "Workers that cannot write their ledger.", "ledger_failed"),
        ("drivetrain_limits_failed", "Workers that cannot reach the counters of budgets and limits.", "limits_failed"),
        ("drivetrain_cache_bytes", "Memory that cached answers take.", "cache_bytes"),
    ):
        _head(lines, name, "gauge", about)
        lines.append(f"{name} {sum(getattr(worker, of) for worker in workers)}")
    return "\n".join(lines) + "\n"


def _head(lines: list[str], name: str, kind: str, about: str) -> None:
    lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]


def _labels(third: str, key: str) -> str:
    workflow, variant, value = key.split("\x00")
    return f'{{workflow="{_escaped(workflow)}",variant="{_escaped(variant)}",{third}="{value}"}}'


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
