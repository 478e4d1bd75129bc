"""One Call through its route: a state machine with injected clock, randomness, transport and journal.

Events come in (an answer's head, chunks, end or failure; the client leaving; a frame written), frames and
answers go out. The same machine serves live calls, plain Python calls and replays.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Protocol

import msgspec

from drivetrain.core.calls import (
    RETAINED_FULL,
    RETAINED_HASH,
    RETAINED_NONE,
    Answers,
    AttemptV1,
    Attribution,
    ClosedV1,
    OpenedV1,
)
from drivetrain.core.codec import MSGPACK
from drivetrain.core.errors import RequestError, report_fault
from drivetrain.core.money import NO_USAGE, Price, Usage
from drivetrain.core.times import NS_PER_S
from drivetrain.execution.admission import Admitted, too_deep
from drivetrain.execution.charging import (
    cut_usage,
    delivered_usage,
    over_budget,
    reported_usage,
    salvaged_usage,
    whole_usage,
)
from drivetrain.execution.completions import as_stream, completion, output_text, with_content
from drivetrain.execution.plan import VariantStep, WorkflowPlan
from drivetrain.execution.refusals import (
    Refusal,
    interrupted,
    not_accepted,
    provider_request_id,
    refusal,
    retry_after_ms,
    unanswered,
    unusable,
)
from drivetrain.ports.journal import Journal, JournalFull, Vault
from drivetrain.ports.transport import Attempt, Transport, UpstreamFailure, UpstreamHead, UpstreamRequest
from drivetrain.providers.answers import Relay, Unusable, message_of
from drivetrain.routing.checks import RuleStep, failing
from drivetrain.routing.outputs import Misfit

RETRY_BASE_S = 0.1
RETRY_MAX_S = 2.0
RETRY_AFTER_MAX_MS = 5_000
"""A provider that asks for a longer pause is not asked again by this call."""
KEPT_BYTES_MAX = 4 * 1024 * 1024
"""Of a stream, for its record and for counting what was delivered; what is longer cannot be replayed."""
REASON_CHARS_MAX = 300
"""Of what the project's own code says against an answer."""
SAMPLED_ONE_IN = 100


class Environment(msgspec.Struct, frozen=True):
    """What a call needs of the world."""

    transport: Transport
    journal: Journal
    vault: Vault | None
    """None: no payload is kept, whatever workflows say."""
    now_ns: Callable[[], int]
    monotonic_ns: Callable[[], int]
    call_later: Callable[[float, Callable[[], None]], Any]
    random: Callable[[], float]


class CallResult(msgspec.Struct, frozen=True):
    """How a Call ended."""

    call_id: str
    status: str
    http_status: int
    body: bytes
    """A `chat.completion`, or an error in OpenAI's shape."""
    output: Any
    """The output type's instance, or the answer's text; None where it failed or passed through unread."""
    variant: str
    cost_nano_usd: int
    attempts: tuple[AttemptV1, ...]
    error: RequestError | None = None
    tail: bytes = b""
    """Last events of a stream."""


class Client(Protocol):
    """Whoever asked."""

    def on_stream(self, data: bytes) -> None:
        """Whole events of a live stream."""

    def on_finished(self, result: CallResult) -> None:
        """The call has ended and its record is written."""


