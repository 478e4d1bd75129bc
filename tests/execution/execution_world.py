"""A Call with every edge in the test's hand: provider, journal, vault, clock and dice. No sockets, no waiting.

`World.call()` starts a Call; each attempt is met by the next `Script` of `world.scripts`; `world.run()` goes on until
nothing is left to happen. What was written, sent, streamed and answered can then be looked at.
"""

from __future__ import annotations

import heapq
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from drivetrain.core.calls import Attribution, Call, ClosedV1, OpenedV1
from drivetrain.core.ids import call_ids
from drivetrain.execution.call import CallResult, Environment, Execution
from drivetrain.execution.environment import FeaturesDoor
from drivetrain.execution.plan import Plans, compile_plans
from drivetrain.execution.replay import Replay, open_payloads, replay
from drivetrain.ports.transport import UpstreamFailure, UpstreamHead, UpstreamRequest, UpstreamSink
from drivetrain.project.load import load

OPENED_NS = 1_780_000_000_000_000_000
DAY = "2026-05-28"
STEPS_MAX = 10_000
"""A Call that takes more has lost its way."""

SETTINGS = """\
[project]
name = "machine"

[providers.up]
dialect = "openai"
base_url = "http://127.0.0.1:9/v1"

[providers.other]
dialect = "anthropic"
base_url = "http://127.0.0.1:9"

[models."up/small"]
usd_per_million_input = "1"
usd_per_million_output = "2"

[models."up/large"]
usd_per_million_input = "10"
usd_per_million_output = "20"

[models."other/claude"]
usd_per_million_input = "3"
usd_per_million_output = "15"

[gateway]
direct_models = ["up/small"]

[ledger]
retention = "full"

[workflows.plain]
owner = "team@acme.example"
team = "support"
use_case = "tests"
route = [{ name = "only", model = "up/small", max_output_tokens = 100 }]

[workflows.fallback]
owner = "team@acme.example"
team = "support"
use_case = "tests"
route = [
  { name = "first", model = "up/small", max_output_tokens = 100 },
  { name = "second", model = "up/large", max_output_tokens = 100 },
  { name = "third", model = "other/claude", max_output_tokens = 100 },
]

[workflows.claude]
owner = "team@acme.example"
team = "support"
use_case = "tests"
route = [{ name = "only", model = "other/claude", max_output_tokens = 100 }]
"""

CODE = """\
import drivetrain as dt

WHO = {"owner": "team@acme.example", "team": "support", "use_case": "tests"}


class Ticket(dt.Record):
    text: str


class Route(dt.Record):
    intent: str
    confidence: float | None = None


def broken_rule(ticket):
    raise LookupError("a rule's own fault")


def broken_then(ticket):
    raise LookupError("a rule's own fault")


triage = dt.Workflow(
    "triage", **WHO, input=Ticket, output=Route,
    route=[
        dt.Rule("broken", when=lambda ticket: "broken rule" in ticket.text and broken_rule(ticket), then=Route("x")),
        dt.Rule("empty", when=lambda ticket: not ticket.text.strip(), then=Route(intent="spam")),
        dt.Rule("shout", when=lambda ticket: ticket.text.isupper(), then=lambda ticket: Route(ticket.text.lower())),
        dt.Rule("broken-then", when=lambda ticket: "broken then" in ticket.text, then=broken_then),
        dt.Variant("small", model="up/small", accept=dt.confidence(0.9), max_output_tokens=64),
        dt.Variant("large", model="up/large", accept=dt.confidence(0.5), max_output_tokens=64),
        dt.Variant("frontier", model="other/claude", max_output_tokens=64),
    ],
)


def judged(output, given):
    if "raise" in output:
        raise ValueError("a secret of the answer")
    if "reject" in output:
        raise dt.Reject("not like this")
    if "bare" in output:
        raise dt.Reject
    if "reason" in output:
        return "because it says so"
    if "false" in output:
        return False
    if "same" in output:
        return output != given.text
    return None if "none" in output else True


def longer_than_one(output):
    return len(output) > 1 or "too short"


checked = dt.Workflow(
    "checked", **WHO,
    route=[
        dt.Variant("small", model="up/small", accept=judged, max_output_tokens=64),
        dt.Variant("large", model="up/large", max_output_tokens=64),
    ],
    validators=[longer_than_one],
)

frugal = dt.Workflow(
    "frugal", **WHO,
    route=[
        dt.Variant("large", model="up/large", max_output_tokens=1000),
        dt.Variant("small", model="up/small", max_output_tokens=1000),
    ],
    budget=dt.Budget(usd_per_call="0.01"),
)

frugal_retries = dt.Workflow(
    "frugal-retries", **WHO,
    route=[dt.Variant("small", model="up/small", max_output_tokens=1000)],
    budget=dt.Budget(usd_per_call="0.0035"),
)

choices = dt.Workflow(
    "choices", **WHO,
    route=[dt.Variant("small", model="up/small", max_output_tokens=1000, parameters={"n": 4})],
    budget=dt.Budget(usd_per_call="0.004"),
)

stubborn = dt.Workflow(
    "stubborn", **WHO,
    route=[
        dt.Variant("small", model="up/small", max_output_tokens=64),
        dt.Variant("large", model="up/large", max_output_tokens=64),
    ],
    attempts_max=6,
)

audited = dt.Workflow(
    "audited", **WHO, durability="audit", route=[dt.Variant("small", model="up/small", max_output_tokens=64)]
)

private = dt.Workflow(
    "private", **WHO, retention="none", route=[dt.Variant("small", model="up/small", max_output_tokens=64)]
)
"""


