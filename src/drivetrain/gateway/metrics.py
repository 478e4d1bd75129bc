"""Counters of a worker, and their sum over all workers in Prometheus' text format.

Labels are workflow, variant, status and reason: never a key, a user or a text. Each worker publishes its counters
in a file of its own every half second, so that any worker's answer sums them all.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from pathlib import Path

import msgspec

from drivetrain.execution.call import CallResult

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BUCKETS_US = tuple(int(bound * 1_000_000) for bound in BUCKETS_S)
Series = dict[str, int]


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
    running: int = 0
    connections: int = 0
    upstream_connections: int = 0
    ledger_failed: int = 0


class Counters:
    """What one worker counts."""

    __slots__ = ("_attempts", "_calls", "refused", "running")

    def __init__(self) -> None:
        self._calls: dict[tuple[str, str, str], CallCounters] = {}
        self._attempts: dict[tuple[str, str, str], AttemptCounters] = {}
        self.refused: dict[str, int] = {}
        self.running = 0

    def count(self, workflow: str, result: CallResult, duration_us: int) -> None:
        """One ended Call. Costs about 1 us."""
        key = (workflow, result.variant, result.status)
        counters = self._calls.get(key)
        if counters is None:
            counters = self._calls[key] = CallCounters()
        counters.calls += 1
        counters.cost_nano_usd += result.cost_nano_usd
        counters.duration_us += duration_us
        counters.buckets[bisect_left(BUCKETS_US, duration_us)] += 1
        for attempt in result.attempts:
            attempt_key = (workflow, attempt.variant, attempt.verdict)
            tried = self._attempts.get(attempt_key)
            if tried is None:
                tried = self._attempts[attempt_key] = AttemptCounters()
            tried.attempts += 1
            tried.input_tokens += attempt.usage.input_tokens
            tried.output_tokens += attempt.usage.output_tokens

    def refuse(self, code: str) -> None:
        """One request that became no Call."""
        self.refused[code] = self.refused.get(code, 0) + 1

    def published(self) -> Published:
        """A copy for others to read."""
        return Published(
            calls={"\x00".join(key): value for key, value in self._calls.items()},
            attempts={"\x00".join(key): value for key, value in self._attempts.items()},
            refused=dict(self.refused),
            running=self.running,
        )


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
            if not _lives(path.stem):
                published.running = published.connections = published.upstream_connections = published.ledger_failed = 0
            found.append(published)
        except (OSError, msgspec.MsgspecError):
            continue  # it is being replaced or its worker is gone
    return found


def forget_ended(folder: Path) -> None:
    """Removes what earlier runs of the gateway left."""
    for path in folder.glob("*.metrics"):
        if not _lives(path.stem):
            path.unlink(missing_ok=True)


def _lives(worker: str) -> bool:
    pid = worker.rpartition("-")[2]
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def text(workers: list[Published]) -> str:
    """The sum in Prometheus' text exposition format, version 0.0.4."""
    lines: list[str] = []
    calls: dict[str, CallCounters] = {}
    attempts: dict[str, AttemptCounters] = {}
    refused: Series = {}
    slow: Series = {}
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
        for series, counted in ((refused, worker.refused), (slow, worker.slow_code)):
            for name, number in counted.items():
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
    _head(lines, "drivetrain_refused_total", "counter", "Requests that became no Call, by reason.")
    lines += [f'drivetrain_refused_total{{reason="{name}"}} {number}' for name, number in sorted(refused.items())]
    _head(lines, "drivetrain_slow_code_total", "counter", "Runs of the project's functions that stalled a worker.")
    lines += [f'drivetrain_slow_code_total{{function="{name}"}} {number}' for name, number in sorted(slow.items())]
    for name, about, of in (
        ("drivetrain_calls_running", "Calls that run now.", "running"),
        ("drivetrain_connections", "Open client connections.", "connections"),
        ("drivetrain_upstream_connections", "Open connections to providers.", "upstream_connections"),
        ("drivetrain_ledger_failed", "Workers that cannot write their ledger.", "ledger_failed"),
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
