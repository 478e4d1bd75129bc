"""Two trials after the demo's traffic: a budget that bites, and a provider that fails.

Owns what is sent for them and what the ledger says became of it. The limit, the fallback and the failing model are
declared in the demo's project; nothing here pretends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import msgspec

from drivetrain.cli.demo_http import HttpAnswer, HttpConnection, unexpected
from drivetrain.cli.demo_texts import Texts
from drivetrain.core.calls import Call
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.money import nano_usd

BUDGETED, BUDGETED_KEY, TEAM = "intent-trial", "trial", "trial"
"""The workflow, the key, and its team, for which the budget holds."""
BUDGETED_CALLS_MAX = 1_000
"""The budget has room for about forty of them; one that never refuses must not keep the demo from ending."""
ASKED_AGAIN_MAX, ASK_AGAIN_S = 30, 0.1
"""A worker reports what was spent within half a second; a busy machine gets three."""
FALLING_BACK, FALLING_BACK_KEY = "hotline", "web-chat"
BROKEN = "sim/gpt-4.1-mini-2025-04-14"
"""The model that the simulator lets fail at every request."""
FALLING_BACK_CALLS = 40
"""One after the other, so that the circuit opens after the fewest failures that it opens after."""
QUESTION = "I lost my card. What now?"


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a refused caller was told."""

    status: int
    code: str
    message: str
    cap_nano_usd: int
    left_nano_usd: int
    retry_after_s: int


class Tried(msgspec.Struct, kw_only=True):
    """What the clients of both trials counted by themselves."""

    calls: int = 0
    cost_nano_usd: int = 0
    told: Told | None = None
    """The last refusal."""


class BudgetTrial(msgspec.Struct, frozen=True, kw_only=True):
    """A budget on its last cents."""

    clients: int
    """At the same time."""
    calls: int
    answered: int
    refused: int
    spent_nano_usd: int
    """By the ledger."""
    told: Told

    @property
    def kept(self) -> bool:
        """Whether it was not overspent, and nobody was told that less is left than there is."""
        return self.spent_nano_usd <= self.told.cap_nano_usd <= self.spent_nano_usd + self.told.left_nano_usd


class FaultTrial(msgspec.Struct, frozen=True, kw_only=True):
    """A route whose first model fails."""

    calls: int
    answered: int
    failed: int
    """Attempts that reached the failing model."""
    failed_by_provider: int
    """The same, by the provider's own count."""
    withheld: int
    """Attempts that were not sent to it, because its circuit was open."""
    why: str
    """The first of them, in the route's words."""
    cost_nano_usd: int

    @property
    def kept(self) -> bool:
        """Whether every call was answered, and the provider was asked as often as the ledger says."""
        return self.answered == self.calls and self.failed == self.failed_by_provider


async def send_trials(opened: Sequence[HttpConnection], keys: Mapping[str, str], texts: Texts) -> Tried:
    """Sends both. Raises: DrivetrainError where an answer is neither what was asked for nor the budget's refusal."""
    tried = Tried()
    bodies = islice(cycle(msgspec.json.encode({"text": one.text}) for one in texts.examples), BUDGETED_CALLS_MAX)

    async def spend(connection: HttpConnection) -> None:
        """Until this client is refused."""
        for body in bodies:
            answer = await connection.post(f"/v1/workflows/{BUDGETED}", keys[BUDGETED_KEY], body)
            _count(tried, answer)
            if answer.status == 429:
                tried.told = _told(answer)
                return
            if answer.status != 200:
                raise unexpected(f"a call of `{BUDGETED}`", answer)
        raise DrivetrainError(f"The budget refused none of {BUDGETED_CALLS_MAX} calls.", do="Run the demo again.")

    async with asyncio.TaskGroup() as group:
        for connection in opened:
            group.create_task(spend(connection))
    # Nobody holds any of it now. Once the worker has reported what it spent, a refusal tells what is left exactly.
    for _ in range(ASKED_AGAIN_MAX):
        await spend(opened[0])
        if tried.told is None or tried.told.left_nano_usd + tried.cost_nano_usd == tried.told.cap_nano_usd:
            break
        await asyncio.sleep(ASK_AGAIN_S)
    chat = msgspec.json.encode({"model": FALLING_BACK, "messages": [{"role": "user", "content": QUESTION}]})
    for _ in range(FALLING_BACK_CALLS):
        answer = await opened[0].post("/v1/chat/completions", keys[FALLING_BACK_KEY], chat)
        _count(tried, answer)
        if answer.status != 200:
            raise unexpected(f"a call of `{FALLING_BACK}`", answer)
    return tried


def _count(tried: Tried, answer: HttpAnswer) -> None:
    tried.calls += 1
    tried.cost_nano_usd += int(answer.headers["x-drivetrain-cost-nano-usd"])


def _told(answer: HttpAnswer) -> Told:
    error = msgspec.json.decode(answer.body)["error"]
    return Told(
        status=answer.status,
        code=error["code"],
        message=error["message"],
        cap_nano_usd=nano_usd(answer.headers["x-ratelimit-limit-usd"]),
        left_nano_usd=nano_usd(answer.headers["x-ratelimit-remaining-usd"]),
        retry_after_s=int(answer.headers["retry-after"]),
    )


class TrialCounts:
    """The ledger's Calls of both trials, one by one."""

    def __init__(self) -> None:
        self._calls = {BUDGETED: 0, FALLING_BACK: 0}
        self._answered = {BUDGETED: 0, FALLING_BACK: 0}
        self._cost_nano_usd = {BUDGETED: 0, FALLING_BACK: 0}
        self._failed = 0
        self._withheld = 0
        self._why = ""

    def add(self, call: Call) -> None:
        """Another Call of the ledger, of whatever workflow."""
        if call.workflow not in self._calls:
            return
        self._calls[call.workflow] += 1
        self._answered[call.workflow] += call.status == "answered"
        self._cost_nano_usd[call.workflow] += call.cost_nano_usd
        for attempt in call.attempts:
            if attempt.model == BROKEN:
                self._failed += attempt.status != 0
                self._withheld += attempt.failure == "denied"
                self._why = self._why or (attempt.reason if attempt.failure == "denied" else "")

    def budget(self, clients: int, told: Told) -> BudgetTrial:
        """How the first trial ended."""
        calls, answered = self._calls[BUDGETED], self._answered[BUDGETED]
        return BudgetTrial(
            clients=clients,
            calls=calls,
            answered=answered,
            refused=calls - answered,
            spent_nano_usd=self._cost_nano_usd[BUDGETED],
            told=told,
        )

    def fault(self, invoice: Mapping[str, Any]) -> FaultTrial:
        """How the second ended. invoice: what the simulator's `GET /requests` shows."""
        return FaultTrial(
            calls=self._calls[FALLING_BACK],
            answered=self._answered[FALLING_BACK],
            failed=self._failed,
            failed_by_provider=invoice["models"][BROKEN.partition("/")[2]]["requests"],
            withheld=self._withheld,
            why=self._why,
            cost_nano_usd=self._cost_nano_usd[FALLING_BACK],
        )
