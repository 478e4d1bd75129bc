"""Many Calls of one Snapshot, asked for what their answers tell: by evals, upgrades and probes.

Owns the background loop of such a run, how many Calls run at once, and what the run may cost. Calls go through the one
path of a Call and are recorded as others, under a door of their own. Which rows are asked, and what their answers are
worth, is for whoever calls it.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError

import msgspec

from drivetrain.core.calls import CHAT_DOORS, EVAL, Answers, Attribution
from drivetrain.core.codec import JSON
from drivetrain.core.errors import DrivetrainError, RequestError, did_you_mean
from drivetrain.core.evals import CONCURRENCY_DEFAULT
from drivetrain.datasets.payloads import answer_text
from drivetrain.embedded.applying import keep
from drivetrain.embedded.background import BackgroundRuntime
from drivetrain.embedded.run_budget import RUN_BUDGET, RunBudget
from drivetrain.execution.admission import Admitted, unstreamed_body
from drivetrain.execution.call import CallResult, Execution
from drivetrain.execution.environment import Asked, Environment
from drivetrain.execution.plan import WorkflowPlan
from drivetrain.project.snapshot import Snapshot

ANEW = Asked(cache_read=False, cache_write=False)
"""An answer is wanted from the route as it is, and callers get none that they did not ask for."""
NOBODY: Mapping[str, str] = {}
UNUSABLE = frozenset({"unusable_answer", "no_acceptable_answer"})
"""Codes of Calls in which a model answered, and what it said could not be used."""
SAID_MAX = 1_000
"""Such answers in memory, of whoever does not ask for them."""
_END_S = 30.0
"""For the last frames of Calls that are cut when a run is left."""


class Asker:
    """Asks workflows of one Snapshot, from any thread; made by `asking`."""

    def __init__(
        self, snapshot: Snapshot, *, concurrency: int = CONCURRENCY_DEFAULT, limit_nano_usd: int | None = None
    ) -> None:
        self.snapshot = snapshot
        self._concurrency = max(1, concurrency)
        self._stopped = False
        self._waiting: set[Future[CallResult]] = set()
        self._said: dict[str, bytes] = {}
        """Call -> what was said that could not be used, until somebody asks."""
        self._background = BackgroundRuntime(snapshot, "drivetrain-asker")
        self._runtime = self._background.runtime
        inner = self._runtime.environment.limits
        self._budget = RunBudget(limit_nano_usd, inner, self._background.call_soon)
        self._environment: Environment = msgspec.structs.replace(self._runtime.environment, limits=self._budget)

    @property
    def spent_nano_usd(self) -> int:
        """What its Calls have cost so far, judges included."""
        return self._budget.spent_nano_usd

    @property
    def out_of_budget(self) -> bool:
        """Whether a row was not asked because its worst case does not fit what the run may cost."""
        return self._budget.over

    def plan(self, workflow: str) -> WorkflowPlan:
        """Raises: DrivetrainError where the Snapshot has no such workflow."""
        found = self._runtime.plans.workflows.get(workflow)
        if found is None:
            raise DrivetrainError(
                f"Snapshot {self.snapshot.short_hash} of `{self.snapshot.name}` has no workflow `{workflow}`.",
                do=did_you_mean(workflow, self._runtime.plans.workflows),
            )
        return found

    def input_of(self, workflow: str, door: str, raw: bytes) -> bytes:
        """A request as it came through `door`, as an input that `ask` takes. Raises: DrivetrainError, RequestError."""
        return input_of(self.plan(workflow), door, raw)

    def said(self, call_id: str) -> str:
        """What the last attempt of a failed Call answered, once; empty where nothing came that a model wrote."""
        body = self._said.pop(call_id, b"")
        return answer_text(Answers((body,), None)) or "" if body else ""

    def ask(
        self, workflow: str, raw: bytes, *, door: str = EVAL, user: str = "", tags: tuple[str, ...] = ()
    ) -> CallResult:
        """One Call, to its end. Raises: DrivetrainError."""
        return self.later(workflow, raw, door=door, user=user, tags=tags).result()

    def later(
        self, workflow: str, raw: bytes, *, door: str = EVAL, user: str = "", tags: tuple[str, ...] = ()
    ) -> Future[CallResult]:
        """One Call that runs from now on; an input that is refused ends it at once, without a record."""
        plan = self.plan(workflow)
        if self._background.is_here:
            raise DrivetrainError(f"Workflow `{workflow}` was asked by its own project's code, which would wait.")
        waiting: Future[CallResult] = Future()
        try:
            admitted = plan.admit_input(raw)
        except RequestError as error:
            refused = CallResult("", "refused", error.status, error.body(), None, "", 0, (), error)
            waiting.set_result(refused)
            return waiting
        declared = plan.workflow
        who = Attribution("", declared.team, declared.use_case, "", user, tags)
        self._waiting.add(waiting)
        waiting.add_done_callback(self._waiting.discard)
        self._background.soon(self._start, plan, admitted, who, door, waiting)
        return waiting

    def ask_all(
        self,
        workflow: str,
        rows: Iterable[tuple[str, bytes]],
        *,
        door: str = EVAL,
        tags: tuple[str, ...] = (),
        users: Mapping[str, str] = NOBODY,
    ) -> Iterator[tuple[str, CallResult]]:
        """(row's id, how it ended) as they end, `concurrency` at once; rows that the budget keeps from being asked are
        left out, and `out_of_budget` says so. After `stop` it gives what is under way and ends.

        users: row's id -> whom it tells of, so that what is kept of its Call goes when they are erased.
        """
        self.plan(workflow)
        ended: queue.SimpleQueue[tuple[str, Future[CallResult]]] = queue.SimpleQueue()
        given, running, more = iter(rows), 0, True
        while more or running:
            while more and running < self._concurrency:
                found = None if self._stopped or self.out_of_budget else next(given, None)
                if found is None:
                    more = False
                    break
                row, raw = found
                asked = self.later(workflow, raw, door=door, user=users.get(row, ""), tags=tags)
                asked.add_done_callback(lambda one, row=row: ended.put((row, one)))  # type: ignore[misc]
                running += 1
            if running:
                row, done = ended.get()
                running -= 1
                result = done.result()
                if not was_kept_back(result):
                    yield row, result

    def stop(self) -> None:
        """Start no further row."""
        self._stopped = True

    def close(self) -> None:
        """End what runs and write what is buffered."""
        self._background.close(self._leave, _END_S)

    def _leave(self) -> None:
        for waiting in list(self._waiting):
            message = "the run was left while this call ran; it may have been sent"
            with contextlib.suppress(InvalidStateError):  # it ended meanwhile
                waiting.set_exception(RequestError(503, message, code="closed", kind="server_error"))

    def _start(
        self, plan: WorkflowPlan, admitted: Admitted, who: Attribution, door: str, waiting: Future[CallResult]
    ) -> None:
        runtime = self._runtime
        now_ns = time.time_ns()
        client = _Waiting(waiting, self._said)
        execution = Execution(
            plan, admitted, who, call_id=runtime.next_call_id(), opened_ns=now_ns, day=runtime.day(now_ns), door=door,
            env=self._environment, client=client, asked=ANEW,
        )  # fmt: skip
        client.execution = execution
        execution.start()


class _Waiting:
    """Gives a Call's end to the thread that asked."""

    def __init__(self, waiting: Future[CallResult], said: dict[str, bytes]) -> None:
        self._waiting = waiting
        self._said = said
        self.execution: Execution | None = None

    def on_stream(self, data: bytes) -> None:
        """Never called: nothing is streamed."""

    def on_finished(self, result: CallResult) -> None:
        if self.execution is not None and result.error is not None and result.error.code in UNUSABLE:
            if len(self._said) >= SAID_MAX:
                self._said.pop(next(iter(self._said)))
            self._said[result.call_id] = self.execution.last_body
        if not self._waiting.done():
            self._waiting.set_result(result)


def was_kept_back(result: CallResult) -> bool:
    """Whether the run's budget kept a row from being asked; its Call stands in the ledger as refused."""
    return result.limited is not None and result.limited.limit == RUN_BUDGET


def input_of(plan: WorkflowPlan, door: str, raw: bytes) -> bytes:
    """A recorded request as an input: a conversation becomes the workflow's, and nothing is streamed.

    Raises: RequestError where the workflow does not take it.
    """
    if door not in CHAT_DOORS:
        return raw
    body = unstreamed_body(raw)
    if plan.input_decoder is None:
        return JSON.encode(body)
    return JSON.encode(plan.chat.admit(body, raw).value)


@contextlib.contextmanager
def asking(
    snapshot: Snapshot, *, concurrency: int = CONCURRENCY_DEFAULT, limit_nano_usd: int | None = None
) -> Iterator[Asker]:
    """An Asker over a loaded Snapshot, which is stored so that its Calls can be replayed.

    limit_nano_usd: what all its Calls may cost together; None: what the project's budgets allow.
    Raises: DrivetrainError where a secret is missing or the ledger cannot be written.
    """
    keep(snapshot)
    asker = Asker(snapshot, concurrency=concurrency, limit_nano_usd=limit_nano_usd)
    try:
        yield asker
    finally:
        asker.close()