def load_plans(folder: Path, settings: str = SETTINGS, code: str = CODE) -> Plans:
    """The plans of a project with these files."""
    (folder / "workflows").mkdir(parents=True, exist_ok=True)
    (folder / "drivetrain.toml").write_text(settings)
    (folder / "workflows" / "machine.py").write_text(code)
    return compile_plans(load(folder), lambda _reference: "no-secret")


class Exchange:
    """One attempt, as the provider's side and the pool see it."""

    def __init__(self, request: UpstreamRequest, sink: UpstreamSink) -> None:
        self.request = request
        self.sink = sink
        self.cancelled = False
        self.sent = True
        self.over = False
        self.answered = False
        self.paused = 0
        self.steps: deque[Callable[[Exchange], None]] = deque()

    @property
    def asked(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.request.body)
        return body

    # ports.transport.Attempt

    def answering(self) -> None:
        self.answered = True

    def cancel(self) -> None:
        self.cancelled = self.over = True

    def pause(self) -> None:
        self.paused += 1

    def resume(self) -> None:
        self.paused -= 1

    # What happens to it. As the pool does, a fault of the sink's is given back to it.

    def head(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        if not self.over:
            self._tell(lambda: self.sink.on_head(UpstreamHead(status, dict(headers))))

    def chunk(self, data: bytes) -> None:
        if not self.over:
            self._tell(lambda: self.sink.on_chunk(data))

    def end(self) -> None:
        if not self.over:
            self.over = True
            self._tell(self.sink.on_end)

    def fail(self, kind: str) -> None:
        if not self.over:
            self.over = True
            self._tell(lambda: self.sink.on_failure(UpstreamFailure(kind, f"what the pool says of {kind}", True)))

    def _tell(self, what: Callable[[], None]) -> None:
        try:
            what()
        except AssertionError:
            raise
        except Exception as fault:  # noqa: BLE001
            self.sink.on_fault(fault)


Step = Callable[[Exchange], None]
Script = Iterable[Step]


class Journal:
    """Frames of one tick are written together; `refuse` says which are not."""

    def __init__(self) -> None:
        self.failed = ""
        self.written: list[Any] = []
        self.synced: list[bool] = []
        self.refuse: Callable[[Any], bool] = lambda _record: False
        self.late: list[tuple[Any, Callable[[], None]]] = []
        """What waits for a disk that takes frames again."""
        self._waiting: list[tuple[Any, Callable[[bool], None] | None, bool]] = []

    def append(self, record: Any, then: Callable[[bool], None] | None = None, *, sync: bool = False) -> None:
        self._waiting.append((record, then, sync))

    def append_late(self, record: Any, then: Callable[[], None]) -> None:
        self.late.append((record, then))

    def tick(self) -> bool:
        """Whether there was anything to write."""
        waiting, self._waiting = self._waiting, []
        refused = False
        for record, then, sync in waiting:
            refused = refused or self.refuse(record)  # what stands behind a frame that is not written is not either
            self.failed = "no space" if refused else ""
            if not refused:
                self.written.append(record)
                self.synced.append(sync)
            if then is not None:
                then(not refused)
        return bool(waiting)

    def of(self, kind: type[Any]) -> list[Any]:
        return [one for one in self.written if isinstance(one, kind)]


class Vault:
    """Payloads as they are, behind a mark; `refuse` names the kinds that cannot be sealed."""

    def __init__(self) -> None:
        self.refuse: frozenset[str] = frozenset()
        self.fault: type[Exception] = OSError

    def seal(self, subject: str, call_id: str, kind: str, payload: bytes) -> bytes:
        if kind in self.refuse:
            raise self.fault("no space for keys")
        return b"sealed:" + payload

    def open(self, call_id: str, kind: str, sealed: bytes) -> bytes | None:
        if not sealed.startswith(b"sealed:"):
            raise ValueError("no sealed payload")
        return sealed[7:]


class Client:
    """Whoever asked: what it was told, in order."""

    def __init__(self) -> None:
        self.stream: list[bytes] = []
        self.finished: list[CallResult] = []
        self.late = 0
        """Parts of a stream that came after its end."""

    def on_stream(self, data: bytes) -> None:
        self.late += bool(self.finished)
        self.stream.append(data)

    def on_finished(self, result: CallResult) -> None:
        self.finished.append(result)

    @property
    def result(self) -> CallResult:
        assert len(self.finished) == 1, f"on_finished was called {len(self.finished)} times"
        return self.finished[0]

    @property
    def heard(self) -> bytes:
        """Everything that a streaming client was sent."""
        return b"".join(self.stream) + self.result.tail


class World:
    """Everything outside one Call."""

    def __init__(self, plans: Plans, *scripts: Script, dice: Callable[[], float] = lambda: 0.5) -> None:
        self.plans = plans
        self.scripts: deque[Script] = deque(scripts)
        self.journal = Journal()
        self.vault = Vault()
        self.exchanges: list[Exchange] = []
        self.pauses: list[float] = []
        """Seconds that the Call wanted to wait before each retry."""
        self.client = Client()
        self.execution: Execution | None = None
        self.steps = 0
        self.abort_at = -1
        """Before this step the client leaves; -1: never."""
        self._clock_ns = 0
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._dice = dice
        self.features: FeaturesDoor | None = None
        self.attribution = Attribution(team="support")
        self._ids: Iterator[str] | Callable[[], str] = call_ids(lambda: OPENED_NS)

    def call(self, workflow: str, body: dict[str, Any], *, door: str = "chat", run: bool = True) -> World:
        """A Call of `workflow`, to its end where `run`."""
        plan = self.plans.workflows[workflow]
        raw = json.dumps(body).encode()
        self.execution = Execution(
            plan,
            plan.admit(door, raw),
            self.attribution,
            call_id=self._ids(),  # type: ignore[operator]
            opened_ns=OPENED_NS,
            day=DAY,
            door=door,
            env=Environment(
                transport=self,
                journal=self.journal,
                vault=self.vault,
                now_ns=lambda: OPENED_NS + self._clock_ns,
                monotonic_ns=self._tick_ns,
                call_later=self._later,
                random=self._dice,
                features=self.features,
            ),
            client=self.client,
        )
        self.execution.start()
        if self.abort_at == 0:
            self.execution.abort()
        if run:
            self.run()
        return self

    def run(self) -> None:
        """Until nothing is left to happen."""
        while self.step():
            assert self.steps < STEPS_MAX, "the Call has lost its way"

    def step(self) -> bool:
        """One thing happens: frames are written, a provider does something, or time passes."""
        self.steps += 1
        if self.steps == self.abort_at and self.execution is not None:
            self.execution.abort()
        if self.journal.tick():
            return True
        for exchange in self.exchanges:
            if not exchange.over and exchange.steps:
                exchange.steps.popleft()(exchange)
                return True
        if self._timers:
            at_ns, _, callback = heapq.heappop(self._timers)
            self._clock_ns = max(self._clock_ns, at_ns)
            callback()
            return True
        return False

    @property
    def result(self) -> CallResult:
        return self.client.result

    @property
    def opened(self) -> list[OpenedV1]:
        return self.journal.of(OpenedV1)

    @property
    def closed(self) -> list[ClosedV1]:
        return self.journal.of(ClosedV1)

    @property
    def route(self) -> list[tuple[str, str, str]]:
        """(variant, purpose, verdict) of each attempt."""
        return [(one.variant, one.purpose, one.verdict) for one in self.result.attempts]

    def replayed(self) -> Replay:
        """The Call through the machine again, from its frames."""
        (opened,), (closed,) = self.opened, self.closed
        call = Call(
            **{
                name: getattr(opened, name)
                for name in ("call_id", "opened_ns", "snapshot", "workflow", "door", "stream", "attribution")
            },
            closed_ns=closed.closed_ns,
            prices_date=opened.prices_date,
            status=closed.status,
            http_status=closed.http_status,
            variant=closed.variant,
            cost_nano_usd=closed.cost_nano_usd,
            attempts=closed.attempts,
            error=closed.error,
            finish_reason=closed.finish_reason,
            retained=closed.retained,
            request=opened.payload,
            answers=closed.payload,
            features=opened.features,
        )
        return replay(open_payloads(call, self.vault), self.plans)

    # ports.transport.Transport

    def send(self, request: UpstreamRequest, sink: UpstreamSink) -> Exchange:
        assert self.opened, "a provider was asked before the opened frame was written"
        exchange = Exchange(request, sink)
        assert self.scripts, "a provider was asked once more than was foreseen"
        exchange.steps.extend(self.scripts.popleft())
        self.exchanges.append(exchange)
        return exchange

    # Clock

    def _tick_ns(self) -> int:
        self._clock_ns += 1_000
        return self._clock_ns

    def _later(self, delay_s: float, callback: Callable[[], None]) -> None:
        self.pauses.append(delay_s)
        heapq.heappush(self._timers, (self._clock_ns + int(delay_s * 1e9), len(self.pauses), callback))


# What providers do.

JSON_HEAD = {b"content-type": b"application/json"}
STREAM_HEAD = {b"content-type": b"text/event-stream"}
USAGE = {"prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 1010}


def completion(text: str | None, usage: Any = USAGE, **message: Any) -> bytes:
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_780_000_000,
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}
        ],
    }
    return json.dumps(body if usage is None else {**body, "usage": usage}).encode()


