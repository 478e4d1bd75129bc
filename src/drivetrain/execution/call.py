"""One Call through its route: a state machine with injected clock, randomness, transport and journal.

Events come in (an answer's head, chunks, end or failure; the client leaving; a frame written), frames and
answers go out. The same machine serves live calls, plain Python calls and replays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from drivetrain.cache.answers import Kept
from drivetrain.core.calls import (
    DOORS_ASIDE,
    RETAINED_FULL,
    RETAINED_NONE,
    AttemptV1,
    Attribution,
    ClosedV1,
    OpenedV1,
)
from drivetrain.core.codec import JSON
from drivetrain.core.declarations import Cache, Stale
from drivetrain.core.errors import RequestError, report_fault
from drivetrain.core.features import FeaturesSeenV1
from drivetrain.core.limits import Refusal as LimitRefusal
from drivetrain.core.money import NO_USAGE, Price, Usage
from drivetrain.core.policies import DecisionV1
from drivetrain.core.times import NS_PER_S
from drivetrain.execution.admission import Admitted, too_deep
from drivetrain.execution.again import Again, may_be_same
from drivetrain.execution.charging import (
    Bound,
    asked_usage,
    bound_of,
    cut_usage,
    delivered_usage,
    over_budget,
    reported_usage,
    salvaged_usage,
    unbounded_cost,
    whole_usage,
)
from drivetrain.execution.completions import as_stream, completion, output_text
from drivetrain.execution.context import fitted
from drivetrain.execution.deciding import Deciding, DecisionTaken, case_of, decide
from drivetrain.execution.environment import NOTHING_ASKED, Asked, Environment
from drivetrain.execution.featured import Featured, FeaturePlan
from drivetrain.execution.judging import NotAccepted, judged
from drivetrain.execution.plan import VariantStep, WorkflowPlan
from drivetrain.execution.recording import answers, retained, sealed
from drivetrain.execution.refusals import (
    TIMEOUTS,
    Refusal,
    deadline_exceeded,
    denied,
    health_outcome,
    interrupted,
    provider_request_id,
    refusal,
    retry_after_ms,
    unanswered,
    unusable,
)
from drivetrain.execution.trained import TrainedStep
from drivetrain.limits.slices import Hold
from drivetrain.policies.compile import CompiledPolicy
from drivetrain.ports.inference import ModelRequest
from drivetrain.ports.journal import JournalFull
from drivetrain.ports.transport import Attempt, UpstreamFailure, UpstreamHead, UpstreamRequest
from drivetrain.providers.answers import Reading, Relay, Unusable
from drivetrain.routing.checks import Features, RuleStep

RETRY_BASE_S = 0.1
RETRY_MAX_S = 2.0
RETRY_AFTER_MAX_MS = 5_000
"""A provider that asks for a longer pause is not asked again by this call."""
KEPT_BYTES_MAX = 4 * 1024 * 1024
"""Of a stream, for its record, for the cache and for counting; what is longer cannot be replayed."""
COUNTED_BYTES_MAX = 256 * 1024
"""Of a stream that nobody keeps, to count what was delivered by; what is beyond counts in proportion."""
ADMISSION, RESERVATION, FLIGHT, JOURNAL, PAUSE = "admission", "reservation", "flight", "journal", "pause"
"""What a Call may wait for beside its provider."""
NO_ACCOUNTS: tuple[str, ...] = ()
NO_CHAT: dict[str, Any] = {}
NO_TOKENS = Bound(0, 0)
SCORED = Usage(source="reported")
"""What a trained model uses of tokens: none, and that is no estimate."""
AGAIN_JSON = UpstreamHead(200, {b"content-type": b"application/json"})
AGAIN_STREAM = UpstreamHead(200, {b"content-type": b"text/event-stream"})


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
    degraded: str = ""
    """`stale` or `static` where no variant answered and the workflow's ladder did."""
    limited: LimitRefusal | None = None
    """The limit that refused it; its headers belong beside the error."""
    decision: DecisionTaken | None = None
    """What the workflow's policy did with the answer."""


class Client(Protocol):
    """Whoever asked."""

    def on_stream(self, data: bytes) -> None:
        """Whole events of a live stream."""

    def on_finished(self, result: CallResult) -> None:
        """The call has ended and its record is written."""


