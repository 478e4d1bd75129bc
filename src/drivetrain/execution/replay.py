"""A recorded Call through the same machine again, without network, clock or ledger, and how the two compare.

What the world did is fed back from the record: statuses, bodies, failures, pauses, the client leaving. What we
did is decided anew: rules, checks, escalations, prices on the recorded date.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from drivetrain.cache.flights import Flights
from drivetrain.core.calls import RETAINED_FULL, Answers, AttemptV1, Call, ClosedV1, OpenedV1
from drivetrain.core.errors import DrivetrainError, RequestError
from drivetrain.core.features import FeatureRecordV1
from drivetrain.core.policies import DecisionV1
from drivetrain.execution.call import CallResult, Execution
from drivetrain.execution.environment import NOTHING_ASKED, Asked, Environment
from drivetrain.execution.plan import Plans
from drivetrain.execution.refusals import TIMEOUTS
from drivetrain.execution.verdicts import LOST, UNSENT, Recorded, Verdicts
from drivetrain.lake.subjects import ERASED
from drivetrain.ports.inference import ModelRequest
from drivetrain.ports.journal import Vault
from drivetrain.ports.transport import Attempt, UpstreamFailure, UpstreamHead, UpstreamRequest, UpstreamSink

LATE_NS = 10**15
"""Later than any deadline."""
HURRIED = Asked(deadline_ms=LATE_NS // 2_000_000)
"""Of a Call that missed its deadline, which may have been its client's; it is over when the record says so."""
_FEATURES: msgspec.msgpack.Decoder[FeatureRecordV1] = msgspec.msgpack.Decoder(FeatureRecordV1)
_ANSWERS: msgspec.msgpack.Decoder[Answers] = msgspec.msgpack.Decoder(Answers)


class Replay(msgspec.Struct, frozen=True):
    """How the two runs compare."""

    result: CallResult
    stream: bytes
    """The events a streaming client would have got before the last ones."""
    differences: tuple[str, ...]
    """Empty where route, verdicts, cost, Decision and answer are the same."""
    closed: ClosedV1 | None = None
    """The record that the replayed Call would have got, nothing of it sealed."""


def open_payloads(call: Call, vault: Vault) -> Recorded:
    """Raises: DrivetrainError where the Call has not ended or its payloads were not kept."""
    if call.status in ("running", "interrupted"):
        raise DrivetrainError(f"Call {call.call_id} is {call.status}: there is no end to compare with.")
    if call.retained != RETAINED_FULL and call.attribution.user == ERASED:
        raise DrivetrainError(f"Call {call.call_id} cannot be replayed: its payloads were erased.")
    if call.retained != RETAINED_FULL:
        raise DrivetrainError(
            f"Call {call.call_id} cannot be replayed: its prompt and answers were not kept.",
            do=f'Set retention = "full" (or "sampled") for workflow `{call.workflow}`; it holds for later Calls.',
        )
    if not call.answers:
        raise DrivetrainError(f"Call {call.call_id} cannot be replayed: its answers could not be kept.")
    try:
        request = vault.open(call.call_id, "request", call.request)
        answers = vault.open(call.call_id, "answers", call.answers)
        seen = call.features
        features = vault.open(call.call_id, "features", seen.sealed) if seen is not None and seen.sealed else None
    except ValueError as error:
        raise DrivetrainError(f"Call {call.call_id} cannot be replayed: {error}.") from error
    if request is None or answers is None:
        raise DrivetrainError(f"Call {call.call_id} cannot be replayed: its payloads were erased or are too old.")
    return Recorded(
        call, request, _ANSWERS.decode(answers), _FEATURES.decode(features) if features is not None else None
    )


def replay(recorded: Recorded, plans: Plans) -> Replay:
    """`recorded` through the workflows of `plans`. Raises: DrivetrainError where they lack its workflow."""
    call = recorded.call
    plan = plans.workflows.get(call.workflow)
    if plan is None:
        raise DrivetrainError(f"Snapshot {plans.snapshot.short_hash} has no workflow `{call.workflow}`.")
    try:
        admitted = plan.admit(call.door, recorded.request)
    except RequestError as error:
        raise DrivetrainError(f"Call {call.call_id} is not admitted any more: {error}") from error
    world = _World(recorded)
    client = _Listener()
    execution = Execution(
        plan,
        admitted,
        call.attribution,
        call_id=call.call_id,
        opened_ns=call.opened_ns,
        day=call.prices_date,
        door=call.door,
        env=world.environment(),
        client=client,
        asked=HURRIED if any(map(_was_hurried, call.attempts)) else NOTHING_ASKED,
    )
    world.execution = execution
    execution.start()
    world.run()
    if client.result is None:
        raise DrivetrainError(f"Call {call.call_id} did not end when it was replayed.")
    differences = _differences(recorded, client.result, world)
    return Replay(client.result, b"".join(client.stream), tuple(differences), world.closed)


