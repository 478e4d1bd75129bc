"""A candidate's Calls on copies of traffic: queued, run beside everything, compared with what was answered, counted.

Owns which copy runs when, under whose name, and what is counted of it. A shadow Call goes through the one path of a
Call and is recorded with the door `shadow`; nobody gets its answer, nothing acts on its Decision, no cache keeps it and
no Outcome is its truth. Its money comes from a budget of its own and from those of the whole project, since that is
what all of them promise; limits of teams, keys and users are left to those who called. Called by
`embedded/shadowing.py`, on its loop.
"""

from __future__ import annotations

import time
from collections import deque

import msgspec

from drivetrain.core.calls import CHAT_DOORS, SHADOW
from drivetrain.core.codec import JSON, MalformedJson, parse_json
from drivetrain.core.errors import RequestError
from drivetrain.core.limits import Limit, Refusal
from drivetrain.core.times import NS_PER_S
from drivetrain.embedded.runtime import Runtime
from drivetrain.embedded.shadow_socket import Received
from drivetrain.execution.admission import Admitted, unstreamed_body
from drivetrain.execution.call import CallResult, Execution
from drivetrain.execution.environment import Asked, Environment
from drivetrain.execution.plan import WorkflowPlan
from drivetrain.project.snapshot import Snapshot
from drivetrain.providers.answers import Unusable, message_of

SHADOW_TAG = "~shadow"
"""On each of its Calls, beside the caller's tags; the budget of that name is for this tag."""
RUNNING_MAX = 16
"""Shadow Calls at a time: a provider's rate limit is the live path's as well."""
WAITING_MAX = 1_000
WAITING_BYTES_MAX = 16 * 1024 * 1024
"""Copies that wait, and their bodies; the oldest make room, since the newest tell most of now."""
DEADLINE_MS = 60_000
"""Nobody waits for the answer, and a place is not kept for longer."""
PAID_S = 1.0
"""A Call that still runs after it was paid for, though it may hang: budgets answer within milliseconds."""
BROKE_S = 60.0
"""After the budget refused a Call no copy is run for so long, or until the day is over: each refusal is a record."""
STORE_PAUSE_S = 1.0
"""The same where the store of budgets does not answer."""
ASKED = Asked(cache_read=False, cache_write=False, deadline_ms=DEADLINE_MS)
SENT, UNSENT = "sent", "unsent"
"""How a gateway's worker counts a copy; the other ends are counted here."""
ANSWERED, FAILED, REFUSED, LATE, UNAFFORDABLE = "answered", "failed", "refused", "late", "unaffordable"
SAME, DIFFERENT, SAME_ACTION, OTHER_ACTION = "same", "different", "same_action", "other_action"


class ShadowCounts(msgspec.Struct):
    """What became of copies; read by the gateway's workers as part of their own counters, by the same names."""

    shadow_copies: dict[str, int] = {}
    """By `workflow`, NUL, how it ended: `answered`, `failed`, `refused` (by the candidate's admission or a limit),
    `late` (others came before it had begun) or `unaffordable`."""
    shadow_compared: dict[str, int] = {}
    """By `workflow`, NUL, `same`, `different`, `same_action` or `other_action`."""
    shadow_nano_usd: dict[str, int] = {}
    """By workflow."""


def count(series: dict[str, int], name: str, number: int = 1) -> None:
    """Add to one of the counters."""
    series[name] = series.get(name, 0) + number


def shadowed(snapshot: Snapshot, nano_usd_per_day: int) -> Snapshot:
    """The candidate as its shadow runs it: no cache, its own budget, and the budgets of the whole project.

    Rates and places of running Calls are not shared: what the shadow took of them the live path would lack.
    """
    limits = {
        name: limit
        for name, limit in snapshot.limits.items()
        if limit.kind == "budget" and limit.dimension == "project"
    }
    limits[SHADOW_TAG] = Limit(
        name=SHADOW_TAG, kind="budget", dimension="tag", value=SHADOW_TAG, amount=nano_usd_per_day, per="day"
    )
    gateway = msgspec.structs.replace(snapshot.gateway, cache_bytes_max=0)
    return msgspec.structs.replace(snapshot, limits=limits, gateway=gateway)


