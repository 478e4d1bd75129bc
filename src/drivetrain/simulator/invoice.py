"""What the provider would charge, counted as it happens: the other side of a ledger, for tests to compare.

Owns the counters of each model and the last requests. `desk` opens a bill per answer, `playback` settles it; `GET
/requests` shows it all.
"""

from collections import deque

import msgspec

from drivetrain.simulator.door import Usage
from drivetrain.simulator.settings import Price

_MILLION = 1_000_000


def nano_usd(usage: Usage, price: Price) -> int:
    """The declared price of `usage` in nano-USD, rounded up to a whole one per request."""
    exact = (
        (usage.input - usage.input_cached) * price.input_nano_usd_per_million
        + usage.input_cached * price.input_cached_nano_usd_per_million
        + usage.output * price.output_nano_usd_per_million
    )
    return -(-exact // _MILLION)


class ModelCounters:
    """What one model was asked and what it charged."""

    __slots__ = (
        "by_failure",
        "by_status",
        "cost_nano_usd",
        "interrupted",
        "requests",
        "streams",
        "tokens_input",
        "tokens_input_cached",
        "tokens_output",
        "tokens_reasoning",
    )

    def __init__(self) -> None:
        self.requests = 0
        self.streams = 0
        self.interrupted = 0
        """Answers that were not sent to their end: the client left, or the connection was cut on purpose."""
        self.by_status: dict[int, int] = {}
        self.by_failure: dict[str, int] = {}
        self.tokens_input = 0
        self.tokens_input_cached = 0
        self.tokens_output = 0
        self.tokens_reasoning = 0
        self.cost_nano_usd = 0

    def count_status(self, status: int) -> None:
        """Counts one response by its status."""
        self.by_status[status] = self.by_status.get(status, 0) + 1

    def count_failure(self, kind: str) -> None:
        """Counts one failure that was played."""
        self.by_failure[kind] = self.by_failure.get(kind, 0) + 1

    def charge(self, usage: Usage, price: Price) -> None:
        """Adds one answer to the invoice."""
        self.tokens_input += usage.input
        self.tokens_input_cached += usage.input_cached
        self.tokens_output += usage.output
        self.tokens_reasoning += usage.reasoning
        self.cost_nano_usd += nano_usd(usage, price)

    def as_json(self) -> dict[str, object]:
        """The counters as `GET /requests` shows them."""
        shown: dict[str, object] = {name: getattr(self, name) for name in sorted(self.__slots__)}
        return shown | {"by_status": {str(status): count for status, count in sorted(self.by_status.items())}}


class Bill:
    """What one answer will be charged, settled once, when it is known how much was sent."""

    __slots__ = ("_counters", "_price", "_usage")

    def __init__(self, counters: ModelCounters, price: Price, usage: Usage) -> None:
        self._counters = counters
        self._price = price
        self._usage = usage

    def settle(self, *, deltas_sent: int, deltas: int, complete: bool) -> None:
        """Charges input and reasoning in full, and the share of the visible output that was sent (`deltas` of 0: all
        of it)."""
        usage = self._usage
        if not complete:
            self._counters.interrupted += 1
        if deltas_sent < deltas:
            visible = usage.output - usage.reasoning
            sent = -(-visible * deltas_sent // deltas)
            usage = Usage(
                input=usage.input,
                input_cached=usage.input_cached,
                output=usage.reasoning + sent,
                reasoning=usage.reasoning,
            )
        self._counters.charge(usage, self._price)

    def waive(self) -> None:
        """Charges nothing: the connection ended before one byte was sent."""
        self._counters.interrupted += 1


class RequestLog:
    """The last requests, for tests that look at what was sent."""

    def __init__(self, keep: int) -> None:
        self._kept: deque[dict[str, object]] = deque(maxlen=keep)

    def keep(self, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Remembers one request; keys are hidden."""
        shown = {
            name.decode("latin-1").lower(): "(hidden)"
            if name.lower() in (b"authorization", b"x-api-key")
            else value.decode("latin-1")
            for name, value in headers
        }
        self._kept.append({"path": path, "headers": shown, "body": body.decode("utf-8", "replace")})

    def as_json(self) -> list[dict[str, object]]:
        """Oldest first."""
        return list(self._kept)

    def forget(self) -> None:
        self._kept.clear()


class Invoice:
    """Every model's counters and the last requests."""

    def __init__(self, models: list[str], record_requests: int) -> None:
        self.models = {name: ModelCounters() for name in models}
        self.refused = ModelCounters()
        """Requests that reached no model: a wrong key, an unknown model, a body that is not JSON."""
        self.log = RequestLog(record_requests)

    def forget(self) -> None:
        """Starts counting again; answers under way are still counted where they began."""
        self.models = {name: ModelCounters() for name in self.models}
        self.refused = ModelCounters()
        self.log.forget()

    def as_json(self) -> bytes:
        """The body of `GET /requests`."""
        models = {name: counters.as_json() for name, counters in self.models.items()}
        total = sum(counters.cost_nano_usd for counters in self.models.values())
        return msgspec.json.encode(
            {
                "cost_nano_usd": total,
                "models": models,
                "refused": {"requests": self.refused.requests, "by_status": self.refused.as_json()["by_status"]},
                "last_requests": self.log.as_json(),
            }
        )
