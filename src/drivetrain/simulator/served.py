"""One model behind one door: a request in, a timed reply out.

Owns the order of events: override, rate limit, failure, answer, usage, bill, pace. Called by `desk`; performs no I/O.
"""

from itertools import count

from drivetrain.simulator.answers import answers_for
from drivetrain.simulator.content import Content
from drivetrain.simulator.dice import Dice, DiceBox
from drivetrain.simulator.door import LAST_CHUNK, Asked, Door, Finish, Refusal, Said, Usage, chunk
from drivetrain.simulator.failures import STATUS_KIND, Failure, TokenBucket, drawn, spoiled_text
from drivetrain.simulator.invoice import Bill, Invoice
from drivetrain.simulator.overrides import Override
from drivetrain.simulator.pace import drawn_ms, drawn_tokens, is_fixed
from drivetrain.simulator.playback import Reply
from drivetrain.simulator.settings import ModelSettings

DELTAS_MAX = 1_000_000
"""A stream has at most this many content events."""
OVERSIZED_DELTAS = 100
"""An oversized stream comes in few large events."""
_NOT_JSON = b'{"id":"simulated","choices":[{"oops'
_ENDLESS = chunk(b"x" * 16_384)
_NO_OVERRIDE = Override()


class ServedModel:
    """One model as one dialect's clients see it."""

    def __init__(
        self,
        model: ModelSettings,
        door: Door,
        *,
        seed: int,
        invoice: Invoice,
        box: DiceBox,
        serials: "count[int]",
        bucket: TokenBucket | None,
    ) -> None:
        text_bytes = (
            None if model.answer_bytes is None else max(0, model.answer_bytes - door.envelope_bytes - len(model.name))
        )
        self._model = model
        self._door = door
        self._invoice = invoice
        self._box = box
        self._serials = serials
        self._bucket = bucket
        self._answers = answers_for(model, seed, text_bytes)
        tokens = model.output_tokens
        self._needs_dice = (
            bool(model.failures.shares)
            or not (is_fixed(model.latency) and is_fixed(model.first_token))
            or (tokens is not None and tokens.tokens_min != tokens.tokens_max)
        )

    def reply(self, asked: Asked, body: bytes, overrides: list[Override], now_s: float, unix_s: float) -> Reply:
        """The reply to one request. Raises: Refusal when it is an error of the provider's."""
        model = self._model
        counters = self._invoice.models[model.name]
        counters.requests += 1
        extra_headers = b"" if self._bucket is None else self._limited(self._bucket, now_s)
        dice, override = None, _NO_OVERRIDE
        if self._needs_dice or overrides:
            dice = self._box.dice(model.name, body)
            override = _chosen(overrides, model.name, dice)
        failure = override.failure
        if failure is None and dice is not None and model.failures.shares:
            failure = drawn(model.failures, dice.unit(b"failure"))
        kind = ""
        if failure is not None:
            kind = failure.kind
            counters.count_failure(kind)
            self._refuse_on(failure, asked, extra_headers)
        said, charged = self._said(asked, kind, dice, override, extra_headers=extra_headers, unix_s=unix_s)
        reply = self._paced(said, charged, kind, dice, override)
        reply.bill = Bill(counters, model.price, charged)
        if failure is not None:
            self._spoil_transport(reply, failure, dice)
        counters.count_status(200)
        counters.streams += asked.stream
        return reply

    def _limited(self, bucket: TokenBucket, now_s: float) -> bytes:
        fits = bucket.take(now_s)
        headers = self._door.limit_headers(bucket.limit.burst, bucket.remaining, bucket.next_s)
        if not fits:
            refusal = Refusal(429, "", retry_after_s=max(1, -int(-bucket.next_s // 1)))
            refusal.extra_headers = headers
            raise refusal
        return headers

    def _refuse_on(self, failure: Failure, asked: Asked, extra_headers: bytes) -> None:
        status = int(failure.argument) if failure.kind == STATUS_KIND else 0
        if failure.kind == "error_mid_stream" and not asked.stream:
            status = 500
        if status:
            again = self._model.failures.retry_after_s if status in (429, 503, 529) else None
            refusal = Refusal(status, "", retry_after_s=again)
            refusal.extra_headers = extra_headers
            raise refusal

    def _said(
        self, asked: Asked, kind: str, dice: Dice | None, override: Override, *, extra_headers: bytes, unix_s: float
    ) -> tuple[Said, Usage]:
        """What is said, and the usage that is charged for it."""
        model = self._model
        wanted = override.output_tokens
        if wanted is None and model.output_tokens is not None:
            wanted = drawn_tokens(model.output_tokens, dice)
        content = self._answers.content(asked, wanted)
        visible = content.tokens if wanted is None else wanted
        reasoning = model.reasoning_tokens
        finish: Finish = "tool" if asked.tool else "stop"
        limit = asked.tokens_output_max
        if limit is not None and kind == "overrun":
            visible = max(visible, 2 * limit)
        elif limit is not None and reasoning + visible > limit:
            reasoning, finish = min(reasoning, limit), "length"
            visible = limit - reasoning
            if content.tokens > visible:
                content = content.shortened(visible)
        usage = Usage(
            input=asked.tokens_input,
            input_cached=int(asked.tokens_input * model.cached_input_share),
            output=visible + reasoning,
            reasoning=reasoning,
        )
        said = Said(
            asked=asked,
            content=content,
            finish=finish,
            usage=usage,
            serial=next(self._serials),
            created_s=int(unix_s),
            processing_ms=0,
            extra_headers=extra_headers,
        )
        return said, usage if not kind else _spoil_answer(said, usage, kind, self._failure_bytes(override))

    def _failure_bytes(self, override: Override) -> int:
        failure = override.failure
        if failure is not None and failure.kind == "oversized" and failure.argument > 0:
            return min(int(failure.argument), 64 * 1024 * 1024)
        return self._model.failures.oversized_bytes

    def _paced(self, said: Said, charged: Usage, kind: str, dice: Dice | None, override: Override) -> Reply:
        model = self._model
        first_ms, latency_ms, per_s = override.first_token_ms, override.latency_ms, override.tokens_per_s
        if first_ms is None:
            first_ms = drawn_ms(model.first_token, dice, b"first token")
        if latency_ms is None:
            latency_ms = drawn_ms(model.latency, dice, b"latency")
        if per_s is None:
            per_s = model.tokens_per_s
        rest_s = latency_ms / 1000 + ((charged.output - charged.reasoning) / per_s if per_s > 0 else 0.0)
        wait_s = first_ms / 1000
        if said.asked.stream:
            said.processing_ms = int(first_ms)
            return self._stream(said, wait_s, rest_s, kind)
        said.processing_ms = int((wait_s + rest_s) * 1000)
        return self._whole(said, wait_s + rest_s, kind)

    def _whole(self, said: Said, wait_s: float, kind: str) -> Reply:
        if kind == "endless_line":
            return Reply(
                pieces=[self._door.head(said, None) + chunk(b'{"id":"simulated","text":"')],
                wait_s=wait_s,
                endless=_ENDLESS,
            )
        body = _NOT_JSON if kind == "malformed_body" else self._door.body(said)
        head = self._door.head(said, len(body))
        if kind == "stall_mid_stream":
            half = len(body) // 2
            return Reply(pieces=[head + body[:half], body[half:]], wait_s=wait_s)
        return Reply(pieces=[head + body], wait_s=wait_s)

    def _stream(self, said: Said, wait_s: float, spread_s: float, kind: str) -> Reply:
        model, door = self._model, self._door
        natural = OVERSIZED_DELTAS if kind == "oversized" else max(1, said.content.tokens)
        deltas = min(DELTAS_MAX, model.stream_events or natural)
        events = door.events(said, deltas)
        half = 1 + deltas // 2
        endless = b""
        if kind == "malformed_body":
            events[half] = b"data: %b\n\n" % _NOT_JSON
        elif kind == "error_mid_stream":
            events = events[:half]
            events[-1] += door.mid_stream_error(500)
        elif kind == "endless_line":
            events = [*events[:half], b'data: {"id":"simulated","text":"']
            endless = _ENDLESS
        pieces = [chunk(event) for event in events]
        pieces[0] = door.head(said, None) + pieces[0]
        if not endless:
            pieces[-1] += LAST_CHUNK
        if model.stream_writes == "together" and spread_s <= 0.0 and not kind:
            return Reply(pieces=[b"".join(pieces)], wait_s=wait_s)
        return Reply(pieces=pieces, deltas=deltas, wait_s=wait_s, spread_s=spread_s, endless=endless)

    def _spoil_transport(self, reply: Reply, failure: Failure, dice: Dice | None) -> None:
        failures = self._model.failures
        stall_s = failure.argument if failure.argument >= 0 else failures.stall_s
        if failure.kind == "stall_before_first_byte":
            reply.wait_s += stall_s
        elif failure.kind == "stall_mid_stream":
            reply.stall_at, reply.stall_s = max(1, len(reply.pieces) // 2), stall_s
        elif failure.kind == "cut":
            at = int(failure.argument) if failure.argument >= 0 else failures.cut_at_byte
            if at < 0:
                total = sum(map(len, reply.pieces))
                at = int((0.5 if dice is None else dice.unit(b"cut")) * total)
            reply.cut_at, reply.cut_with_reset = at, failures.cut_with == "rst"


def _chosen(overrides: list[Override], model: str, dice: Dice) -> Override:
    """The first override that is meant for this model and this repetition."""
    for override in overrides:
        meant = override.model is None or override.model == model
        if meant and (override.times is None or dice.ordinal < override.times):
            return override
    return _NO_OVERRIDE


def _spoil_answer(said: Said, usage: Usage, kind: str, oversized_bytes: int) -> Usage:
    """Changes what is said as the failure wants; gives the usage to charge."""
    text = spoiled_text(kind, said.content.text, oversized_bytes)
    if text is not None:
        said.content = Content(text)
    elif kind == "bad_utf8":
        said.bad_utf8 = True
    elif kind == "no_usage":
        said.usage = None
    elif kind == "negative_usage":
        said.usage = Usage(
            input=-usage.input, input_cached=-usage.input_cached, output=-usage.output, reasoning=-usage.reasoning
        )
    elif kind == "explicit_zero_usage":
        said.usage = Usage(input=0, input_cached=0, output=0, reasoning=0)
        return said.usage
    return usage
