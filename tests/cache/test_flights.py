"""Single-flight: of equal requests one asks, the others hear once, and nobody is lost, whatever fails or leaves."""

from __future__ import annotations

import asyncio
import random
import sys

import pytest
from cache_world import Ticks, answer

from drivetrain.cache.answers import Kept
from drivetrain.cache.flights import LEADERS_MAX, TELL_MAX, WAITERS_MAX, Flights, Seat

pytestmark = pytest.mark.slow

KEPT = answer(body=b"the answer")


class Asker:
    """One request: its seat, and what it was told."""

    def __init__(self, flights: Flights, key: bytes = b"k") -> None:
        self.key = key
        self.told: list[Kept | None] = []
        self.joining = True
        self.seat: Seat = flights.join(key, self.hear)
        self.joining = False
        self.waited = self.seat.waits
        self.left = False

    def hear(self, kept: Kept | None) -> None:
        assert not self.joining, "told before `join` returned"
        assert not self.left, "told after it left"
        self.told.append(kept)

    @property
    def asks(self) -> bool:
        """Whether it is asking the provider."""
        return not self.left and (not self.waited or self.told == [None])


def world(count: int, **more: int) -> tuple[Flights, Ticks, list[Asker]]:
    ticks = Ticks()
    flights = Flights(ticks.call_soon, **more)
    return flights, ticks, [Asker(flights) for _ in range(count)]


def test_one_asks_and_all_get_its_answer() -> None:
    flights, ticks, askers = world(5)
    assert [one.seat.leads for one in askers] == [True, False, False, False, False]
    other = Asker(flights, b"another")
    assert other.seat.leads
    flights.land(askers[0].seat, KEPT)
    assert all(one.told == [] for one in askers), "told within `land`"
    ticks.rest()
    assert [one.told for one in askers] == [[], [KEPT], [KEPT], [KEPT], [KEPT]]
    assert (flights.shared, flights.waiting, flights.running) == (4, 0, 1)
    assert Asker(flights).seat.leads


def test_when_the_leader_fails_one_goes_on_and_the_others_keep_waiting() -> None:
    flights, ticks, (first, second, third, fourth) = world(4)
    flights.land(first.seat, None)
    ticks.rest()
    assert [one.told for one in (second, third, fourth)] == [[None], [], []]
    assert second.seat.leads
    assert Asker(flights).waited
    flights.land(second.seat, KEPT)
    ticks.rest()
    assert (third.told, fourth.told) == ([KEPT], [KEPT])
    assert second.told == [None]


def test_after_so_many_failures_nobody_waits_any_longer() -> None:
    flights, ticks, askers = world(10)
    for number in range(LEADERS_MAX):
        assert sum(one.told == [None] for one in askers) == number
        flights.land(askers[number].seat, None)
        ticks.rest()
    assert all(one.told == [None] for one in askers[1:])
    assert not any(one.seat.leads for one in askers)
    assert (flights.running, flights.waiting) == (0, 0)


def test_an_answer_that_may_not_be_kept_releases_everybody_at_once() -> None:
    flights, ticks, askers = world(4)
    flights.release(askers[0].seat)
    ticks.rest()
    assert [one.told for one in askers[1:]] == [[None]] * 3
    assert flights.running == 0
    late = Asker(flights)
    flights.land(askers[1].seat, KEPT)
    ticks.rest()
    assert late.seat.leads, "whom nobody follows landed somebody else's flight"


def test_who_leaves_is_not_told_and_not_chosen() -> None:
    flights, ticks, (first, second, third, fourth) = world(4)
    for one in (second, first):
        one.left = True
        flights.leave(one.seat)
    assert third.seat.leads
    third.left = True
    flights.leave(third.seat)
    assert fourth.seat.leads, "its heir left before it heard"
    ticks.rest()
    assert fourth.told == [None]
    flights.leave(fourth.seat)
    assert (flights.running, flights.waiting) == (0, 0)


def test_who_leaves_between_landing_and_hearing_is_not_told() -> None:
    flights, ticks, (first, second, third) = world(3)
    flights.land(first.seat, KEPT)
    second.left = True
    flights.leave(second.seat)
    ticks.rest()
    assert (second.told, third.told) == ([], [KEPT])
    assert (flights.waiting, flights.shared) == (0, 1)


def test_beyond_the_bound_everybody_goes_alone_and_may_land_what_it_likes() -> None:
    flights, ticks, askers = world(4, waiters_max=2)
    extra = askers[3]
    assert (extra.seat.leads, extra.seat.waits) == (False, False)
    for kept in (None, KEPT):
        flights.land(extra.seat, kept)
    flights.release(extra.seat)
    flights.leave(extra.seat)
    flights.land(extra.seat, KEPT)
    ticks.rest()
    assert [one.told for one in askers] == [[], [], [], []]
    flights.land(askers[0].seat, KEPT)
    ticks.rest()
    assert [one.told for one in askers] == [[], [KEPT], [KEPT], []]


def test_all_keys_together_are_bounded_too() -> None:
    flights, ticks, askers = world(3, waiting_max=2)
    another = Asker(flights, b"another")
    assert another.seat.leads
    assert not Asker(flights, b"another").waited
    flights.land(askers[0].seat, KEPT)
    ticks.rest()
    assert Asker(flights, b"another").waited