class Execution:
    """One Call."""

    # What a new Call has not yet is said once, for all: thirty assignments per Call would cost a microsecond.
    ended = False
    left = False
    """Whether the client has left."""
    _step = 0
    _purpose = "answer"
    _opened = False
    _streamed = False
    live = False
    """Whether the running attempt's answer goes to the client as it comes."""
    _arrived_bytes = 0
    _charged = 0
    _sent = 0
    _attempt_started_us = 0
    _first_byte_us = 0
    _exchange: Attempt | None = None
    _request: UpstreamRequest | None = None
    _price: Price | None = None
    _head: UpstreamHead | None = None
    _relay: Relay | None = None
    _last_error: RequestError | None = None
    _result: CallResult | None = None

    def __init__(
        self,
        plan: WorkflowPlan,
        admitted: Admitted,
        attribution: Attribution,
        *,
        call_id: str,
        opened_ns: int,
        day: str,
        door: str,
        env: Environment,
        client: Client,
    ) -> None:
        self.plan = plan
        self.admitted = admitted
        self.attribution = attribution
        self.call_id = call_id
        self.opened_ns = opened_ns
        self.day = day
        self.door = door
        self.attempts: list[AttemptV1] = []
        self._env = env
        self._client = client
        self._started = env.monotonic_ns()
        self._body: list[bytes] = []
        self._bodies: list[bytes] = []
        self._retained = RETAINED_NONE if plan.retention == "none" else self._retention()

    # What the client's side calls.

    def start(self) -> None:
        """Begin. The client hears nothing before this returns, unless transport and journal are synchronous."""
        try:
            self._advance()
        except JournalFull:
            self._finish_unrecorded()
        except Exception as fault:  # noqa: BLE001  a fault of ours ends its Call as failed, and no other
            self.on_fault(fault)

    def abort(self) -> None:
        """The client left. A stream is cut and charged what was delivered; a whole answer is still awaited,
        because the provider bills it, and its true cost is recorded."""
        if self.ended or self.left:
            return
        self.left = True
        try:
            if self._exchange is not None and self.live:
                self._stop_exchange()
                self._settle("aborted", "the client left", self._delivered(), b"".join(self._body))
                self._close_aborted()
            elif self._exchange is None and self._opened and self._request is None:
                self._close_aborted()
        except Exception as fault:  # noqa: BLE001  as in `start`
            self.on_fault(fault)

    def pause(self) -> None:
        """The client takes no more for now."""
        if self._exchange is not None:
            self._exchange.pause()

    def resume(self) -> None:
        """The client takes more again."""
        if self._exchange is not None:
            self._exchange.resume()

    # The route.

    def _advance(self) -> None:
        steps = self.plan.steps
        while self._step < len(steps):
            step = steps[self._step]
            if type(step) is VariantStep:
                if self._sent >= self.plan.workflow.attempts_max:
                    break
                if self._prepare(step):
                    return
            elif self._rule_answers(step):  # type: ignore[arg-type]
                return
            self._step += 1
        error = self._last_error or RequestError(
            502, f"no variant of workflow `{self.plan.name}` answered", code="no_answer", kind="server_error"
        )
        self._fail(error)

    def _rule_answers(self, step: RuleStep) -> bool:
        matched = step.try_on(self.admitted.value)
        now_us = self._elapsed_us()
        if matched.error:
            self._note_unsent(step.name, "", matched.error, now_us)
            return False
        if not matched.matched:
            return False
        self.attempts.append(AttemptV1(step.name, "", self._purpose, "accepted", "", now_us, now_us, now_us))
        self._bodies.append(b"")
        text = output_text(matched.output)
        body = completion(self.call_id, self.plan.name, text, self.opened_ns)
        self._close_answered(step.name, body, matched.output, "stop", answer=body, tail=self._as_tail(body))
        return True

    def _prepare(self, step: VariantStep) -> bool:
        """Whether an attempt at `step` is on its way; otherwise why not is noted, and the route goes on."""
        admitted = self.admitted
        missing = admitted.needs - step.can if admitted.needs else None
        if missing:
            named = ", ".join(sorted(missing))
            return self._cannot(step, RequestError(400, f"{step.target.reference} has no {named}", code="unsupported"))
        if step.prices is None:
            return self._cannot(step, RequestError(500, step.unpriced, code="unknown_price", kind="server_error"))
        prices = step.prices.prices
        price = prices[0][1] if len(prices) == 1 else step.prices.on(self.day)
        limit = step.max_output_tokens
        if admitted.max_output_tokens is not None and admitted.max_output_tokens < limit:
            limit = admitted.max_output_tokens
        live = admitted.stream and step.streams and not step.buffered
        try:
            chat = self.admitted.chat if step.as_it_is else self._chat(step)
            body = step.dialect.encode(chat, step.target, stream=live, max_output_tokens=limit)
        except RequestError as error:
            return self._cannot(step, error)
        except RecursionError:
            return self._cannot(step, too_deep())
        if self.plan.cost_max_nano_usd is not None:
            over = over_budget(self.plan, step, chat, price, body_bytes=len(body), limit=limit, charged=self._charged)
            if over is not None:
                return self._cannot(step, over)
        self._price = price
        self.live = live
        self._head = None
        self._relay = None
        self._body = []
        self._arrived_bytes = 0
        self._request = UpstreamRequest(
            step.target.endpoint, step.head, body, step.first_byte_timeout_ms, step.timeout_ms
        )
        if self._opened:
            self._send()
        else:
            self._write_opened(self._opened_written)
        return True

    def _chat(self, step: VariantStep) -> dict[str, Any]:
        chat = self.admitted.chat
        built = {**chat, **step.extra, **step.parameters}
        if step.messages is not None:
            built["messages"] = step.messages(self.admitted.value, chat.get("messages"))
        return built

    def _cannot(self, step: VariantStep, error: RequestError) -> bool:
        if self._last_error is None or self._last_error.status == 400:
            self._last_error = error
        self._note_unsent(step.name, step.target.reference, error.what, self._elapsed_us())
        self._purpose = "fallback"
        return False

    # Records.

    def _retention(self) -> int:
        retention = self.plan.retention
        if self._env.vault is None:
            return RETAINED_NONE
        if retention == "hash":
            return RETAINED_HASH
        if retention == "sampled":
            drawn = int.from_bytes(blake2b(self.call_id.encode(), digest_size=4).digest(), "big")
            return RETAINED_FULL if drawn % SAMPLED_ONE_IN == 0 else RETAINED_NONE
        return RETAINED_FULL

    def _sealed(self, kind: str, payload: bytes) -> bytes:
        vault = self._env.vault
        if vault is None:
            return b""
        whose = self.attribution
        subject = whose.user or whose.key or whose.team or "-"
        try:
            if self._retained == RETAINED_HASH:
                return vault.digest(payload)
            return vault.seal(subject, self.call_id, kind, payload)
        except JournalFull:
            raise
        except Exception as fault:  # what cannot be recorded must not be answered, whatever the reason
            report_fault(self.call_id, fault)
            raise JournalFull("a payload cannot be sealed") from fault

    def _sealed_answers(self, answer: bytes | None) -> bytes:
        return self._sealed("answers", MSGPACK.encode(Answers(tuple(self._bodies), answer)))

    def _write_opened(self, then: Callable[[bool], None] | None) -> None:
        self._opened = True
        retained = self._retained
        opened = OpenedV1(
            self.call_id,
            self.opened_ns,
            self.plan.snapshot,
            self.plan.name,
            self.door,
            self.admitted.stream,
            self.attribution,
            self.day,
            retained,
            self._sealed("request", self.admitted.raw) if retained else b"",
        )
        self._env.journal.append(opened, then, sync=self.plan.sync)

    def _opened_written(self, written: bool) -> None:
        if written and not self.left:
            try:
                self._send()
            except Exception as fault:  # noqa: BLE001  as in `start`
                self.on_fault(fault)
            return
        self._request = None
        if written:
            self._close_aborted()
        else:
            self._finish_unrecorded()

    # One attempt.

    def _send(self) -> None:
        request = self._request
        assert request is not None
        self._request = None
        self._sent += 1
        self._attempt_started_us = self._elapsed_us()
        self._first_byte_us = 0
        self._exchange = self._env.transport.send(request, self)

    def on_head(self, head: UpstreamHead) -> None:
        self._head = head
        if self.live and head.status == 200:
            content_type = head.headers.get(b"content-type", b"").lower()
            if content_type.startswith(b"text/event-stream"):
                step = self._current()
                self._relay = step.dialect.relay(
                    include_usage=self.admitted.include_usage, created_s=self.opened_ns // NS_PER_S
                )

    def on_chunk(self, data: bytes) -> None:
        relay = self._relay
        if relay is None:
            if not self._body:
                self._begins()
            self._body.append(data)
            return
        if self._arrived_bytes < KEPT_BYTES_MAX:
            self._body.append(data)
        self._arrived_bytes += len(data)
        passed = relay.feed(data)
        if passed:
            if not self._streamed:
                self._begins()
                self._streamed = True
            self._client.on_stream(passed)
        if relay.done:
            self._exchange = None
            self._close_stream(relay)
        elif relay.fault or relay.error is not None:
            self._stop_exchange()
            self._broken_stream(self._why_broken(relay))

    def _why_broken(self, relay: Relay) -> str:
        if relay.error is None:
            return relay.fault or "the stream ended without its end"
        said = self._current().without_secrets(relay.error.message.encode()).decode()
        return f"the provider reported an error in the stream: {said}"

    def _begins(self) -> None:
        """The answer's first byte is here; a head, a comment or a ping is none."""
        self._first_byte_us = self._elapsed_us()
        if self._exchange is not None:
            self._exchange.answering()

    def on_end(self) -> None:
        relay = self._relay
        self._exchange = None
        if self.ended or self._result is not None:
            return
        if relay is None:
            self._judge()
            return
        if relay.ended():
            self._close_stream(relay)
        else:
            self._broken_stream(self._why_broken(relay))

    def on_failure(self, failure: UpstreamFailure) -> None:
        self._exchange = None
        if self.ended or self._result is not None:
            return
        if self._relay is not None:
            self._broken_stream(failure.detail, failure.kind)
            return
        self._settle("failed", failure.detail, self._delivered(), b"".join(self._body), failure=failure.kind)
        self._go_on_after(unanswered(self._current(), failure))

    def on_fault(self, fault: Exception) -> None:
        """Ends this Call after a fault of ours."""
        report_fault(self.call_id, fault)
        if self.ended:
            return
        running = self._exchange is not None
        self._stop_exchange()
        error = RequestError(500, "the gateway failed at this call", code="internal_error", kind="server_error")
        if self._result is not None:
            self._finish_unrecorded()
            return
        if running and self._price is not None:
            self._settle("failed", f"a fault of the gateway: {type(fault).__name__}", self._delivered())
        tail = _error_event(error) if self._streamed else b""
        status = 200 if self._streamed else 500
        self._close("failed", status, "", error.body(), None, error=error, tail=tail)

    def _judge(self) -> None:
        """A whole answer is here: refuse it, escalate it, or answer with it."""
        head, step = self._head, self._current()
        assert head is not None
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        if head.status != 200:
            self._refused_by_provider(step, head, body)
            return
        try:
            reading = step.dialect.read(body, created_s=self.opened_ns // NS_PER_S)
            tail = self._as_tail(reading.body) if not step.buffered else b""
        except Unusable as fault:
            self._settle("failed", str(fault), salvaged_usage(step.dialect, self.admitted.raw, body), body)
            self._go_on_after(Refusal(unusable(step, str(fault))))
            return
        usage = reading.usage
        if usage.source == "none":
            usage = whole_usage(usage, self.admitted.raw, reading.body)
        if step.buffered:
            self._judge_content(step, reading.body, reading.finish_reason, usage, body)
            return
        self._settle("accepted", "", usage, body)
        answer = None if reading.body is body else reading.body
        self._close_answered(step.name, reading.body, None, reading.finish_reason, answer=answer, tail=tail)

    def _judge_content(self, step: VariantStep, shaped: bytes, finish: str, usage: Usage, body: bytes) -> None:
        output: Any = None
        repair = ""
        answer = shaped
        try:
            message = message_of(shaped)
            reader = self.plan.output_reader
            if reader is None:
                output = message.content or ""
            elif message.content is None:
                raise Misfit("the model refused" if message.refusal else "the answer has no content")
            else:
                parsed = reader.read(message.content)
                output, repair = parsed.output, parsed.repair
                if repair:
                    answer = with_content(shaped, parsed.text)
            tail = self._as_tail(answer)
        except (Misfit, Unusable) as fault:
            self._settle("escalated", str(fault), usage, body)
            self._escalate(unusable(step, str(fault)))
            return
        reason = failing(step.checks, output, self.admitted.value)
        if reason is not None:
            self._settle("escalated", reason[:REASON_CHARS_MAX], usage, body)
            self._escalate(not_accepted(self.plan.name, reason[:REASON_CHARS_MAX]))
            return
        self._settle("accepted", f"repaired: {repair}" if repair else "", usage, body, repaired=bool(repair))
        changed = None if answer is body else answer
        self._close_answered(step.name, answer, output, finish, answer=changed, tail=tail)

    def _refused_by_provider(self, step: VariantStep, head: UpstreamHead, body: bytes) -> None:
        said = step.dialect.error(head.status, step.without_secrets(body))
        reported = reported_usage(step.dialect, body)
        self._settle("failed", f"status {head.status}: {said.message}", reported, body)
        self._go_on_after(refusal(step, head, said))

    def _go_on_after(self, refused: Refusal) -> None:
        """After a failure: the next variant, else the same one again while the attempt budget lasts."""
        self._last_error = refused.error
        if self.left:
            self._close_aborted()
        elif refused.final:
            self._fail(refused.error)
        elif self._step + 1 < len(self.plan.steps):
            self._step += 1
            self._purpose = "fallback"
            self._advance()
        elif (
            not refused.retry or self._sent >= self.plan.workflow.attempts_max or refused.pause_ms > RETRY_AFTER_MAX_MS
        ):
            self._fail(refused.error)
        else:
            # Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
            delay = self._env.random() * min(RETRY_MAX_S, RETRY_BASE_S * 2 ** len(self.attempts))
            self._purpose = "retry"
            self._env.call_later(max(delay, refused.pause_ms / 1000), self._retry)

    def _retry(self) -> None:
        if self.left:
            self._close_aborted()
        elif not self.ended:
            self.start()

    def _escalate(self, error: RequestError) -> None:
        self._last_error = error
        if self.left:
            self._close_aborted()
            return
        self._step += 1
        self._purpose = "escalation"
        self._advance()

    def _broken_stream(self, why: str, kind: str = "") -> None:
        relay = self._relay
        assert relay is not None
        usage = self._delivered()
        if not usage.output_tokens and relay.usage is None and not self._streamed:
            usage = NO_USAGE
        self._settle("failed", why, usage, b"".join(self._body), failure=kind)
        error = interrupted(why)
        if not self._streamed:
            self._go_on_after(Refusal(error))
            return
        self._close("failed", 200, "", b"", None, error=error, tail=_error_event(error))

    # Settling and closing.

    def _settle(
        self,
        verdict: str,
        reason: str,
        usage: Usage,
        body: bytes = b"",
        *,
        repaired: bool = False,
        failure: str = "",
    ) -> None:
        step, head, price = self._current(), self._head, self._price
        assert price is not None
        cost = price.cost_nano_usd(usage) if usage.source != "none" else 0
        self._charged += cost
        status = head.status if head is not None else 0
        self.attempts.append(
            AttemptV1(
                step.name,
                step.target.reference,
                self._purpose,
                verdict,
                reason,
                self._attempt_started_us,
                self._first_byte_us,
                self._elapsed_us(),
                status,
                usage,
                cost,
                price.source,
                provider_request_id(head) if head is not None else "",
                repaired,
                failure,
                -1 if head is None or status == 200 else retry_after_ms(head),
                self._relay is not None,
            )
        )
        self._bodies.append(body)

    def _note_unsent(self, variant: str, model: str, reason: str, now_us: int) -> None:
        self.attempts.append(AttemptV1(variant, model, self._purpose, "failed", reason, now_us, 0, now_us))
        self._bodies.append(b"")

    def _as_tail(self, body: bytes) -> bytes:
        """A whole answer as a stream, where the client wants one. Raises: Unusable."""
        return as_stream(body, include_usage=self.admitted.include_usage) if self.admitted.stream else b""

    def _close_answered(
        self, variant: str, body: bytes, output: Any, finish: str, *, answer: bytes | None, tail: bytes
    ) -> None:
        """answer: what is recorded, where it is not the last attempt's body."""
        status = "aborted" if self.left else "answered"
        self._close(status, 200, variant, body, output, finish=finish, answer=answer, tail=tail)

    def _close_stream(self, relay: Relay) -> None:
        if self._result is not None:
            return
        usage = relay.usage
        if usage is None or usage.source == "none":
            usage = self._delivered()
        step = self._current()
        self._settle("accepted", "", usage, b"".join(self._body))
        status = "aborted" if self.left else "answered"
        self._close(status, 200, step.name, b"", None, finish=relay.finish_reason, tail=relay.tail)

    def _close_aborted(self) -> None:
        self._close("aborted", 499, "", b"", None)

    def _fail(self, error: RequestError) -> None:
        if self.left:
            self._close_aborted()
            return
        status = "refused" if error.status < 500 and not self._charged else "failed"
        self._close(status, error.status, "", error.body(), None, error=error)

    def _close(
        self,
        status: str,
        http_status: int,
        variant: str,
        body: bytes,
        output: Any,
        *,
        error: RequestError | None = None,
        finish: str = "",
        answer: bytes | None = None,
        tail: bytes = b"",
    ) -> None:
        if self._result is not None:
            return
        if not self._opened:
            self._write_opened(None)
        attempts = tuple(self.attempts)
        self._result = CallResult(
            self.call_id, status, http_status, body, output, variant, self._charged, attempts, error, tail
        )
        retained = self._retained
        try:
            payload = self._sealed_answers(answer) if retained else b""
        except JournalFull:
            self._finish_unrecorded()
            return
        closed = ClosedV1(
            self.call_id,
            self.opened_ns + self._env.monotonic_ns() - self._started,
            status,
            http_status,
            variant,
            self._charged,
            attempts,
            error.code if error is not None else "",
            finish,
            retained,
            payload,
        )
        self._env.journal.append(closed, self._closed_written, sync=self.plan.sync)

    def _closed_written(self, written: bool) -> None:
        result = self._result
        assert result is not None
        if not written:
            self._finish_unrecorded()
            return
        self.ended = True
        self._client.on_finished(result)

    def _finish_unrecorded(self) -> None:
        """The ledger cannot be written: nothing may be promised, so the client gets an error instead."""
        if self.ended:
            return
        self.ended = True
        error = RequestError(
            503,
            f"the ledger cannot be written ({self._env.journal.failed or 'unknown reason'}), so no answer may leave",
            code="ledger_unavailable",
            kind="server_error",
            retry_after_s=1,
        )
        tail = _error_event(error) if self._streamed else b""
        status = 200 if self._streamed else 503
        self._client.on_finished(
            CallResult(
                self.call_id, "failed", status, error.body(), None, "", self._charged, tuple(self.attempts), error, tail
            )
        )

    # Small facts.

    def _current(self) -> VariantStep:
        step = self.plan.steps[self._step]
        assert type(step) is VariantStep
        return step

    def _elapsed_us(self) -> int:
        return (self._env.monotonic_ns() - self._started) // 1000

    def _stop_exchange(self) -> None:
        if self._exchange is not None:
            self._exchange.cancel()
            self._exchange = None

    def _delivered(self) -> Usage:
        """What an answer is charged that ends here."""
        kept = b"".join(self._body)
        if self._relay is None:
            return cut_usage(self.admitted.raw, kept)
        return delivered_usage(self._current().dialect, self._relay, self.admitted.raw, kept, self._arrived_bytes)


def _error_event(error: RequestError) -> bytes:
    return b"data: " + error.body() + b"\n\n"