class _World:
    """Transport, journal and timer of a replay: what was recorded, one step after the other."""

    failed = ""

    def __init__(self, recorded: Recorded) -> None:
        pairs = zip(recorded.call.attempts, recorded.answers.attempts, strict=True)
        self._sent = deque((attempt, body) for attempt, body in pairs if _was_sent(attempt))
        self._client_leaves = recorded.call.status == "aborted"
        self._steps: deque[Callable[[], object]] = deque()
        self.execution: Execution | None = None
        self._ending: AttemptV1 | None = None
        """The attempt whose end is being told."""
        self.closed: ClosedV1 | None = None
        """How the Call ended, as it would be recorded."""
        self._is_lost = recorded.call.error == LOST
        """Whether its end could not be written in time."""
        self._verdicts = Verdicts(
            recorded, lambda: len(self.execution.attempts) if self.execution is not None else 0, self._leave_before
        )

    @property
    def unused(self) -> int:
        """Recorded attempts that were not made again."""
        return len(self._sent)

    def environment(self) -> Environment:
        return Environment(
            transport=self,
            journal=self,
            vault=None,
            now_ns=lambda: 0,
            monotonic_ns=self._monotonic_ns,
            call_later=self._later,
            random=lambda: 0.0,
            limits=self._verdicts,
            health=self._verdicts,
            cache=self._verdicts,
            flights=Flights(self._steps.append),
            features=self._verdicts,
            models=self,
        )

    def _monotonic_ns(self) -> int:
        """When it was: an attempt's end while it ends, else the moment at which the next one was sent."""
        if self.execution is None:
            return 0
        upcoming = self._verdicts.upcoming
        if upcoming.failure == "deadline":
            return LATE_NS
        if upcoming.cached:
            # Its deadline was looked at when the attempt before had ended; it may have waited for this answer since.
            made = self.execution.attempts
            return made[-1].ended_us * 1000 if made else 0
        ends = self._ending is upcoming
        return (upcoming.ended_us if ends else upcoming.sent_us) * 1000

    def run(self) -> None:
        while self._steps:
            self._steps.popleft()()

    # ports.transport.Transport and ports.inference.Models

    def send(self, request: UpstreamRequest | ModelRequest, sink: UpstreamSink) -> Attempt:
        exchange = ReplayedExchange()
        if self._sent:
            attempt, body = self._sent.popleft()
            exchange.sent = attempt.usage.source != "none"
            self._steps.append(lambda: self._answer(attempt, body, sink, exchange))
        elif not self._leave():
            failure = UpstreamFailure("connect", "the record holds no further attempt", False)
            self._steps.append(lambda: sink.on_failure(failure))
        return exchange

    def _leave(self) -> bool:
        """Where the record ends because the client left, it leaves here too."""
        if not self._client_leaves or self._sent or self.execution is None:
            return False
        self.execution.abort()
        return True

    def _leave_before(self, then: Callable[[], None]) -> None:
        """`then`, once the client has left, if it does."""
        self._steps.append(self._leave)
        self._steps.append(then)

    def _answer(self, attempt: AttemptV1, body: bytes, sink: UpstreamSink, exchange: ReplayedExchange) -> None:
        if self.execution is not None and not self.execution.live:
            self._leave()  # a whole answer is awaited all the same
        if attempt.status:
            headers = {b"content-type": b"text/event-stream" if attempt.streamed else b"application/json"}
            if attempt.retry_after_ms >= 0:
                headers[b"retry-after-ms"] = b"%d" % attempt.retry_after_ms
            sink.on_head(UpstreamHead(attempt.status, headers))
            if body and not exchange.cancelled:
                self._ending = attempt  # the last event of a stream ends it
                sink.on_chunk(body)
        if exchange.cancelled:
            return
        self._ending = attempt
        if attempt.verdict == "aborted" and self.execution is not None:
            self.execution.abort()
        elif attempt.failure:
            # Whether it was sent matters to what is paid by time, and then that says so.
            sink.on_failure(UpstreamFailure(attempt.failure, attempt.reason, attempt.cost_nano_usd > 0))
        else:
            sink.on_end()

    # ports.journal.Journal

    def append(self, record: Any, then: Callable[[bool], None] | None = None, *, sync: bool = False) -> None:
        if isinstance(record, OpenedV1):
            self._leave()
        elif isinstance(record, ClosedV1):
            self.closed = record
        if then is not None:
            written = not (self._is_lost and isinstance(record, ClosedV1))
            self._steps.append(lambda: then(written))

    def append_late(self, record: Any, then: Callable[[], None]) -> None:
        """Never called: every frame is written here."""

    def _later(self, _delay_s: float, callback: Callable[[], None]) -> None:
        if not self._leave():
            self._steps.append(callback)