class Execution:
    """One Call."""

    __slots__ = (
        "_again",
        "_allowed_us",
        "_arrived_bytes",
        "_asked",
        "_attempt_started_us",
        "_bodies",
        "_body",
        "_bound",
        "_charged",
        "_client",
        "_deadline_us",
        "_decided",
        "_degraded",
        "_env",
        "_exchange",
        "_features",
        "_first_byte_us",
        "_granted_ns",
        "_head",
        "_hit",
        "_hold",
        "_last_error",
        "_limited",
        "_notes",
        "_opened",
        "_price",
        "_purpose",
        "_relay",
        "_request",
        "_result",
        "_retained",
        "_rung",
        "_sent",
        "_stands",
        "_started",
        "_step",
        "_streamed",
        "_unsettled",
        "_waits",
        "_weighs",
        "_worst",
        "admitted",
        "attempts",
        "attribution",
        "call_id",
        "day",
        "door",
        "ended",
        "left",
        "live",
        "opened_ns",
        "plan",
    )

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
        asked: Asked = NOTHING_ASKED,
        notes: tuple[str, ...] = (),
    ) -> None:
        """notes: what the record says of it beside what happens on its way."""
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
        self._asked = asked
        self._retained = RETAINED_NONE if plan.retention == "none" else retained(plan.retention, env.vault, call_id)
        self.ended = False
        self.left = False
        """Whether the client has left."""
        self._step = 0
        self._purpose = "answer"
        self._opened = False
        self._streamed = False
        self.live = False
        """Whether the running attempt's answer goes to the client as it comes."""
        self._arrived_bytes = 0
        self._charged = 0
        self._sent = 0
        self._attempt_started_us = 0
        self._first_byte_us = 0
        self._exchange: Attempt | None = None
        self._request: UpstreamRequest | ModelRequest | None = None
        self._price: Price | None = None
        self._head: UpstreamHead | None = None
        self._relay: Relay | None = None
        self._last_error: RequestError | None = None
        self._result: CallResult | None = None
        self._waits = ""
        self._hold: Hold | None = None
        self._weighs: tuple[dict[str, Any], int, int] | None = None
        """What bounds the attempt: its chat, the bytes of its request, its limit of output tokens."""
        self._bound: Bound | None = None
        """Of the attempt that is being made: no estimate of what it used goes beyond it."""
        self._unsettled = False
        """Whether an attempt was sent whose end is not booked yet."""
        self._stands = False
        """Whether the ledger holds a frame of this Call."""
        self._worst = 0
        """What the attempt that is being made costs at most, in nano-USD."""
        self._allowed_us = 0
        """How long it may take."""
        self._granted_ns = 0
        """When the provider's health gave leave for the running attempt; 0: it was not asked."""
        self._hit: Kept | None = None
        self._again: Again | None = None
        """Made for the first request that another one may be the same as."""
        self._notes = notes
        self._rung = 0
        """Rungs of the ladder that were tried."""
        self._degraded = ""
        self._limited: LimitRefusal | None = None
        self._features: Featured | None = None
        """What its FeatureService gave it."""
        self._decided: Deciding | None = None
        self._deadline_us = 0
        """When it must have ended; 0: never."""
        allowed_ms = plan.deadline_ms
        if asked.deadline_ms is not None and (allowed_ms is None or asked.deadline_ms < allowed_ms):
            allowed_ms = asked.deadline_ms
        if allowed_ms is not None:
            self._deadline_us = max(1, allowed_ms * 1000)

    # What the client's side calls.

    def start(self) -> None:
        """Begin. The client hears nothing before this returns, unless transport and journal are synchronous."""
        try:
            plan = self.plan
            if plan.features is not None and not self._read_features(plan.features):
                return
            limits = self._env.limits
            if limits is None:
                self._advance()
                return
            self._waits = ADMISSION
            held = limits.admit(self.attribution, plan.name, self.opened_ns, self._admitted_later, plan.priority)
            if type(held) is Hold:
                self._waits = ""
                self._hold = held
                self._advance()
            elif type(held) is LimitRefusal:
                self._take_place(held)
        except JournalFull:
            self._finish_unrecorded()
        except Exception as fault:  # noqa: BLE001  a fault of ours ends its Call as failed, and no other
            self.on_fault(fault)

    def _read_features(self, wanted: FeaturePlan) -> bool:
        """Whether the Call may go on to its route."""
        try:
            self._features = wanted.read(self._env.features, self.admitted, self.attribution, self.opened_ns)
        except RequestError as error:
            self._fail(error)
            return False
        return True

    def _admitted_later(self, held: Hold | LimitRefusal) -> None:
        self._go(lambda: self._take_place(held))

    def _take_place(self, held: Hold | LimitRefusal) -> None:
        self._waits = ""
        if type(held) is LimitRefusal:
            self._limited = held
            self._fail(held.error())
            return
        assert type(held) is Hold
        self._hold = held
        if self.left:
            self._close_aborted()
        else:
            self._advance()

    def _go(self, step: Callable[[], None]) -> None:
        """Go on after a wait; what goes wrong ends this Call, and no other."""
        try:
            step()
        except JournalFull:
            self._finish_unrecorded()
        except Exception as fault:  # noqa: BLE001  as in `start`
            self.on_fault(fault)

    def abort(self) -> None:
        """The client left. A stream is cut and charged what was delivered; a whole answer is still awaited,
        because the provider bills it, and its true cost is recorded."""
        if self.ended or self.left:
            return
        self.left = True
        try:
            if self._exchange is not None and self.live:
                usage = self._left_usage(sent=self._exchange.sent)
                self._stop_exchange()
                self._settle("aborted", "the client left", usage, b"".join(self._body))
                self._close_aborted()
            elif self._waits in (FLIGHT, PAUSE):
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
        try:
            while not self._rung and self._step < len(steps):
                step = steps[self._step]
                if type(step) is VariantStep:
                    if self._sent >= self.plan.attempts_max:
                        break
                    if self._prepare(step):
                        return
                elif self._rule_answers(step):  # type: ignore[arg-type]
                    return
                self._step += 1
        except JournalFull:
            self._finish_unrecorded()
            return
        error = self._last_error or RequestError(
            502, f"no variant of workflow `{self.plan.name}` answered", code="no_answer", kind="server_error"
        )
        self._fail(error)

    def _rule_answers(self, step: RuleStep) -> bool:
        matched = step.try_on(self.admitted.value, self._feature_values)
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
        timeout_ms, first_byte_ms = step.timeout_ms, step.first_byte_timeout_ms
        if self._deadline_us:
            timeout_ms = min(timeout_ms, (self._deadline_us - self._elapsed_us()) // 1000)
            first_byte_ms = min(first_byte_ms, timeout_ms)
            if timeout_ms <= 0:
                self._miss_deadline(step)
                return True
        trained = step.trained
        asked: ModelRequest | None = None
        try:
            if trained is not None:
                asked = trained.request(self.admitted.value, self._feature_values, timeout_ms)
                chat, body = NO_CHAT, asked.row
            else:
                chat = self.admitted.chat if step.as_it_is else self._chat(step)
                body = step.dialect.encode(chat, step.target, stream=live, max_output_tokens=limit)
        except RequestError as error:
            return self._cannot(step, error)
        except RecursionError:
            return self._cannot(step, too_deep())
        plan = self.plan
        self._weighs = (chat, len(body), limit)
        self._bound = None if asked is None else NO_TOKENS
        self._price = price
        hold = self._hold
        self._worst = 0
        if plan.cost_max_nano_usd is not None or (hold is not None and hold.weighed):
            bound = self._bounded()
            self._worst = price.worst_case_nano_usd(bound.input_tokens, bound.output_tokens, timeout_ms * 1000)
            if plan.cost_max_nano_usd is not None:
                over = over_budget(plan, step, bound, self._worst + self._charged)
                if over is not None:
                    return self._cannot(step, over)
        self._allowed_us = timeout_ms * 1000
        self.live = live
        self._head = None
        self._relay = None
        self._body = []
        self._arrived_bytes = 0
        self._request = asked or UpstreamRequest(step.target.endpoint, step.head, body, first_byte_ms, timeout_ms)
        if plan.cache is not None and (again := self._again_for(plan.cache, chat)) is not None:
            kept = again.look_up(step, self._step, live=live, body=body, landed=self._landed)
            if kept is not None:
                self._give(kept)
                return True
            if again.waits:
                self._waits = FLIGHT
                if self._deadline_us:
                    left_us = max(0, self._deadline_us - self._elapsed_us())
                    self._env.call_later(left_us / 1e6, self._waited_too_long)
                return True
        return self._borrow(step)

    def _chat(self, step: VariantStep) -> dict[str, Any]:
        chat = self.admitted.chat
        built = {**chat, **step.extra, **step.parameters}
        if step.messages is not None:
            built["messages"] = step.messages(self.admitted.value, chat.get("messages"), self._feature_values)
        limit_tokens = self.plan.max_input_tokens
        if limit_tokens is not None:
            beside = [built[name] for name in ("tools", "functions", "response_format") if name in built]
            other_bytes = len(JSON.encode(beside)) if beside else 0
            fit = fitted(
                built["messages"], limit_tokens=limit_tokens, strategy=self.plan.context, other_bytes=other_bytes
            )
            built["messages"] = fit.messages
            self._notes += tuple(note for note in fit.notes if note not in self._notes)
        return built

    def _cannot(self, step: VariantStep, error: RequestError, failure: str = "") -> bool:
        if self._last_error is None or self._last_error.status == 400:
            self._last_error = error
        self._note_unsent(step.name, step.target.reference, error.what, self._elapsed_us(), failure)
        self._request = None
        self._purpose = "fallback"
        return False

    def _miss_deadline(self, step: VariantStep) -> None:
        error = deadline_exceeded(self._deadline_us // 1000)
        self._note_unsent(step.name, step.target.reference, error.what, self._elapsed_us(), "deadline")
        self._fail(error)

    # Answers given again.

    def _again_for(self, rules: Cache, chat: dict[str, Any]) -> Again | None:
        """This Call's side of the cache, where such a request may be answered from it."""
        again, env = self._again, self._env
        if not may_be_same(rules, chat):
            if again is not None:
                again.pass_by()
            return None
        if again is None and env.cache is not None and env.flights is not None:
            tenant = self.attribution.tenant
            again = self._again = Again(self.plan, env.cache, env.flights, tenant=tenant, asked=self._asked)
        return again

    def _landed(self, kept: Kept | None) -> None:
        """The answer that this Call waited for is here; None: it is on this Call to ask."""
        self._waits = ""
        again = self._again
        assert again is not None
        if kept is not None and again.may_give(kept):
            self._go(lambda: self._give(kept))
        else:
            self._go(self._borrow_or_go_on)

    def _waited_too_long(self) -> None:
        if self._waits == FLIGHT and not self.ended:
            self._waits = ""
            self._go(lambda: self._miss_deadline(self._current()))

    def _give(self, kept: Kept) -> None:
        """Answer with what a provider said before, through the same reading and checks."""
        self._hit = kept
        self._request = None
        self._body = []
        self._arrived_bytes = 0
        self._relay = None
        self._attempt_started_us = self._elapsed_us()
        if kept.streamed and not self._opened:
            # Events leave as they are read, so the Call must be on record first.
            self._waits = JOURNAL
            self._write_opened(self._give_now)
        else:
            self._give_now(True)

    def _give_now(self, written: bool) -> None:
        self._waits = ""
        self._stands = self._opened and written
        if not written:
            self._finish_unrecorded()
        elif self.left:
            self._close_aborted()
        else:
            self._go(self._read_again)

    def _read_again(self) -> None:
        kept = self._hit
        assert kept is not None
        self.on_head(AGAIN_STREAM if kept.streamed else AGAIN_JSON)
        self.on_chunk(kept.body)
        if self._hit is kept:
            self.on_end()

    # Leave to send: the provider's health, then money.

    def _borrow_or_go_on(self) -> None:
        if self.left:
            self._close_aborted()
        elif not self._borrow(self._current()):
            self._step += 1
            self._advance()

    def _borrow(self, step: VariantStep) -> bool:
        """Whether the attempt is on its way, or waits for leave; otherwise why not is noted, and the route goes on."""
        env, hold = self._env, self._hold
        if env.health is not None and step.watched:
            now_ns = env.monotonic_ns()
            no = env.health.may_send(step.target.reference, now_ns)
            if no is not None:
                return self._cannot(step, denied(step, no), "denied")
            self._granted_ns = now_ns
        if hold is not None:
            assert env.limits is not None
            tokens = 0
            if self._bound is not None:
                bound = self._bound
                tokens = bound.input_tokens + bound.output_tokens
                if bound.unbounded and env.limits.is_hard(hold):
                    self._withdraw()
                    return self._cannot(step, unbounded_cost(bound.unbounded), "unbounded")
            self._waits = RESERVATION
            short = env.limits.reserve(hold, self._worst, tokens, self._reserved)
            if type(short) is LimitRefusal:
                return self._too_dear(step, short)
            if short is not None:
                return True
        if self._opened:
            self._record_and_send()
        else:
            self._waits = JOURNAL
            self._write_opened(self._may_send, hold)
        return True

    def _reserved(self, short: LimitRefusal | None) -> None:
        self._waits = ""
        if self.left:
            self._withdraw()
            self._go(self._close_aborted)
        elif short is None:
            self._go(self._record_and_send)
        else:
            self._go(lambda: self._go_on_without(short))

    def _go_on_without(self, short: LimitRefusal) -> None:
        if not self._too_dear(self._current(), short):
            self._step += 1
            self._advance()

    def _too_dear(self, step: VariantStep, short: LimitRefusal) -> bool:
        self._waits = ""
        self._withdraw()
        error = short.error()
        self._limited = short
        if short.closes == "variant":
            return self._cannot(step, error, "limit")
        self._note_unsent(step.name, step.target.reference, error.what, self._elapsed_us(), "limit_call")
        self._request = None
        self._fail(error)
        return True

    def _withdraw(self) -> None:
        """The provider's health gave leave for what will not be sent."""
        granted_ns, self._granted_ns = self._granted_ns, 0
        if granted_ns:
            assert self._env.health is not None
            self._env.health.withdrawn(self._current().target.reference, granted_ns)

    def _record_and_send(self) -> None:
        hold = self._hold
        if not self._opened:
            self._waits = JOURNAL
            self._write_opened(self._may_send, hold)
        elif hold is not None and hold.accounts.money:
            self._waits = JOURNAL
            self._env.journal.append(hold.frame(self.call_id), self._may_send, sync=self.plan.sync)
        else:
            self._send()

    # Records.

    def _sealed(self, kind: str, payload: bytes) -> bytes:
        return sealed(self._env.vault, self._retained, payload, whose=self.attribution, call_id=self.call_id, kind=kind)

    def _write_opened(self, then: Callable[[bool], None] | None, hold: Hold | None = None) -> None:
        """hold: has a reservation for the attempt that follows."""
        self._opened = True
        number, accounts, amount = 0, NO_ACCOUNTS, 0
        if hold is not None and hold.accounts.money:
            number, accounts, amount = hold.number, hold.accounts.names, hold.reserved
        opened = OpenedV1(
            self.call_id,
            self.opened_ns,
            self.plan.snapshot,
            self.plan.name,
            self.door,
            self.admitted.stream,
            self.attribution,
            self.day,
            self._retained,
            self._sealed("request", self.admitted.raw) if self._retained else b"",
            number,
            accounts,
            amount,
            self._seen(),
            self._business_key(),
        )
        self._env.journal.append(opened, then, sync=self.plan.sync)

    def _business_key(self) -> str:
        key = self.plan.business_key
        return key(self.admitted.value) if key is not None and self.door not in DOORS_ASIDE else ""

    def _seen(self) -> FeaturesSeenV1 | None:
        """The features for the record. They are kept whatever the retention: without them no parity can be shown."""
        features, env = self._features, self._env
        if features is None:
            return None
        kept = RETAINED_FULL if env.vault is not None else RETAINED_NONE
        whose, call_id = self.attribution, self.call_id
        held = sealed(env.vault, kept, features.record, whose=whose, call_id=call_id, kind="features")
        return msgspec.structs.replace(features.seen, sealed=held)

    def _may_send(self, written: bool) -> None:
        self._waits = ""
        self._stands = self._stands or written
        if written and not self.left:
            try:
                self._send()
            except Exception as fault:  # noqa: BLE001  as in `start`
                self.on_fault(fault)
            return
        self._request = None
        self._withdraw()
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
        self._unsettled = True
        self._attempt_started_us = self._elapsed_us()
        self._first_byte_us = 0
        if type(request) is ModelRequest:
            assert self._env.models is not None, "a plan with trained models has somebody to run them"
            self._exchange = self._env.models.send(request, self)
        else:
            self._exchange = self._env.transport.send(request, self)  # type: ignore[arg-type]

    def on_head(self, head: UpstreamHead) -> None:
        self._head = head
        if self.live and head.status == 200:
            if self._granted_ns:
                # A whole answer says so itself, soon enough.
                assert self._env.health is not None
                self._env.health.answered(self._current().target.reference, self._granted_ns, self._env.monotonic_ns())
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
        if self._arrived_bytes < (KEPT_BYTES_MAX if self._retained or self._again is not None else COUNTED_BYTES_MAX):
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
        whole = b"".join(self._body)
        hurried = self._asked.deadline_ms is not None and failure.kind in TIMEOUTS
        usage = self._left_usage(sent=failure.sent) if hurried else self._delivered()
        self._settle("failed", failure.detail, usage, whole, failure=failure.kind, sent=failure.sent)
        self._go_on_after(unanswered(self._current(), failure))

    def on_fault(self, fault: Exception) -> None:
        """Ends this Call after a fault of ours."""
        report_fault(self.call_id, fault)
        if self.ended:
            return
        self._stop_exchange()
        error = RequestError(500, "the gateway failed at this call", code="internal_error", kind="server_error")
        if self._result is not None:
            self._finish_unrecorded()
            return
        if self._unsettled or self._hit is not None:
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
            reading = (
                self._scored(step.trained, body) if step.trained is not None
                else step.dialect.read(body, created_s=self.opened_ns // NS_PER_S)
            )  # fmt: skip
            tail = self._as_tail(reading.body) if not step.buffered else b""
        except Unusable as fault:
            self._settle(
                "failed", str(fault), salvaged_usage(step.dialect, self.admitted.raw, body, self._bounded()), body
            )
            self._go_on_after(Refusal(unusable(step, str(fault))))
            return
        usage = reading.usage
        if usage.source == "none":
            usage = whole_usage(usage, self.admitted.raw, reading.body, self._bounded())
        if step.buffered:
            self._judge_content(step, reading.body, reading.finish_reason, usage, body)
            return
        self._settle("accepted", "", usage, body, finish=reading.finish_reason)
        answer = None if reading.body is body else reading.body
        self._close_answered(step.name, reading.body, None, reading.finish_reason, answer=answer, tail=tail)

    def _scored(self, trained: TrainedStep, body: bytes) -> Reading:
        """A trained model's answer in OpenAI's shape. Raises: Unusable."""
        text = trained.text(body)
        return Reading(completion(self.call_id, self.plan.name, text, self.opened_ns), "stop", SCORED)

    def _judge_content(self, step: VariantStep, shaped: bytes, finish: str, usage: Usage, body: bytes) -> None:
        try:
            good = judged(self.plan, step, shaped, self.admitted.value, self._feature_values)
            tail = self._as_tail(good.body)
        except NotAccepted as no:
            self._settle("escalated", no.reason, usage, body)
            self._escalate(no.error)
            return
        except Unusable as fault:
            self._settle("escalated", str(fault), usage, body)
            self._escalate(unusable(step, str(fault)))
            return
        repaired = f"repaired: {good.repair}" if good.repair else ""
        self._settle("accepted", repaired, usage, body, repaired=bool(repaired), finish=finish)
        answer = None if good.body is body else good.body
        self._close_answered(step.name, good.body, good.output, finish, answer=answer, tail=tail)

    def _refused_by_provider(self, step: VariantStep, head: UpstreamHead, body: bytes) -> None:
        said = step.dialect.error(head.status, step.without_secrets(body))
        reported = reported_usage(step.dialect, body)
        # What a model says of a row may quote it, which belongs into payloads only.
        told = said.message if step.trained is None else said.code
        self._settle("failed", f"status {head.status}: {told}", reported, body)
        self._go_on_after(refusal(step, head, said))

    def _go_on_after(self, refused: Refusal) -> None:
        """After a failure: the next variant, else the same one again while the attempt budget lasts."""
        self._last_error = refused.error
        if self.left:
            self._close_aborted()
        elif refused.final or self._rung:
            self._fail(refused.error)
        elif self._step + 1 < len(self.plan.steps):
            self._step += 1
            self._purpose = "fallback"
            self._advance()
        elif not refused.retry or self._sent >= self.plan.attempts_max or not self._may_retry(refused):
            self._fail(refused.error)
        else:
            # Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
            delay_s = self._env.random() * min(RETRY_MAX_S, RETRY_BASE_S * 2 ** len(self.attempts))
            delay_s = max(delay_s, refused.pause_ms / 1000)
            self._purpose = "retry"
            if self._deadline_us and self._elapsed_us() + delay_s * 1e6 >= self._deadline_us:
                self._miss_deadline(self._current())
                return
            self._waits = PAUSE
            self._env.call_later(delay_s, self._retry)

    def _may_retry(self, refused: Refusal) -> bool:
        if refused.pause_ms > RETRY_AFTER_MAX_MS:
            return False
        env = self._env
        if env.health is None or not self._current().watched:
            return True
        return env.health.may_retry(self._current().target.reference, env.monotonic_ns())

    def _retry(self) -> None:
        if self.ended or self._result is not None:
            return
        self._waits = ""
        self._go(self._advance)

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
        finish: str = "",
        sent: bool = True,
    ) -> None:
        """End the running attempt: what it cost, who is told, what is kept."""
        step, head, price, hit = self._current(), self._head, self._price, self._hit
        ended_us = self._elapsed_us()
        status = head.status if head is not None else 0
        streamed = self._relay is not None
        if hit is not None:
            self._hit = None
            self.attempts.append(
                AttemptV1(
                    step.name, step.target.reference, self._purpose, verdict, reason,
                    self._attempt_started_us, self._first_byte_us, ended_us, status, NO_USAGE, 0, hit.price_source,
                    repaired=repaired, failure=failure, streamed=streamed, cached=True,
                    saved_nano_usd=hit.cost_nano_usd,
                )
            )  # fmt: skip
            self._bodies.append(body)
            return
        assert price is not None
        self._unsettled = False
        cost = 0
        if price.by_time:
            if sent:
                # Timeouts are looked at now and then; what was not allowed is neither paid nor recorded.
                ended_us = min(ended_us, self._attempt_started_us + self._allowed_us)
                cost = price.cost_nano_usd(usage, ended_us - self._attempt_started_us)
        elif usage.source != "none":
            cost = price.cost_nano_usd(usage)
        self._charged += cost
        pause_ms = -1 if head is None or status == 200 else retry_after_ms(head)
        self.attempts.append(
            AttemptV1(
                step.name,
                step.target.reference,
                self._purpose,
                verdict,
                reason,
                self._attempt_started_us,
                self._first_byte_us,
                ended_us,
                status,
                usage,
                cost,
                price.source,
                provider_request_id(head) if head is not None else "",
                repaired,
                failure,
                pause_ms,
                streamed,
            )
        )
        self._bodies.append(body)
        env = self._env
        if self._hold is not None:
            assert env.limits is not None
            beyond = env.limits.settle(self._hold, cost, usage.input_tokens + usage.output_tokens)
            if beyond and self._hold.accounts.money:
                self._notes += (f"overrun: `{step.name}` cost {beyond} nano-USD more than was reserved for it",)
        granted_ns = self._granted_ns
        if granted_ns:
            self._granted_ns = 0
            assert env.health is not None
            outcome = "ok" if verdict == "accepted" else health_outcome(verdict, status, failure)
            now_ns = self._started + ended_us * 1000
            if outcome is None:
                env.health.withdrawn(step.target.reference, granted_ns)
            else:
                env.health.ended(step.target.reference, granted_ns, now_ns, outcome, pause_ms)
        again = self._again
        if again is not None:
            again.settle(
                verdict, body, whole=not streamed or self._arrived_bytes <= len(body), streamed=streamed, usage=usage,
                cost_nano_usd=cost, price_source=price.source, finish=finish, now_ns=env.monotonic_ns(),
            )  # fmt: skip

    def _note_unsent(self, variant: str, model: str, reason: str, now_us: int, failure: str = "") -> None:
        """failure: which verdict of the world kept it from being sent, so that a replay can give it back."""
        noted = AttemptV1(variant, model, self._purpose, "failed", reason, now_us, 0, now_us, failure=failure)
        self.attempts.append(noted)
        self._bodies.append(b"")
        if self._again is not None:
            self._again.leave()

    def _as_tail(self, body: bytes) -> bytes:
        """A whole answer as a stream, where the client wants one. Raises: Unusable."""
        return as_stream(body, include_usage=self.admitted.include_usage) if self.admitted.stream else b""

    def _close_answered(
        self, variant: str, body: bytes, output: Any, finish: str, *, answer: bytes | None, tail: bytes
    ) -> None:
        """answer: what is recorded, where it is not the last attempt's body."""
        status = "aborted" if self.left else "answered"
        if self.plan.policy is not None and not self.left:
            try:
                self._decide(self.plan.policy, variant, body, output)
            except RequestError as error:
                self._close("failed", error.status, variant, error.body(), None, error=error, answer=answer)
                return
        self._close(status, 200, variant, body, output, finish=finish, answer=answer, tail=tail)

    def _decide(self, policy: CompiledPolicy, variant: str, body: bytes, output: Any) -> None:
        """Raises: RequestError where the policy fails."""
        case = case_of(
            self.admitted.value, self._feature_values, output, body,
            variant=variant, charged_nano_usd=self._charged, degraded=self._degraded,
        )  # fmt: skip
        self._decided = decide(policy, case, self.call_id)

    def _decision(self) -> DecisionV1 | None:
        """For the record. What the policy says it reads is kept whatever the retention; else by the retention."""
        decided, policy = self._decided, self.plan.policy
        if decided is None or policy is None:
            return None
        vault = self._env.vault
        kept = RETAINED_FULL if vault is not None and policy.reads else self._retained
        if kept != RETAINED_FULL or not decided.sealed:
            return decided.record
        whose, call_id = self.attribution, self.call_id
        held = sealed(vault, kept, decided.sealed, whose=whose, call_id=call_id, kind="decision")
        return msgspec.structs.replace(decided.record, sealed=held)

    def _close_stream(self, relay: Relay) -> None:
        if self._result is not None:
            return
        usage = relay.usage
        if usage is None or usage.source == "none":
            usage = self._delivered()
        step = self._current()
        self._settle("accepted", "", usage, b"".join(self._body), finish=relay.finish_reason)
        status = "aborted" if self.left else "answered"
        self._close(status, 200, step.name, b"", None, finish=relay.finish_reason, tail=relay.tail)

    def _close_aborted(self) -> None:
        self._close("aborted", 499, "", b"", None)

    def _fail(self, error: RequestError) -> None:
        if self.left:
            self._close_aborted()
            return
        if (error.status >= 500 or error.status == 429) and self._degrade():
            return
        status = "refused" if error.status < 500 and not self._charged else "failed"
        self._close(status, error.status, "", error.body(), None, error=error)

    def _degrade(self) -> bool:
        """Whether a rung of the workflow's ladder answers, now that no variant does."""
        rungs = self.plan.workflow.degrade
        while self._rung < len(rungs):
            rung = rungs[self._rung]
            self._rung += 1
            if isinstance(rung, Stale):
                if self._give_stale(rung):
                    return True
                continue
            now_us = self._elapsed_us()
            self._degraded, self._purpose = "static", "degraded"
            self.attempts.append(AttemptV1("static", "", "degraded", "accepted", "", now_us, now_us, now_us))
            self._bodies.append(b"")
            body = completion(self.call_id, self.plan.name, output_text(rung.answer), self.opened_ns)
            self._close_answered("static", body, rung.answer, "stop", answer=body, tail=self._as_tail(body))
            return True
        return False

    def _give_stale(self, rung: Stale) -> bool:
        found = self._again.stale(rung.max_age_s) if self._again is not None else None
        if found is None:
            return False
        self._step, self.live, kept = found
        self._degraded, self._purpose = "stale", "degraded"
        self._give(kept)
        return True

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
        self._waits = ""
        if self._again is not None:
            self._again.leave()
        if not self._opened:
            self._write_opened(None)
        attempts = tuple(self.attempts)
        degraded = self._degraded if status == "answered" else ""
        self._result = CallResult(
            self.call_id, status, http_status, body, output, variant, self._charged, attempts, error, tail,
            degraded, self._limited if error is not None else None,
            self._decided.taken if self._decided is not None else None,
        )  # fmt: skip
        try:
            payload = self._sealed("answers", answers(self._bodies, answer)) if self._retained else b""
            decision = self._decision()
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
            self._retained,
            payload,
            degraded,
            self._notes,
            decision,
        )
        self._env.journal.append(closed, self._closed_written, sync=self.plan.sync)

    def _closed_written(self, written: bool) -> None:
        result = self._result
        assert result is not None
        if not written:
            self._finish_unrecorded()
            return
        self.ended = True
        if self._hold is not None:
            self._let_go()
        self._client.on_finished(result)

    def _let_go(self) -> None:
        """What it did not spend is free from here: the ledger knows its end."""
        hold = self._hold
        if hold is not None:
            assert self._env.limits is not None
            self._env.limits.close_hold(hold)

    def _finish_unrecorded(self) -> None:
        """The ledger cannot be written: nothing may be promised, so the client gets an error instead."""
        if self.ended:
            return
        self.ended = True
        self._waits = ""
        if self._again is not None:
            self._again.leave()
        self._withdraw()
        error = RequestError(
            503,
            f"the ledger cannot be written ({self._env.journal.failed or 'unknown reason'}), so no answer may leave",
            code="ledger_unavailable",
            kind="server_error",
            retry_after_s=1,
        )
        tail = _error_event(error) if self._streamed else b""
        status = 200 if self._streamed else 503
        if self._stands:
            # The ledger knows its beginning, and budgets hold its reservation until the end is known as well.
            self._env.journal.append_late(self._late_end(error, status), self._let_go)
        else:
            self._let_go()
        self._client.on_finished(
            CallResult(
                self.call_id, "failed", status, error.body(), None, "", self._charged, tuple(self.attempts), error, tail
            )
        )

    def _late_end(self, error: RequestError, http_status: int) -> ClosedV1:
        """What the ledger is told when it can be written again."""
        kept = self._retained
        try:
            payload = self._sealed("answers", answers(self._bodies, None)) if kept else b""
        except JournalFull:
            kept, payload = RETAINED_NONE, b""
        ended_ns = self.opened_ns + self._env.monotonic_ns() - self._started
        return ClosedV1(
            self.call_id, ended_ns, "failed", http_status, "", self._charged, tuple(self.attempts), error.code, "",
            kept, payload, notes=self._notes,
        )  # fmt: skip

    # Small facts.

    def _current(self) -> VariantStep:
        step = self.plan.steps[self._step]
        assert type(step) is VariantStep
        return step

    @property
    def _feature_values(self) -> Features:
        features = self._features
        return features.values if features is not None else None

    @property
    def last_body(self) -> bytes:
        """What its last attempt was answered, as it came; empty where nothing came."""
        return self._bodies[-1] if self._bodies else b""

    def _elapsed_us(self) -> int:
        return (self._env.monotonic_ns() - self._started) // 1000

    def _stop_exchange(self) -> None:
        if self._exchange is not None:
            self._exchange.cancel()
            self._exchange = None

    def _bounded(self) -> Bound:
        """The most that the attempt can use. Where nothing is limited, asked for only when something went wrong."""
        bound = self._bound
        if bound is None:
            assert self._weighs is not None
            assert self._price is not None
            chat, body_bytes, limit = self._weighs
            bound = bound_of(chat, body_bytes=body_bytes, limit=limit)
            if self._price.by_time and bound.unbounded:
                bound = Bound(bound.input_tokens, bound.output_tokens)  # its timeout bounds what it costs
            self._bound = bound
        return bound

    def _left_usage(self, *, sent: bool) -> Usage:
        """What an answer is charged that its own client cut: the provider has read the request, answered or not."""
        if not sent or self._body or self._head is not None:
            return self._delivered()
        return asked_usage(self.admitted.raw, self._bounded())

    def _delivered(self) -> Usage:
        """What an answer is charged that ends here; a refusal, whole or not, is none."""
        head = self._head
        if head is not None and head.status != 200:
            return NO_USAGE
        kept = b"".join(self._body)
        if self._relay is None:
            return cut_usage(self.admitted.raw, kept, self._bounded())
        dialect, raw = self._current().dialect, self.admitted.raw
        return delivered_usage(dialect, self._relay, raw, kept, self._arrived_bytes, bound=self._bounded())


def _error_event(error: RequestError) -> bytes:
    return b"data: " + error.body() + b"\n\n"