@pytest.mark.parametrize("end", ["answer", "failure", "release"])
def test_a_seat_that_is_over_changes_nothing(end: str) -> None:
    flights, ticks, (first, second, third) = world(3)
    if end == "release":
        flights.release(first.seat)
    else:
        flights.land(first.seat, KEPT if end == "answer" else None)
    for _ in range(2):
        flights.leave(first.seat)
        flights.land(first.seat, KEPT)
        flights.land(first.seat, None)
        flights.release(first.seat)
    ticks.rest()
    expected = {"answer": ([KEPT], [KEPT]), "failure": ([None], []), "release": ([None], [None])}
    assert (second.told, third.told) == expected[end]


def test_a_thousand_waiters_neither_recurse_nor_hold_up_the_loop() -> None:
    """Each, when told, at once asks for the next key and lands: the deepest stack stays that of one."""
    ticks = Ticks()
    flights = Flights(ticks.call_soon)
    depths: list[int] = []
    lead = flights.join(b"0", lambda _: None)

    def depth() -> int:
        frame, found = sys._getframe(), 0
        while frame is not None:
            frame, found = frame.f_back, found + 1  # type: ignore[assignment]
        return found

    def told(_: Kept | None) -> None:
        depths.append(depth())
        if len(depths) < 5_000:
            seat = flights.join(b"%d" % len(depths), told)
            flights.join(b"%d" % len(depths), told)
            flights.land(seat, KEPT)

    for _ in range(WAITERS_MAX):
        assert flights.join(b"0", told).waits
    flights.land(lead, KEPT)
    ticks.tick()
    assert len(depths) == TELL_MAX
    ticks.rest()
    assert len(depths) >= 5_000
    assert len(set(depths)) <= 2
    assert flights.waiting == 0


def test_a_waiter_that_raises_takes_nobody_with_it() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        faults: list[str] = []
        loop.set_exception_handler(lambda _, context: faults.append(str(context["exception"])))
        flights = Flights(loop.call_soon)

        def broken(_: Kept | None) -> None:
            raise ValueError("mine")

        lead = flights.join(b"k", broken)
        flights.join(b"k", broken)
        others = [Asker(flights) for _ in range(3)]
        flights.land(lead, KEPT)
        await asyncio.sleep(0.01)
        assert [one.told for one in others] == [[KEPT]] * 3
        assert faults == ["mine"]
        again = [Asker(flights) for _ in range(2)]
        flights.land(again[0].seat, KEPT)
        await asyncio.sleep(0.01)
        assert again[1].told == [KEPT]

    asyncio.run(story())


def test_in_any_order_every_waiter_hears_once_and_one_leads() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    seen = {"shared": 0, "alone": 0, "told to go on": 0, "left": 0}
    for _ in range(150):
        _one_story(dice, seen)
    assert min(seen.values()) > 100, seen


_WISHES = ("join", "tick", "answer", "fail", "release", "leave", "again")
_WEIGHTS = (12, 3, 2, 3, 1, 3, 1)


def _one_story(dice: random.Random, seen: dict[str, int]) -> None:
    ticks = Ticks()
    flights = Flights(ticks.call_soon, waiters_max=dice.choice((2, 5, 50)), waiting_max=dice.choice((6, 1_000)))
    keys = [b"a", b"b", b"c"][: dice.randint(1, 3)]
    askers: list[Asker] = []
    over: set[Asker] = set()
    wishes = dice.choices(_WISHES, _WEIGHTS, k=200)
    for wish in wishes:
        running = [one for one in askers if one not in over]
        asking = [one for one in running if one.asks]
        if wish == "join":
            askers.append(Asker(flights, dice.choice(keys)))
            seen["alone"] += not askers[-1].waited and not askers[-1].seat.leads
        elif wish == "tick":
            ticks.tick()
        elif wish == "leave" and running:
            one = dice.choice(running)
            one.left = True
            over.add(one)
            seen["left"] += one.waited and not one.told
            flights.leave(one.seat)
        elif wish == "again" and over:
            done = dice.choice(sorted(over, key=askers.index))
            dice.choice((flights.leave, flights.release, lambda seat: flights.land(seat, KEPT)))(done.seat)
        elif wish in ("answer", "fail", "release") and asking:
            leaders = [one for one in asking if one.seat.leads]
            one = dice.choice(leaders if leaders and dice.random() < 0.8 else asking)
            over.add(one)
            if wish == "release":
                flights.release(one.seat)
            else:
                flights.land(one.seat, KEPT if wish == "answer" else None)
        _holds(flights, keys, askers, over)
    # To the end: whoever asks gets an answer, and then nobody may still wait.
    for _ in range(10_000):
        ticks.rest()
        asking = [one for one in askers if one not in over and one.asks]
        if not asking:
            break
        over.add(asking[0])
        flights.land(asking[0].seat, KEPT)
        _holds(flights, keys, askers, over)
    for one in askers:
        assert len(one.told) == one.waited or (one.left and not one.told), "lost, or told more than once"
        seen["shared"] += one.told == [KEPT]
        seen["told to go on"] += one.told == [None]
    assert (flights.running, flights.waiting) == (0, 0)
    assert flights.shared == sum(one.told == [KEPT] for one in askers)


def _holds(flights: Flights, keys: list[bytes], askers: list[Asker], over: set[Asker]) -> None:
    for key in keys:
        running = [one for one in askers if one.key == key and one not in over]
        leaders = [one for one in running if one.seat.leads]
        assert len(leaders) <= 1, "two lead one key"
        assert len({id(one) for one in askers if one.key == key and one.seat.leads}) == len(leaders), (
            "a dead seat leads"
        )
        for one in running:
            assert len(one.told) <= 1
            assert one.waited or not one.told
    assert flights.waiting == sum(one.seat.waits for one in askers) <= flights.waiting_max