class ReplayedExchange:
    """An exchange that nobody sends: what was recorded answers it."""

    cancelled = False
    sent = False
    """Whether the provider had got the request when its client left."""

    def answering(self) -> None:
        """No deadline holds here."""

    def cancel(self) -> None:
        self.cancelled = True

    def pause(self) -> None:
        """Nobody is slow here."""

    def resume(self) -> None:
        """Nobody is slow here."""


class _Listener:
    def __init__(self) -> None:
        self.stream: list[bytes] = []
        self.result: CallResult | None = None

    def on_stream(self, data: bytes) -> None:
        self.stream.append(data)

    def on_finished(self, result: CallResult) -> None:
        self.result = result


def _was_hurried(attempt: AttemptV1) -> bool:
    """Whether a deadline ended it that may have been its client's, who pays for what the provider had read."""
    return attempt.failure == "deadline" or (attempt.failure in TIMEOUTS and attempt.usage.source == "estimated")


def _was_sent(attempt: AttemptV1) -> bool:
    if not attempt.model or attempt.cached or attempt.failure in UNSENT:
        return False
    return bool(attempt.status or attempt.failure or attempt.verdict == "aborted")


def _differences(recorded: Recorded, result: CallResult, world: _World) -> list[str]:
    call, unused = recorded.call, world.unused
    found = []
    before = [(one.variant, one.purpose, one.verdict) for one in call.attempts]
    now = [(one.variant, one.purpose, one.verdict) for one in result.attempts]
    if before != now:
        found.append(f"route: {_said(before)} became {_said(now)}")
    if unused:
        found.append(f"{unused} recorded attempts were not made again")
    if call.status != result.status:
        found.append(f"status: {call.status} became {result.status}")
    if call.variant != result.variant:
        found.append(f"variant: {call.variant or '-'} became {result.variant or '-'}")
    if call.cost_nano_usd != result.cost_nano_usd:
        found.append(f"cost: {call.cost_nano_usd} became {result.cost_nano_usd} nano-USD")
    before_it = _compared(call.decision)
    now_it = _compared(world.closed.decision if world.closed is not None else None)
    if before_it != now_it:
        said_before, said_now = _decided(before_it), _decided(now_it)
        if said_before == said_now:
            said_before, said_now = _chances(before_it), _chances(now_it)
        found.append(f"decision: {said_before} became {said_now}")
    if call.status == "answered" and result.body and result.body != recorded.answer:
        found.append("answer: another body")
    return found


def _compared(decision: DecisionV1 | None) -> DecisionV1 | None:
    """All of it that is decided again. Its version is not: an edited table need not change a Decision."""
    return None if decision is None else msgspec.structs.replace(decision, version="", sealed=b"")


def _decided(decision: DecisionV1 | None) -> str:
    if decision is None:
        return "-"
    explored = ", explored" if decision.explored else ""
    return f"{decision.action} ({decision.reason or '-'}, rule {decision.rule or '-'}{explored})"


def _chances(decision: DecisionV1 | None) -> str:
    """What differs where the action, its reason and its rule are the same."""
    if decision is None:
        return "-"
    chosen = decision.chosen or decision.action
    return f"{chosen} by policy {decision.policy}, chance {decision.propensity:g}, confidence {decision.confidence}"


def _said(route: list[tuple[str, str, str]]) -> str:
    return " -> ".join(f"{variant} {verdict}" for variant, _, verdict in route) or "nothing"
