"""What must hold, whatever happens: checked when a frame stands, an attempt is sent, a client hears, money moves.

The sums here are the simulator's own: from the frames on the disk, the providers' bills and its own price list, never
from the budget counters that they judge. A broken law ends the seed.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from drivetrain.core.calls import Attribution, ClosedV1, OpenedV1, ReservedV1
from drivetrain.core.limits import Limit, Refusal
from drivetrain.execution.call import CallResult, Execution
from drivetrain.execution.plan import WorkflowPlan
from drivetrain.execution.refusals import TIMEOUTS
from drivetrain.execution.verdicts import UNSENT
from drivetrain.limits.accounts import accounts_of
from drivetrain.limits.slices import Hold
from drivetrain.ports.counters import MONEY

from .kernel import MS, Kernel, LawBroken
from .project import Rates
from .providers import ENDS, Asked
from .upstream import Exchange

if TYPE_CHECKING:
    from .store import Store
    from .worker import Worker

MARK = re.compile(rb"x([0-9]+)x")
"""The word by which every answer of a provider is known."""
DONE = b"data: [DONE]\n\n"
LATE_MS = 120
"""A Call with a deadline may end so much later: waits for limits and frames are bounded apart from it."""


class CallStory:
    """One client's request: what it asked, what it heard, and what stands on the disk about it."""

    def __init__(
        self, laws: Laws, number: int, workflow: str, door: str, who: Attribution, stream: bool, deadline_ms: int | None
    ) -> None:
        self.number = number
        self.workflow = workflow
        self.door = door
        self.who = who
        self.stream = stream
        self.deadline_ms = deadline_ms
        self.left = False
        self.heard: list[bytes] = []
        self.result: CallResult | None = None
        self.exchanges: list[Exchange] = []
        self.opened: OpenedV1 | None = None
        self.reserved: list[ReservedV1] = []
        self.closed: ClosedV1 | None = None
        self.exposed = 0
        """What it costs by its frames."""
        self.over = 0
        """Part of that beyond what was reserved."""
        self.call_id = ""
        self.accounts: tuple[str, ...] = ()
        """Of money, by its worker's limits when it began."""
        self.began_ns = 0
        self.worker: Worker | None = None
        self.plan: WorkflowPlan | None = None
        self.execution: Execution | None = None
        self._laws = laws

    def begins(self, worker: Worker, plan: WorkflowPlan, call_id: str, opened_ns: int) -> None:
        """A worker has taken it."""
        self.worker, self.plan, self.call_id, self.began_ns = worker, plan, call_id, self._laws.kernel.now_ns
        found = accounts_of(worker.limits, self.who, self.workflow, opened_ns)
        self.accounts = tuple(one.terms.account for one in found if one.terms.kind == MONEY)
        assert call_id not in self._laws.stories
        self._laws.stories[call_id] = self

    def hears(self, data: bytes) -> None:
        """A part of a stream came."""
        self._laws.kernel.note("stream", self.number, data)
        self.require(self.result is None, "a stream went on after its end")
        self.require(self.opened is not None, "an answer left before its opened frame stood")
        self.heard.append(data)

    def ends(self, result: CallResult) -> None:
        """The Call has ended for its client."""
        self._laws.kernel.note("end", self.number, result.status, result.http_status, result.cost_nano_usd)
        self.require(self.result is None, "a Call ended twice")
        self.result = result
        self._laws.ended(self, result)

    def require(self, holds: bool, law: str) -> None:
        """Raises: LawBroken."""
        if not holds:
            raise LawBroken(f"{law}: call {self.number} {self.call_id} of {self.workflow}")


class Want:
    """A reservation that was asked for, until it is heard of."""

    __slots__ = ("accounts", "granted", "more", "rivals", "short", "since_ns")

    def __init__(self, accounts: tuple[str, ...], more: int, since_ns: int) -> None:
        self.accounts = accounts
        self.more = more
        self.since_ns = since_ns
        self.short: set[str] = set()
        """Accounts that did not have as much left at some moment since."""
        self.rivals: dict[str, list[Want]] = {}
        """Account -> others that wanted some of it at the same time."""
        self.granted = False


