"""A recorded Call through another Snapshot's route, offline: what its policy would have seen.

The request is admitted anew and goes through the one path of a Call. Rules and trained models answer for themselves. A
provider's answer is given again where the very same request was sent to it; another request is never guessed at: the
Call then says whom it would have to ask. Called by `replayed`.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from drivetrain.cache.flights import Flights
from drivetrain.core.calls import AttemptV1
from drivetrain.core.errors import DrivetrainError, RequestError
from drivetrain.core.models import Pinned, is_trained
from drivetrain.core.policies import Action, Case, Policy
from drivetrain.evals.explain import Ask, Unanswered
from drivetrain.evals.past import Lost
from drivetrain.execution.call import CallResult, Execution
from drivetrain.execution.environment import Environment
from drivetrain.execution.plan import VariantStep, compile_plans
from drivetrain.execution.replay import ReplayedExchange
from drivetrain.execution.verdicts import UNSENT, Recorded, Verdicts
from drivetrain.inference.local import LocalModels
from drivetrain.ports.inference import Scorer
from drivetrain.ports.transport import Attempt, UpstreamFailure, UpstreamHead, UpstreamRequest, UpstreamSink
from drivetrain.project.snapshot import Snapshot

NOT_THE_SAME = "its own Snapshot does not lead to what its record says"
STEPS_MAX = 100_000
"""Of one Call; a route that makes more is not one."""

Exchanges = Mapping[tuple[bytes, bytes], list[tuple[AttemptV1, bytes]]]
"""What was sent -> what came back, in order."""
Scorers = Callable[[Pinned], Scorer]


class Answered(msgspec.Struct, frozen=True):
    """What a policy would see, and what was exchanged on the way."""

    case: Case
    exchanges: Exchanges


class Route:
    """The route of one workflow as one Snapshot has it, without its policy."""

    def __init__(self, snapshot: Snapshot, workflow: str, scorers: Scorers) -> None:
        """scorers: loads a trained model. Raises: DrivetrainError where the Snapshot has no such workflow."""
        declared = snapshot.workflows.get(workflow)
        if declared is None:
            raise DrivetrainError(f"Snapshot {snapshot.short_hash} has no workflow `{workflow}`.")
        self._seen: list[Case] = []
        bare = copy.copy(declared)
        bare.policy = Policy("rerun", decide=self._look)
        alone = msgspec.structs.replace(snapshot, workflows={workflow: bare})
        self._plan = compile_plans(alone, lambda _reference: "rerun-needs-no-secret").workflows[workflow]
        self._scorers = scorers

    def _look(self, case: Case) -> Action:
        self._seen.append(case)
        return Action("seen")

    def own(self, recorded: Recorded) -> Answered:
        """As it was: the Case, and every exchange with a provider. Raises: Lost."""
        world = _World(recorded, None, self._scorers)
        case = self._run(recorded, world)
        made = [(one.variant, one.verdict) for one in world.execution.attempts] if world.execution is not None else []
        if case is None or made != [(one.variant, one.verdict) for one in recorded.call.attempts]:
            raise Lost(NOT_THE_SAME)
        return Answered(case, world.exchanges)

    def other(self, recorded: Recorded, exchanges: Exchanges) -> Case:
        """A Call of another Snapshot through this one. Raises: Ask, Unanswered."""
        world = _World(recorded, exchanges, self._scorers)
        case = self._run(recorded, world)
        if world.asks:
            raise Ask([self._reference(request) for request in world.asks])
        if case is None:
            raise Unanswered
        return case

    def _run(self, recorded: Recorded, world: _World) -> Case | None:
        call = recorded.call
        try:
            admitted = self._plan.admit(call.door, recorded.request)
        except RequestError:
            return None
        del self._seen[:]
        client = _Client()
        execution = Execution(
            self._plan,
            admitted,
            call.attribution,
            call_id=call.call_id,
            opened_ns=call.opened_ns,
            day=call.prices_date,
            door=call.door,
            env=world.environment(),
            client=client,
        )
        world.execution = execution
        execution.start()
        world.run()
        if world.missing:
            raise Lost(world.missing)
        return self._seen[-1] if client.result is not None and self._seen else None

    def _reference(self, request: UpstreamRequest) -> str:
        """`provider/model` that a request asks."""
        steps = [one for one in self._plan.steps if isinstance(one, VariantStep) and one.head == request.head]
        named = [one for one in steps if f'"{one.target.upstream_name}"'.encode() in request.body]
        return (named or steps)[0].target.reference


class _World:
    """Transport, models, journal and timer of a Call that is answered again."""

    failed = ""

    def __init__(self, recorded: Recorded, exchanges: Exchanges | None, scorers: Scorers) -> None:
        """exchanges: what is known of providers; None: the record's own, one after the other."""
        pairs = zip(recorded.call.attempts, recorded.answers.attempts, strict=True)
        self._record = deque((one, body) for one, body in pairs if _was_sent(one))
        self._known = exchanges
        self._turns: dict[tuple[bytes, bytes], int] = {}
        self.exchanges: dict[tuple[bytes, bytes], list[tuple[AttemptV1, bytes]]] = {}
        self.asks: list[UpstreamRequest] = []
        self._steps: deque[Callable[[], object]] = deque()
        self.execution: Execution | None = None
        self._verdicts = Verdicts(
            recorded, lambda: len(self.execution.attempts) if self.execution is not None else 0, self._steps.append
        )
        self._scorers = scorers
        self.missing = ""
        """The trained model that could not be loaded."""

    def environment(self) -> Environment:
        """Of its own Snapshot, what the world decided is given back; of another one, nothing stands in the way."""
        verdicts = self._verdicts if self._known is None else None
        return Environment(
            transport=self,
            journal=self,
            vault=None,
            now_ns=lambda: 0,
            monotonic_ns=lambda: 0,
            call_later=lambda _delay_s, callback: self._steps.append(callback),
            random=lambda: 0.0,
            limits=verdicts,
            health=verdicts,
            # What the cache gave is one more answer to the same request.
            cache=None,
            flights=Flights(self._steps.append),
            features=self._verdicts,
            models=LocalModels(self._scorer, self._steps.append, lambda: 0),
        )

    def _scorer(self, pinned: Pinned) -> Scorer:
        try:
            return self._scorers(pinned)
        except DrivetrainError as error:
            self.missing = f"model {pinned.id} cannot be loaded: {error.what}"
            raise

    def run(self) -> None:
        """Until nothing is left to do."""
        for _ in range(STEPS_MAX):
            if not self._steps:
                return
            self._steps.popleft()()

    # ports.transport.Transport

    def send(self, request: UpstreamRequest, sink: UpstreamSink) -> Attempt:
        key = (request.head, request.body)
        if self._known is None:
            found = self._record.popleft() if self._record else None
            if found is not None:
                self.exchanges.setdefault(key, []).append(found)
        else:
            turn = self._turns.get(key, 0)
            self._turns[key] = turn + 1
            answers = self._known.get(key)
            found = answers[min(turn, len(answers) - 1)] if answers else None
        exchange = ReplayedExchange()
        exchange.sent = True
        if found is None:
            self.asks.append(request)  # and nobody answers, so that it goes no further
        else:
            self._steps.append(lambda: _answer(*found, sink, exchange))
        return exchange

    # ports.journal.Journal

    def append(self, record: Any, then: Callable[[bool], None] | None = None, *, sync: bool = False) -> None:
        """Nothing is written."""
        if then is not None:
            self._steps.append(lambda: then(True))

    def append_late(self, record: Any, then: Callable[[], None]) -> None:
        """Never called: every frame is taken."""


class _Client:
    def __init__(self) -> None:
        self.result: CallResult | None = None

    def on_stream(self, data: bytes) -> None:
        """Nobody reads it."""

    def on_finished(self, result: CallResult) -> None:
        self.result = result


def _was_sent(attempt: AttemptV1) -> bool:
    """Whether a provider, or the cache for it, was asked."""
    if not attempt.model or is_trained(attempt.model) or attempt.failure in UNSENT:
        return False
    return bool(attempt.status or attempt.failure or attempt.cached)


def _answer(attempt: AttemptV1, body: bytes, sink: UpstreamSink, exchange: ReplayedExchange) -> None:
    if attempt.status or attempt.cached:
        kind = b"text/event-stream" if attempt.streamed else b"application/json"
        sink.on_head(UpstreamHead(attempt.status or 200, {b"content-type": kind}))
        if body and not exchange.cancelled:
            sink.on_chunk(body)
    if exchange.cancelled:
        return
    if attempt.failure:
        sink.on_failure(UpstreamFailure(attempt.failure, attempt.reason, attempt.cost_nano_usd > 0))
    else:
        sink.on_end()