class ShadowCalls:
    """Runs copies on a candidate that `runtime` has prepared."""

    def __init__(self, runtime: Runtime, workflows: frozenset[str], counts: ShadowCounts) -> None:
        self.counts = counts
        self.running: set[Execution] = set()
        self._runtime = runtime
        self._workflows = workflows
        self._environment: Environment = msgspec.structs.replace(runtime.environment, cache=None, flights=None)
        self._waiting: deque[Received] = deque()
        self._waiting_bytes = 0
        self._broke_until = 0.0
        self._affords = False
        """Whether the last Call that ended, or that runs for a while, could be paid; until one is, they run one by
        one."""
        self._closed = False

    def take(self, received: Received) -> None:
        """One more copy: run now, later, or never."""
        copy = received.copy
        if self._closed or copy.workflow not in self._workflows:
            return
        if self._is_broke():
            count(self.counts.shadow_copies, f"{copy.workflow}\x00{UNAFFORDABLE}")
            return
        self._waiting.append(received)
        self._waiting_bytes += _size(received)
        while len(self._waiting) > WAITING_MAX or self._waiting_bytes > WAITING_BYTES_MAX:
            self._drop(LATE)
        self._start_some()

    def close(self) -> None:
        """Begin no other; what runs may end."""
        self._closed = True
        while self._waiting:
            self._drop(LATE)

    def _is_broke(self) -> bool:
        return self._broke_until > 0 and self._runtime.loop.time() < self._broke_until

    def _drop(self, why: str) -> None:
        oldest = self._waiting.popleft()
        self._waiting_bytes -= _size(oldest)
        count(self.counts.shadow_copies, f"{oldest.copy.workflow}\x00{why}")

    def _start_some(self) -> None:
        while self._waiting and len(self.running) < (RUNNING_MAX if self._affords else 1) and not self._closed:
            received = self._waiting.popleft()
            self._waiting_bytes -= _size(received)
            self._start(received)

    def _start(self, received: Received) -> None:
        copy, runtime = received.copy, self._runtime
        plan = runtime.plans.workflows.get(copy.workflow)
        try:
            if plan is None:
                raise RequestError(404, f"the candidate has no workflow `{copy.workflow}`", code="model_not_found")
            admitted = admitted_again(plan, copy.door, received.request)
        except (RequestError, RecursionError):
            count(self.counts.shadow_copies, f"{copy.workflow}\x00{REFUSED}")
            return
        now_ns = time.time_ns()
        tags = tuple(sorted({*copy.attribution.tags, SHADOW_TAG}))
        client = _Comparing(self, received)
        execution = client.execution = Execution(
            plan,
            admitted,
            msgspec.structs.replace(copy.attribution, tags=tags),
            call_id=runtime.next_call_id(),
            opened_ns=now_ns,
            day=runtime.day(now_ns),
            door=SHADOW,
            env=self._environment,
            client=client,
            asked=ASKED,
            notes=(f"shadow of {copy.call_id}",),
        )
        self.running.add(execution)
        if not self._affords:
            runtime.loop.call_later(PAID_S, self._still_runs, execution)
        execution.start()

    def _still_runs(self, execution: Execution) -> None:
        """It was paid for, so others need not wait for its end: a provider that hangs is to be seen as such soon."""
        if execution in self.running:
            self._affords = True
            self._start_some()

    def ended(self, execution: Execution, received: Received, result: CallResult) -> None:
        """One has its answer, which is compared and forgotten."""
        self.running.discard(execution)
        copy, counts = received.copy, self.counts
        how = {"answered": ANSWERED, "refused": REFUSED}.get(result.status, FAILED)
        if result.degraded:
            how = FAILED  # the ladder answered, and no variant did
        # With a ladder the refusal stands in the attempts alone.
        self._affords = result.limited is None and all(one.failure != "limit_call" for one in result.attempts)
        if not self._affords:
            how = UNAFFORDABLE
            self._rest(result.limited)
        count(counts.shadow_copies, f"{copy.workflow}\x00{how}")
        if result.cost_nano_usd:
            count(counts.shadow_nano_usd, copy.workflow, result.cost_nano_usd)
        if how == ANSWERED:
            if received.answer and (same := same_answer(received.answer, result.body)) is not None:
                count(counts.shadow_compared, f"{copy.workflow}\x00{SAME if same else DIFFERENT}")
            if copy.action and result.decision is not None:
                alike = copy.action == result.decision.action
                count(counts.shadow_compared, f"{copy.workflow}\x00{SAME_ACTION if alike else OTHER_ACTION}")
        # Not from within this Call's end: a long queue of copies that end at once would nest.
        self._runtime.loop.call_soon(self._start_some)

    def _rest(self, refused: Refusal | None) -> None:
        pause_s = BROKE_S
        if refused is not None and refused.code != "budget_exceeded":
            pause_s = STORE_PAUSE_S
        elif refused is not None and refused.resets_at_ns:
            left_s = (refused.resets_at_ns - time.time_ns()) / NS_PER_S
            pause_s = min(BROKE_S, max(STORE_PAUSE_S, left_s))
        self._broke_until = self._runtime.loop.time() + pause_s
        while self._waiting:
            self._drop(UNAFFORDABLE)


class _Comparing:
    """Gets a shadow Call's answer; nobody else does."""

    def __init__(self, calls: ShadowCalls, received: Received) -> None:
        self._calls = calls
        self._received = received
        self.execution: Execution | None = None

    def on_stream(self, data: bytes) -> None:
        """Never called: shadow Calls are not streamed."""

    def on_finished(self, result: CallResult) -> None:
        assert self.execution is not None
        self._calls.ended(self.execution, self._received, result)


def admitted_again(plan: WorkflowPlan, door: str, raw: bytes) -> Admitted:
    """What came by `door`, admitted by the candidate; never streamed, so that there is an answer to compare.

    What is kept of the request is the workflow's input, which a replay needs no door for. Raises: RequestError.
    """
    if door not in CHAT_DOORS:
        return plan.admit_input(raw)
    body = unstreamed_body(raw)
    admitted = plan.chat.admit(body, raw)
    kept = body if plan.input_decoder is None else admitted.value
    return msgspec.structs.replace(admitted, raw=JSON.encode(kept))


def same_answer(live: bytes, shadow: bytes) -> bool | None:
    """Whether two answers in OpenAI's shape say the same: the same text, or the same JSON however it is written.

    None where one of them has no text, such as calls of tools.
    """
    try:
        before, after = message_of(live).content, message_of(shadow).content
    except Unusable:
        return None
    if before is None or after is None:
        return None
    if before == after:
        return True
    try:
        return bool(parse_json(before.encode()) == parse_json(after.encode()))
    except (MalformedJson, UnicodeError):
        return False


def _size(received: Received) -> int:
    return len(received.request) + len(received.answer)