class Laws:
    """Every law, and the sums that they are about."""

    def __init__(self, kernel: Kernel, limits: list[Limit], store: Store, rates: dict[str, Rates]) -> None:
        self.kernel = kernel
        self.stories: dict[str, CallStory] = {}
        self.exchanges: list[Exchange] = []
        self.seen: Counter[str] = Counter()
        """How often what happened, so that a suite can tell that its seeds reach what they are for."""
        self._store = store
        self._rates = rates
        self._story_of: dict[int, CallStory] = {}
        """Exchange -> its Call."""
        self._most: dict[str, int] = {}
        self._least: dict[str, int] = {}
        """Limit -> the largest and the smallest amount that it ever had."""
        self._modes = {limit.name: limit.mode for limit in limits if limit.kind == "budget"}
        self._exposed: Counter[str] = Counter()
        self._over: Counter[str] = Counter()
        self._committed: Counter[str] = Counter()
        """Account -> what ended Calls cost and running ones hold."""
        self._holding: dict[tuple[str, int], tuple[Hold, int]] = {}
        """(writer, number) -> hold of a running Call, and what is committed for it."""
        self._call_of: dict[tuple[str, int], CallStory] = {}
        self._running: Counter[str] = Counter()
        self._wanting: dict[str, list[Want]] = {}
        self._doubtful: list[tuple[Want, list[str], str]] = []
        """Refused although nobody held what they wanted: perhaps it was on its way to somebody else."""
        self.use(limits)

    def use(self, limits: list[Limit]) -> None:
        """These limits hold from now on, beside those of before."""
        for limit in limits:
            self._most[limit.name] = max(limit.amount, self._most.get(limit.name, 0))
            self._least[limit.name] = min(limit.amount, self._least.get(limit.name, limit.amount))

    # Frames.

    def written(self, writer: str, record: Any) -> None:
        """A frame stands."""
        self.kernel.note("frame", record)
        story = self.stories[record.call_id]
        if isinstance(record, OpenedV1):
            story.require(story.opened is None, "a Call was opened twice")
            story.opened = record
            if record.reservation is not None:
                self._reserved(writer, story, record.reservation)
        elif isinstance(record, ReservedV1):
            story.require(story.opened is not None and story.closed is None, "a reservation outside of its Call")
            self._reserved(writer, story, record)
        else:
            self._closed(story, record)

    def _reserved(self, writer: str, story: CallStory, record: ReservedV1) -> None:
        self._call_of[writer, record.number] = story
        story.require(story.accounts == record.accounts, "a Call is charged to other accounts")
        over = 0
        if story.reserved:
            over = max(0, record.charged_nano_usd - story.reserved[-1].open_cost_nano_usd)
        story.reserved.append(record)
        self._expose(story, record.accounts, record.open_cost_nano_usd, over)

    def _closed(self, story: CallStory, closed: ClosedV1) -> None:
        story.require(story.opened is not None, "a closed frame without its opened frame")
        story.require(story.closed is None, "a Call was closed twice")
        story.closed = closed
        cost = closed.cost_nano_usd
        story.require(cost == sum(one.cost_nano_usd for one in closed.attempts), "a Call costs what its attempts cost")
        sent = [one for one in closed.attempts if was_sent(one)]
        story.require(len(sent) == len(story.exchanges), "a Call's attempts are not those that were sent")
        for place, (attempt, exchange) in enumerate(zip(sent, story.exchanges, strict=True)):
            self._bill(story, attempt, exchange)
            if place < len(story.reserved):
                fits = attempt.cost_nano_usd <= story.reserved[place].amount_nano_usd
                story.require(exchange.script.overruns or fits, "an attempt cost more than was reserved for it")
        self.seen[closed.status] += 1
        if closed.degraded:
            self.seen[closed.degraded] += 1
        if not story.reserved:
            return
        over = max(0, cost - story.reserved[-1].open_cost_nano_usd)
        self._expose(story, story.reserved[-1].accounts, cost, over)
        flagged = any(note.startswith("overrun") for note in closed.notes)
        story.require(flagged or not story.over, "an overrun was not flagged")
        story.require(not flagged or any(one.script.overruns for one in story.exchanges), "flagged without an overrun")
        self.seen["overrun"] += bool(story.over)

    def _bill(self, story: CallStory, attempt: Any, exchange: Exchange) -> None:
        """What is recorded of an attempt is what its provider bills, where it said so to the end."""
        script = exchange.script
        if script.billed == (0, 0) and not script.is_told:
            # Who cuts an answer short pays for what the provider had read, answered or not.
            own = attempt.verdict == "aborted" or attempt.failure in TIMEOUTS
            free = attempt.usage.source == "none" or (own and attempt.usage.output_tokens == 0)
            story.require(free, "an attempt that costs nothing was charged")
        assert story.opened is not None
        rates = self._rates[story.opened.snapshot].get(attempt.model)
        if rates is None:
            return
        usage = attempt.usage
        story.require(
            attempt.cost_nano_usd == usage.input_tokens * rates[0] + usage.output_tokens * rates[1],
            "an attempt costs its tokens at their price",
        )
        if script.is_told and attempt.verdict in ("accepted", "escalated"):
            story.require((usage.input_tokens, usage.output_tokens) == script.billed, "the bill says otherwise")

    def _expose(self, story: CallStory, accounts: tuple[str, ...], cost: int, over: int) -> None:
        more, story.exposed = cost - story.exposed, cost
        story.over += over
        for name in accounts:
            self._exposed[name] += more
            self._over[name] += over
            limit = name.partition("/")[0]
            if self._modes[limit] != "soft" and self._exposed[name] > self._most[limit] + self._over[name]:
                raise LawBroken(f"{name} is overspent: {self._exposed[name]} of {self._most[limit]}")

    # Attempts.

    def sent(self, call_id: str, exchange: Exchange, asked: Asked) -> None:
        """An attempt is on its way."""
        story = self.stories[call_id]
        assert story.plan is not None
        story.require(story.opened is not None, "an attempt was sent before its opened frame stood")
        story.require(story.closed is None and story.result is None, "an attempt was sent for a Call that had ended")
        story.require(not story.left, "an attempt was sent for a client that had left")
        story.require(all(one.over for one in story.exchanges), "two attempts of one Call at a time")
        story.exchanges.append(exchange)
        self.exchanges.append(exchange)
        self._story_of[exchange.number] = story
        story.require(len(story.exchanges) <= story.plan.workflow.attempts_max, "more attempts than a Call may make")
        if story.accounts:
            story.require(len(story.reserved) == len(story.exchanges), "an attempt without a reservation of its own")
            assert story.opened is not None
            model = "other/claude" if asked.anthropic else f"up/{self._model(exchange)}"
            rates = self._rates[story.opened.snapshot].get(model)
            if rates is not None:
                most = asked.bytes * rates[0] + asked.tokens_max * rates[1]
                story.require(most <= story.reserved[-1].amount_nano_usd, "a reservation below the worst case")

    def _model(self, exchange: Exchange) -> str:
        return next(name for name in ("small", "large", "box") if b'"model":"' + name.encode() in exchange.request.body)

    # Clients.

    def ended(self, story: CallStory, result: CallResult) -> None:
        """What a client hears at last."""
        heard = b"".join(story.heard) + result.tail
        story.require(result.error is None or result.error.code != "internal_error", "a fault of ours")
        closed = story.closed
        if closed is None:
            self.seen["unrecorded"] += 1
            story.require(result.status == "failed", "an answer left without its closed frame")
            story.require(DONE not in heard, "a clean end without a closed frame")
            return
        story.require(closed.status == result.status or result.http_status in (200, 503), "told what is not recorded")
        if story.left or result.status == "aborted":
            return
        if result.status != "answered":
            story.require(DONE not in heard, "a clean end of what was not answered")
            if story.heard:
                story.require(result.tail.startswith(b'data: {"error"'), "a broken stream without an error event")
                self.seen["broken stream"] += 1
            return
        story.require(story.stream is heard.endswith(DONE), "a stream's end that is none")
        last = closed.attempts[-1]
        story.require(last.verdict == "accepted", "an answer that was not accepted")
        if was_sent(last) and last.streamed:
            given = story.exchanges[-1].given
            story.require(any(end in given for end in ENDS), "a stream that broke ended cleanly")
        if last.cached:
            self._given_again(story, last, heard + result.body)
        self._in_time(story)

    def _given_again(self, story: CallStory, attempt: Any, heard: bytes) -> None:
        self.seen["cached"] += 1
        marks = {int(mark) for mark in MARK.findall(heard)}
        story.require(len(marks) == 1, "an answer given again is one provider's")
        origin = self.exchanges[marks.pop()]
        giver = self._story_of[origin.number]
        story.require(giver.who.tenant == story.who.tenant, "an answer crossed tenants")
        story.require(giver.worker is story.worker, "an answer of another process")
        story.require(attempt.cost_nano_usd == 0, "an answer given again was charged")
        assert giver.opened is not None
        rates = self._rates[giver.opened.snapshot].get(attempt.model)
        if rates is not None and origin.script.is_told and origin.script.billed is not None:
            cost = origin.script.billed[0] * rates[0] + origin.script.billed[1] * rates[1]
            story.require(attempt.saved_nano_usd == cost, "an answer given again saved what it had cost")

    def _in_time(self, story: CallStory) -> None:
        assert story.plan is not None
        limits = [one for one in (story.deadline_ms, story.plan.deadline_ms) if one is not None]
        if limits and self._store.troubled_ns < story.began_ns:
            took_ms = (self.kernel.now_ns - story.began_ns) // MS
            story.require(took_ms <= min(limits) + LATE_MS, f"answered after {took_ms} ms of {min(limits)}")

    # Money that moves.

    def admitted(self, writer: str, hold: Hold) -> None:
        """A Call has its place."""
        self._holding[writer, hold.number] = (hold, 0)
        for one in hold.accounts.calls:
            name = one.terms.account
            self._running[name] += 1
            if self._running[name] > self._most[name.partition("/")[0]]:
                raise LawBroken(f"{name}: {self._running[name]} calls at a time")

    def not_admitted(self, refusal: Refusal) -> None:
        """A Call was turned away at once."""
        self.seen[refusal.code] += 1
        self._excused(refusal, self.kernel.now_ns)

    def wants(self, writer: str, hold: Hold, worst: int) -> Want:
        """A reservation is asked for."""
        hard = tuple(name for name in hold.accounts.names if self._modes[name.partition("/")[0]] != "soft")
        want = Want(hard, hold.charged + worst - hold.kept, self.kernel.now_ns)
        for name in hard:
            others = self._wanting.setdefault(name, [])
            want.rivals[name] = list(others)
            for other in others:
                other.rivals[name].append(want)
            others.append(want)
            self._look(name, want)
        return want

    def _look(self, name: str, want: Want) -> None:
        if self._least[name.partition("/")[0]] - self._committed[name] < want.more:
            want.short.add(name)

    def heard(self, writer: str, want: Want, hold: Hold, short: Refusal | None) -> None:
        """What became of it."""
        for name in want.accounts:
            self._wanting[name].remove(want)
        if short is None:
            want.granted = True
            self.holds(writer, hold)
            return
        self.seen[short.code] += 1
        self.kernel.note("refused", writer, hold.number, short.code, short.limit, short.needed, short.left)
        if short.code != "budget_exceeded":
            self._excused(short, want.since_ns)
            return
        if short.left >= short.needed:
            raise LawBroken(f"refused with {short.left} left of {short.needed}: {short.message()}")
        named = [name for name in want.accounts if name.startswith(f"{short.limit}/")]
        if want.short.intersection(named) or self._store.troubled_ns >= want.since_ns:
            return
        left = [self._least[short.limit] - self._committed[name] for name in named]
        self._doubtful.append((want, named, f"{want.more} of {left}; {short.message()}"))

    def every_refusal_was_due(self) -> None:
        """At rest: who was refused what was there all the time has lost it to somebody who wanted it as well."""
        for want, named, told in self._doubtful:
            if not any(rival.granted for name in named for rival in want.rivals[name]):
                raise LawBroken(f"refused although it fitted all the time: {told}")

    def _excused(self, refusal: Refusal, since_ns: int) -> None:
        if refusal.code == "limits_unavailable" and self._store.troubled_ns < since_ns:
            raise LawBroken("the store was said to be gone while it answered")

    def holds(self, writer: str, hold: Hold) -> None:
        """What a running Call holds has changed."""
        before = self._let_go(writer, hold)
        self._holding[writer, hold.number] = (hold, hold.kept)
        self._commit(hold, hold.kept - before)

    def lets_go(self, writer: str, hold: Hold) -> None:
        """A Call holds nothing any more."""
        self._commit(hold, hold.charged - self._let_go(writer, hold))
        for one in hold.accounts.calls:
            self._running[one.terms.account] -= 1

    def _let_go(self, writer: str, hold: Hold) -> int:
        """What was committed for it."""
        if (writer, hold.number) not in self._holding:
            raise LawBroken(f"{writer}: money moves for a Call that has let go of it")
        return self._holding.pop((writer, hold.number))[1]

    def died(self, writer: str) -> None:
        """A worker's Calls hold what their frames say."""
        for key in [key for key in self._holding if key[0] == writer]:
            hold, before = self._holding.pop(key)
            story = self._call_of.get(key)
            self._commit(hold, (story.exposed if story is not None else 0) - before)
            for one in hold.accounts.calls:
                self._running[one.terms.account] -= 1
            if story is not None and story.closed is None:
                self.seen["cut"] += 1

    def _commit(self, hold: Hold, more: int) -> None:
        if not more:
            return
        for name in hold.accounts.names:
            self._committed[name] += more
            if more > 0:
                for want in self._wanting.get(name, ()):
                    self._look(name, want)

    def stored(self) -> None:
        """The counter store has changed."""
        for name, account in self._store.truth.accounts.items():
            terms = account.terms
            if terms.kind == MONEY and not terms.counted:
                most = self._most[name.partition("/")[0]] + account.over
                if account.settled + account.held > most or account.held < 0:
                    raise LawBroken(f"{name}: {account.settled} settled and {account.held} held of {most}")
        if any(not worker.alive for worker in self._store.truth.workers.values()):
            self._store.trouble()


def was_sent(attempt: Any) -> bool:
    """Whether a recorded attempt reached a provider's door."""
    return (
        bool(attempt.model)
        and not attempt.cached
        and attempt.failure not in UNSENT
        and (bool(attempt.status or attempt.failure) or attempt.verdict == "aborted")
    )
