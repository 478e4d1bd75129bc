"""One seed played to its end: a machine with workers, its clients, and everything that goes wrong on it.

`play(profile, seed)` draws a scenario, lets it happen, and checks at rest what cannot be checked before: that all is
idle, nothing is held, every budget has settled what the ledger says, and every Call replays as it was.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from drivetrain.core.calls import RETAINED_FULL, Attribution, Call
from drivetrain.core.ids import call_ids
from drivetrain.core.limits import Limit
from drivetrain.execution.environment import Asked as AskedOfCall
from drivetrain.execution.replay import open_payloads, replay
from drivetrain.ledger.reader import Fold, Pair, joined
from drivetrain.limits.recovery import bury_dead
from drivetrain.ports.counters import BUCKET, MONEY

from . import providers
from .disk import Disk
from .kernel import MS, SECOND, Kernel, LawBroken
from .laws import MARK, CallStory, Laws, was_sent
from .project import Edition, editions
from .providers import Asked, Script
from .store import Store
from .worker import Worker

MILLION = 1_000_000
WORKERS_MAX = 12
"""Of one seed, restarts included."""
TENANTS, TEAMS, USERS, KEYS = ("acme", "zenith"), ("red", "blue"), ("ann", "bob", ""), ("web", "batch")
TEXTS = ("How are you?", "größer als 🙂", "SHOUT", "y" * 300, "")
LIMIT_TRACE = 400


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """Which scenarios a suite draws: how likely each trouble is in a seed."""

    name: str
    workflows: tuple[str, ...]
    calls: tuple[int, int] = (5, 24)
    workers: tuple[int, int] = (1, 4)
    failing: tuple[float, ...] = (0.1, 0.4)
    """How likely an attempt goes wrong."""
    caps: tuple[int, ...] = (1, 3, 10, 40)
    """Of budgets, in millions of nano-USD: the dearest attempt takes 3."""
    limited: float = 1.0
    leaves: float = 0.15
    """Of a client."""
    same: float = 0.2
    """How likely a request is one of a few that are equal."""
    texts: int = 5
    """Of those few."""
    plain: float = 0.7
    """How likely a request asks for temperature 0."""
    hurried: float = 0.4
    """How likely a client names a deadline."""
    outage: float = 0.1
    crashes: float = 0.0
    disk: float = 0.0
    store: float = 0.0
    jumps: float = 0.0
    reloads: float = 0.1


class World:
    """The machine and everybody around it."""

    def __init__(self, profile: Profile, seed: int) -> None:
        self.kernel = kernel = Kernel(f"{profile.name} {seed}")
        self.profile = profile
        dice = kernel.dice
        self.edition: Edition = editions()[0]
        self.is_limited = dice.random() < profile.limited
        self.limits = _limits(dice, profile.caps)
        self.disk = Disk()
        self.store = Store(kernel)
        rates = {one.plans.snapshot.short_hash: one.rates for one in editions()}
        self.laws = Laws(kernel, self.limits, self.store, rates)
        self.next_call_id = call_ids(kernel.wall_ns, dice.randbytes)
        self.workers: list[Worker] = []
        self.stories: list[CallStory] = []
        self._failing = dice.choice(profile.failing)
        self._down_from_ns = self._down_until_ns = 0
        self._crashes = dice.randint(1, 3) if dice.random() < profile.crashes else 0

    def play(self) -> World:
        """The whole story. Raises: LawBroken."""
        dice, profile, kernel = self.kernel.dice, self.profile, self.kernel
        for _ in range(dice.randint(*profile.workers)):
            self._spawn()
        span_ns = dice.choice((30, 300, 3_000)) * MS
        for number in range(dice.randint(*profile.calls)):
            self._client(number, dice.randrange(span_ns))
        for likely, trouble in (
            (profile.outage, self._outage),
            (profile.disk, self._full_disk),
            (profile.store, self._store_trouble),
            (profile.jumps, self._clock_jump),
            (profile.reloads, self._reload),
        ):
            for _ in range(2):
                if dice.random() < likely:
                    kernel.after(dice.randrange(span_ns), trouble)
        kernel.run()
        self._rest()
        return self

    def script_for(self, asked: Asked) -> Script:
        """What the next attempt meets."""
        now_ns, dice = self.kernel.now_ns, self.kernel.dice
        if self._down_from_ns <= now_ns < self._down_until_ns and not asked.anthropic:
            return dice.choice(providers.DOWN)(dice, asked)
        return providers.script(dice, asked, self._failing)

    def worker_died(self, worker: Worker) -> None:
        """Its clients' connections break, and after a while another one takes its place."""
        self.store.trouble()
        self.laws.died(worker.name)
        for exchange in worker.exchanges:
            exchange.over = True
        self.kernel.after(self.kernel.dice.randrange(200 * MS), self._spawn)

    # What happens.

    def _spawn(self) -> None:
        dice = self.kernel.dice
        if self.store.truth.down:
            self.kernel.after(50 * MS, self._spawn)  # without counters no worker begins
            return
        kill_at = 0
        if self._crashes and len(self.workers) < WORKERS_MAX:
            self._crashes -= 1
            kill_at = dice.randint(1, 300)
        self.workers.append(Worker(self, f"w{len(self.workers) + 1}", kill_at))

    def _client(self, number: int, at_ns: int) -> None:
        dice, profile = self.kernel.dice, self.profile
        workflow = dice.choice(profile.workflows)
        stream = workflow != "triage" and dice.random() < 0.5
        door = "workflow" if workflow == "triage" and dice.random() < 0.5 else "chat"
        who = Attribution(
            dice.choice(TENANTS), dice.choice(TEAMS), "tests", dice.choice(KEYS), dice.choice(USERS),
            dice.choice(((), ("env=prod",))),
        )  # fmt: skip
        text = dice.choice(TEXTS[: profile.texts]) if dice.random() < profile.same else f"Question {number}?"
        body: dict[str, Any] = {"text": text}
        if door == "chat":
            body = {"model": workflow, "messages": [{"role": "user", "content": text}]}
            if workflow != "triage":
                body |= self._parameters(dice, stream)
        asked = AskedOfCall(
            cache_read=dice.random() < 0.9,
            cache_write=dice.random() < 0.9,
            cache_max_age_s=dice.choice((None, None, 0, 1)),
            deadline_ms=dice.choice((1, 40, 250)) if dice.random() < profile.hurried else None,
        )
        story = CallStory(self.laws, number, workflow, door, who, stream, asked.deadline_ms)
        self.stories.append(story)
        raw = json.dumps(body).encode()
        self.kernel.after(at_ns, lambda: self._arrives(story, raw, asked))

    def _parameters(self, dice: random.Random, stream: bool) -> dict[str, Any]:
        found: dict[str, Any] = {"stream": True} if stream else {}
        if stream and dice.random() < 0.3:
            found["stream_options"] = {"include_usage": True}
        if dice.random() < self.profile.plain:
            found["temperature"] = 0
        if dice.random() < 0.2:
            found["max_tokens"] = dice.choice((1, 7, 5_000))
        return found

    def _arrives(self, story: CallStory, raw: bytes, asked: AskedOfCall) -> None:
        kernel, dice = self.kernel, self.kernel.dice
        living = [worker for worker in self.workers if not worker.dead]
        if not living:
            kernel.after(10 * MS, lambda: self._arrives(story, raw, asked))
            return
        worker = dice.choice(living)
        kernel.after(0, lambda: worker.start(story, raw, asked), worker)
        if dice.random() < self.profile.leaves:
            kernel.after(dice.randrange(dice.choice((2, 30, 400)) * MS), lambda: self._leaves(story), worker)
        elif story.stream and dice.random() < 0.1:
            kernel.after(dice.randrange(20 * MS), lambda: self._stops_reading(story, worker), worker)

    def _leaves(self, story: CallStory) -> None:
        if story.result is None and story.execution is not None:
            self.kernel.note("leaves", story.number)
            story.left = True
            story.execution.abort()

    def _stops_reading(self, story: CallStory, worker: Worker) -> None:
        if story.execution is not None:
            story.execution.pause()
            delay_ns = self.kernel.dice.randrange(800 * MS)
            self.kernel.after(delay_ns, story.execution.resume, worker)

    def _outage(self) -> None:
        self._down_from_ns = self.kernel.now_ns
        self._down_until_ns = self.kernel.now_ns + self.kernel.dice.randrange(4 * SECOND)
        self.kernel.note("outage")

    def _full_disk(self) -> None:
        self.kernel.note("disk full")
        self.disk.full = True
        self.kernel.after(self.kernel.dice.randrange(300 * MS), self._free_disk)

    def _free_disk(self) -> None:
        self.kernel.note("disk free")
        self.disk.full = False

    def _store_trouble(self) -> None:
        store, dice = self.store, self.kernel.dice
        what = dice.choice(("down", "slow", "loses"))
        self.kernel.note("store", what)
        if what == "down":
            store.truth.down = True
        elif what == "slow":
            store.slow_ns = dice.choice((5, 30, 200)) * MS
        else:
            store.loses = 0.4
        store.trouble()
        self.kernel.after(dice.randrange(500 * MS), self._store_well)

    def _store_well(self) -> None:
        self.kernel.note("store well")
        self.store.trouble()
        self.store.truth.down, self.store.slow_ns, self.store.loses = False, 0, 0.0

    def _clock_jump(self) -> None:
        """The wall clock is set, or hours pass unseen: midnights, the night the clocks change, a month's end."""
        hours = self.kernel.dice.choice((-26, -3, -1, 1, 2, 3, 26, 73, 24 * 31))
        self.kernel.note("clock jumps", hours)
        self.kernel.wall_offset_ns += hours * 3_600 * SECOND + self.kernel.dice.randrange(SECOND)

    def _reload(self) -> None:
        dice = self.kernel.dice
        self.edition = dice.choice(editions())
        factor = dice.choice((50, 100, 100, 200))
        self.limits = [msgspec.structs.replace(one, amount=max(1, one.amount * factor // 100)) for one in self.limits]
        self.kernel.note("reload", self.edition.plans.snapshot.short_hash, factor)
        self.laws.use(self.limits)
        for worker in self.workers:
            self.kernel.after(dice.randrange(20 * MS), worker.reload, worker)

    # At rest.

    def _rest(self) -> None:
        living = [worker for worker in self.workers if not worker.dead]
        for worker in living:
            self._is_idle(worker)
        for story in self.stories:
            lives = story.worker is not None and not story.worker.dead
            story.require(not lives or story.result is not None, "a Call that never ended")
        for worker in living:
            worker.kill_at = 0
            if not worker.door.leave():
                raise LawBroken(f"{worker.name} left something open")
            worker.door.handle.close()
        undertaker = self.store.truth.handle()
        undertaker.join("undertaker")
        bury_dead(undertaker, self.disk.read)
        if undertaker.dead():
            raise LawBroken("the dead are not buried")
        self.laws.every_refusal_was_due()
        calls = self._ledger()
        self._settled(calls)
        for call in calls:
            self._replays(call)
        self.kernel.note("at rest", len(calls), sorted(self.laws.seen.items()))

    def _is_idle(self, worker: Worker) -> None:
        door = worker.door
        for what, busy in (
            ("attempts", [one.number for one in worker.exchanges if not one.over]),
            ("holds", list(door.book.open)),
            ("waiting Calls", list(door.renewal.waiting)),
            ("a message", door.under_way),
            ("flights", worker.flights.running),
            ("waiting for a flight", worker.flights.waiting),
            ("health that was asked", worker.health.granted),
        ):
            if busy:
                raise LawBroken(f"{worker.name} is not idle: {what} {busy}")

    def _ledger(self) -> list[Call]:
        """Every Call, by the real reader's fold."""
        fold = Fold()
        pairs: list[Pair] = []
        for segment in self.disk.sorted():
            for place, record in enumerate(self.disk.segments[segment.name]):
                pair = fold.feed(record, segment, place, place + 1)
                if pair is not None:
                    pairs.append(pair)
        damage: list[Any] = []
        pairs += fold.orphans(damage)
        pairs += fold.unfinished()
        counts = Counter(pair.opened.call_id for pair in pairs)
        if damage or (counts and max(counts.values()) > 1):
            raise LawBroken(f"a Call stands twice in the ledger, or without its beginning: {damage}")
        opened = {story.call_id for story in self.stories if story.opened is not None}
        if set(counts) != opened:
            raise LawBroken("the ledger has other Calls than were opened")
        calls = [joined(pair, set(), ()) for pair in pairs]
        for call in calls:
            story = self.laws.stories[call.call_id]
            story.require((call.status == "interrupted") == (story.closed is None), "a Call that ended is interrupted")
            story.require(call.cost_nano_usd == story.exposed or not story.accounts, "the ledger's cost of a Call")
        return calls

    def _settled(self, calls: Iterable[Call]) -> None:
        """Nothing is held, and every budget has settled what the ledger says."""
        spent: Counter[str] = Counter()
        lost: Counter[str] = Counter()
        for call in calls:
            story = self.laws.stories[call.call_id]
            for name in story.accounts:
                spent[name] += call.cost_nano_usd
                if story.closed is None and story.result is not None:
                    # Its worker knows of an overrun that the ledger, with the end of this Call, will never know.
                    lost[name] += max(0, story.result.cost_nano_usd - call.cost_nano_usd)
        for name, account in self.store.truth.accounts.items():
            if account.held:
                raise LawBroken(f"{name}: {account.held} is held for ever")
            if account.terms.kind == BUCKET and account.level > account.terms.cap:
                raise LawBroken(f"{name}: {account.level} in a bucket of {account.terms.cap}")
            if account.terms.kind == MONEY and not 0 <= account.settled - spent[name] <= lost[name]:
                raise LawBroken(f"{name}: {account.settled} settled, {spent[name]} in the ledger")
            spent.pop(name, None)
        if any(spent.values()):
            raise LawBroken(f"never settled: {+spent}")

    def _replays(self, call: Call) -> None:
        """The record gives the same again, and holds what the provider said."""
        if call.status == "interrupted" or call.retained != RETAINED_FULL:
            return
        story = self.laws.stories[call.call_id]
        recorded = open_payloads(call, self.workers[0].vault)
        sent = iter(story.exchanges)
        for attempt, body in zip(call.attempts, recorded.answers.attempts, strict=True):
            if attempt.cached:
                (number,) = {int(mark) for mark in MARK.findall(body)}
                story.require(self.laws.exchanges[number].given.startswith(body), "a kept answer changed")
            elif was_sent(attempt):
                story.require(next(sent).given.startswith(body), "the record holds what no provider said")
        edition = next(one for one in editions() if one.plans.snapshot.short_hash == call.snapshot)
        differences = replay(recorded, edition.plans).differences
        story.require(not differences, f"a replay differs: {'; '.join(differences)}")


def play(profile: Profile, seed: int) -> World:
    """Play one seed to its end. Raises: LawBroken, with the command that plays it again."""
    world = World(profile, seed)
    try:
        return world.play()
    except (LawBroken, Exception) as broken:
        raise Broken(world, seed, broken) from broken


class Broken(AssertionError):
    """A seed that broke a law: what, and how to see it again."""

    def __init__(self, world: World, seed: int, why: BaseException) -> None:
        self.world = world
        profile = world.profile.name
        super().__init__(
            f"{type(why).__name__}: {why}\nplay it again: python -m tests.simulation {profile} {seed}\n"
            + "\n".join(shown(one) for one in world.kernel.trace[-LIMIT_TRACE:])
        )


def shown(one: tuple[Any, ...]) -> str:
    """A line of the trace."""
    at_ns, *what = one
    return f"{at_ns / SECOND:10.6f} " + " ".join(str(word)[:300] for word in what)


def _limits(dice: random.Random, caps: tuple[int, ...]) -> list[Limit]:
    def budget(name: str, dimension: str = "project", value: str | None = "", **more: Any) -> Limit:
        amount = dice.choice(caps) * MILLION
        per = dice.choice(("day", "week", "month", "fixed"))
        more |= {"per": per, "window_s": 3_600 if per == "fixed" else 0}
        zone = dice.choice(("UTC", "Europe/Berlin", "America/New_York"))
        return Limit(name=name, kind="budget", dimension=dimension, value=value, amount=amount, zone=zone, **more)

    found = [budget("all")]
    offered = [
        budget("team", "team", None, mode=dice.choice(("hard", "downgrade"))),
        budget("user", "user", None),
        budget("ann", "user", "ann", mode="downgrade"),
        budget("key", "key", "web"),
        budget("prod", "tag", "env=prod"),
        budget("watched", "tenant", None, mode="soft", alerts=(50, 100)),
        Limit(
            name="rate", kind="rate", dimension="project", value="", unit="requests", amount=dice.choice((5, 50)),
            window_s=1,
        ),
        Limit(
            name="tokens", kind="rate", dimension="tenant", value=None, unit="tokens", amount=dice.choice((800, 9_000)),
            window_s=1,
        ),
        Limit(
            name="calls", kind="concurrency", dimension="project", value="", unit="calls", amount=dice.choice((2, 6)),
        ),
    ]  # fmt: skip
    return found + [one for one in offered if dice.random() < 0.35]