def message(text: str, usage: Any = None) -> bytes:
    """A whole answer in Anthropic's dialect."""
    said = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "usage": usage or {"input_tokens": 1000, "output_tokens": 10},
    }
    return json.dumps(said).encode()


def whole(body: bytes, status: int = 200, *, headers: Mapping[bytes, bytes] = JSON_HEAD, parts: int = 1) -> list[Step]:
    size = max(1, -(-len(body) // parts))
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    return [
        lambda one: one.head(status, headers),
        *((lambda one, data=data: one.chunk(data)) for data in chunks),
        lambda one: one.end(),
    ]


def says(text: str, usage: Any = USAGE) -> list[Step]:
    return whole(completion(text, usage))


def refuses(status: int, code: str = "some_code", **headers: str) -> list[Step]:
    body = json.dumps({"error": {"message": f"no: {status}", "type": "x", "code": code, "param": None}}).encode()
    named = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return whole(body, status, headers={**JSON_HEAD, **named})


def fails(kind: str, *before: Step) -> list[Step]:
    return [*before, lambda one: one.fail(kind)]


def event(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def events(*words: str, usage: Any = USAGE, done: bool = True) -> list[bytes]:
    """An OpenAI stream's events."""

    def one(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    made = [event(one({"role": "assistant", "content": ""}))]
    made += [event(one({"content": word})) for word in words]
    made.append(event(one({}, "stop")))
    if usage is not None:
        made.append(event({**one({}), "choices": [], "usage": usage}))
    return [*made, event(b"[DONE]")] if done else made


def streams(chunks: Iterable[bytes], last: Step | None = None) -> list[Step]:
    """A stream in these chunks, then its end."""
    return [
        lambda one: one.head(200, STREAM_HEAD),
        *((lambda one, data=data: one.chunk(data)) for data in chunks),
        last or (lambda one: one.end()),
    ]


def chat(text: str = "How are you today?", **more: Any) -> dict[str, Any]:
    return {"model": "any", "messages": [{"role": "user", "content": text}], **more}
