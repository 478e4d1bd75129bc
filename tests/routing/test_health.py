"""Whom a worker asks: circuits, probes, pauses, throttling and retries, through `Health`, on a clock that is moved."""

from __future__ import annotations

import random

import pytest

from drivetrain.routing.health import Denied, Health, Outcome

S = 1_000_000_000
MS = 1_000_000


class World:
    """One endpoint, `east`, and a clock."""

    def __init__(self, seed: int = 1) -> None:
        self.health = Health(["east"], random.Random(seed).random)
        self.now = 1_000 * S

    def ask(self) -> Denied | None:
        self.now += 1
        return self.health.may_send("east", self.now)

    def denied(self) -> Denied:
        said = self.ask()
        assert said is not None
        return said

    def grant(self) -> int:
        assert self.ask() is None
        return self.now

    def end(self, granted: int, outcome: Outcome, retry_after_ms: int = -1) -> None:
        self.now += 1
        self.health.ended("east", granted, self.now, outcome, retry_after_ms)

    def attempt(self, outcome: Outcome, retry_after_ms: int = -1) -> None:
        self.end(self.grant(), outcome, retry_after_ms)

    def wait(self, seconds: float) -> None:
        self.now += int(seconds * S)

    def state(self) -> str:
        return self.health.states(self.now)["east"]

    def break_it(self) -> None:
        for _ in range(5):
            self.attempt("failed")
        assert self.state() == "open"

    def until_probe(self) -> int:
        """Waits until a probe is due; milliseconds waited."""
        wait_ms = self.denied().retry_after_ms
        self.wait(wait_ms / 1000)
        return wait_ms


@pytest.fixture
def world() -> World:
    return World()


# Opening.


def test_five_failures_in_a_row_open_a_quiet_endpoint_however_far_apart(world: World) -> None:
    for _ in range(4):
        world.attempt("failed")
        world.wait(60)
    assert world.state() == "closed"
    world.attempt("failed")
    denied = world.denied()
    assert denied.kind == "open"
    assert denied.reason.startswith("circuit open after 5 failures in a row; next probe in ")
    assert 0 < denied.retry_after_ms <= 2_000


def test_a_success_between_failures_keeps_a_quiet_endpoint_closed(world: World) -> None:
    for _ in range(10):
        for _ in range(4):
            world.attempt("failed")
            world.wait(3)
        world.attempt("ok")
    assert world.state() == "closed"


def test_half_of_twenty_failing_opens_a_busy_endpoint(world: World) -> None:
    for outcome in ("ok", "failed") * 9:
        world.attempt(outcome)
    world.attempt("ok")
    assert world.state() == "closed"
    world.attempt("failed")
    assert world.denied().reason.startswith("circuit open after 10 of 20 failed; next probe in ")


def test_a_busy_endpoint_opens_after_twenty_failures_in_a_row_whatever_came_before(world: World) -> None:
    for _ in range(1_000):
        world.attempt("ok")
    for _ in range(19):
        world.attempt("failed")
    world.attempt("ok")
    for _ in range(19):
        world.attempt("failed")
    assert world.state() == "closed"
    world.attempt("failed")
    assert world.denied().reason.startswith("circuit open after 20 failures in a row; ")


def test_failures_older_than_the_window_are_forgotten(world: World) -> None:
    for outcome in ("failed", "failed", "failed", "ok") * 4:
        world.attempt(outcome)
    world.wait(11)
    for outcome in ("ok", "ok", "ok", "failed") * 5:
        world.attempt(outcome)
    assert world.state() == "closed"


def test_successes_older_than_the_window_do_not_hide_failures(world: World) -> None:
    for _ in range(1_000):
        world.attempt("ok")
    world.wait(11)
    for outcome in ("ok", "failed") * 10:
        world.attempt(outcome)
    assert world.state() == "open"


def test_a_closed_circuit_does_not_remember_why_it_was_open(world: World) -> None:
    for outcome in ("ok", "failed") * 10:
        world.attempt(outcome)
    world.until_probe()
    for outcome in ("ok", "ok", "failed", "failed", "failed", "failed"):
        world.attempt(outcome)
    assert world.state() == "closed"


@pytest.mark.parametrize("outcome", ["ours", "limited"])
def test_refusals_do_not_open_the_circuit(world: World, outcome: Outcome) -> None:
    for _ in range(200):
        if world.ask() is None:
            world.end(world.now, outcome)
    assert world.state() == "closed"


def test_one_endpoint_says_nothing_about_another() -> None:
    health = Health(["east", "west"], random.Random(1).random)
    for now in range(5):
        health.ended("east", now, now, "failed")
    assert health.may_send("east", 10) is not None
    assert health.may_send("west", 10) is None
    assert health.states(10) == {"east": "open", "west": "closed"}


# Probing.


def test_half_open_grants_one_probe_at_a_time_and_two_successes_close(world: World) -> None:
    world.break_it()
    world.until_probe()
    assert world.state() == "half_open"
    for _ in range(2):
        probe = world.grant()
        other = world.denied()
        assert (other.kind, other.retry_after_ms) == ("open", 1_000)
        assert other.reason == "circuit half open after 5 failures in a row; a probe is running"
        world.wait(0.2)
        world.end(probe, "ok")
    assert world.state() == "closed"


@pytest.mark.parametrize("outcome", ["failed", "limited"])
def test_a_failed_probe_opens_again_for_longer(outcome: Outcome) -> None:
    waits = []
    for seed in range(200):
        world = World(seed)
        world.break_it()
        waits.append([])
        for _ in range(7):
            waits[-1].append(world.until_probe())
            world.attempt(outcome)
            assert world.state() == "open"
            world.wait(0.11)  # the same text is said again for 0.1 s
    for step, longest in enumerate((2, 4, 8, 16, 30, 30)):
        at_step = [one[step] for one in waits]
        assert min(at_step) >= 850
        assert longest * 800 < max(at_step) <= longest * 1000
        # Full jitter: no tenth of a second has more than a few of 200 workers, once the pause is long enough.
        if longest >= 16:
            assert max(sum(low <= one < low + 100 for one in at_step) for low in range(900, 30_000, 100)) <= 12


def test_successes_of_probes_do_not_add_up_over_failed_ones(world: World) -> None:
    world.break_it()
    for _ in range(3):
        world.until_probe()
        world.attempt("ok")
        world.attempt("failed")
        assert world.state() == "open"


def test_pauses_stay_long_while_it_flaps_and_are_short_again_after_a_calm_time(world: World) -> None:
    def flap(count: int) -> list[int]:
        waits = []
        for _ in range(count):
            for _ in range(5):
                world.attempt("failed")
            waits.append(world.until_probe())
            world.attempt("ok")
            world.attempt("ok")
            assert world.state() == "closed"
            world.wait(6)
        return waits

    assert max(flap(20)) > 10_000
    world.wait(31)
    assert flap(1)[0] <= 2_000


def test_a_probe_that_was_never_sent_is_given_back(world: World) -> None:
    world.break_it()
    world.until_probe()
    world.health.withdrawn("east", world.grant())
    assert world.state() == "half_open"
    world.grant()
    assert world.denied().kind == "open"


def test_a_probe_that_never_ends_is_replaced_after_a_minute(world: World) -> None:
    world.break_it()
    world.until_probe()
    lost = world.grant()
    world.wait(59)
    world.denied()
    world.wait(1)
    world.grant()
    world.denied()
    world.end(lost, "ok")
    assert world.denied().kind == "open", "a lost probe's late end must not free the place of the one that runs"


def test_a_refusal_with_a_status_is_a_sign_of_life(world: World) -> None:
    world.break_it()
    world.until_probe()
    world.attempt("ours")
    world.attempt("ours")
    assert world.state() == "closed"


def test_a_long_answer_ends_its_probe_when_its_head_comes(world: World) -> None:
    world.break_it()
    world.until_probe()
    for _ in range(2):
        probe = world.grant()
        world.health.answered("east", probe, world.now)
    assert world.state() == "closed"


def test_an_answered_probe_that_is_cut_opens_again(world: World) -> None:
    world.break_it()
    world.until_probe()
    probe = world.grant()
    world.health.answered("east", probe, world.now)
    world.end(probe, "failed")
    assert world.state() == "open"


def test_attempts_from_before_the_opening_do_not_speak_for_a_probe(world: World) -> None:
    old = [world.grant() for _ in range(30)]
    world.break_it()
    world.end(old[0], "ok")
    assert world.state() == "open"
    world.until_probe()
    world.end(old[1], "failed")
    assert world.state() == "half_open"
    probe = world.grant()
    world.end(old[2], "ok")
    world.health.withdrawn("east", old[3])
    world.health.answered("east", old[3], world.now)
    assert world.denied().kind == "open"
    world.end(probe, "ok")
    world.attempt("ok")
    for late in old[4:]:
        world.end(late, "failed")
    assert world.state() == "closed"


# Pauses.


@pytest.mark.parametrize(("asked_ms", "least_s", "most_s"), [(2_000, 2, 2.2), (3_600_000, 60, 66)])
def test_a_pause_is_kept_spread_and_bounded(asked_ms: int, least_s: float, most_s: float) -> None:
    ends = set()
    for seed in range(20):
        world = World(seed)
        world.attempt("limited", asked_ms)
        denied = world.denied()
        assert denied.kind == "paused"
        assert denied.reason.startswith("the provider asked for a pause; it ends in ")
        assert least_s * 1000 <= denied.retry_after_ms <= most_s * 1000 + 1
        assert world.state() == "paused"
        ends.add(denied.retry_after_ms)
        world.wait(least_s - 0.001)
        world.denied()
        world.wait(most_s - least_s + 0.001)
        assert world.state() == "closed"
        world.attempt("ok")
    assert len(ends) > 10


def test_a_shorter_pause_does_not_end_a_longer_one(world: World) -> None:
    first, second = world.grant(), world.grant()
    world.end(first, "limited", 10_000)
    world.end(second, "limited", 500)
    world.wait(9)
    assert world.denied().kind == "paused"


# Overload.


def overloaded(world: World, seconds: int, *, offered: int, accepts: int) -> tuple[int, int]:
    """(sent, accepted) in the last 5 s of a provider that accepts so many per second of those that are offered."""
    sent = accepted = 0
    for second in range(seconds):
        room = accepts
        for _ in range(offered):
            world.wait(1 / offered)
            if world.ask() is not None:
                continue
            good = room > 0
            room -= good
            world.end(world.now, "ok" if good else "limited")
            if second >= seconds - 5:
                sent += 1
                accepted += good
    return sent, accepted


def test_an_overloaded_provider_is_sent_about_twice_what_it_accepts(world: World) -> None:
    sent, accepted = overloaded(world, 30, offered=400, accepts=40)
    assert accepted >= 5 * 40 * 0.9, "what it can do is used"
    assert sent <= 5 * 40 * 2 * 1.25, "and it is spared the other 1,600 refusals"
    assert world.health.counts()["east"].throttled > 5_000


def test_a_quiet_endpoint_is_not_throttled_for_a_few_refusals(world: World) -> None:
    for _ in range(50):
        world.attempt("limited")
        world.wait(1.1)


@pytest.mark.parametrize("answer_s", [0.05, 20])
def test_throttling_ends_within_seconds_of_the_overload_also_where_answers_are_long(answer_s: float) -> None:
    world = World()
    overloaded(world, 20, offered=100, accepts=0)
    running: list[int] = []
    granted = 0
    for step in range(15 * 100):
        world.wait(0.01)
        while running and world.now - running[0] >= answer_s * S:
            world.end(running.pop(0), "ok")
        if world.ask() is None:
            running.append(world.now)
            granted += step >= 12 * 100
    assert granted == 3 * 100


def test_long_answers_on_their_way_are_not_taken_for_refusals(world: World) -> None:
    for _ in range(500):
        world.grant()


# Retries.


def test_retries_stay_a_tenth_of_the_attempts_plus_a_floor() -> None:
    for seed in range(20):
        print(f"seed {seed}")
        chance, world = random.Random(seed), World(seed)
        share, per_s = chance.uniform(0.1, 0.45), chance.choice([2, 50, 500])
        seconds, first, wished, retried = 60, 0, 0, 0
        for _ in range(seconds * per_s):
            world.wait(1 / per_s)
            first += 1
            failed = chance.random() < share
            world.health.ended("east", world.now, world.now, "failed" if failed else "ok")
            while failed:
                wished += 1
                if not world.health.may_retry("east", world.now):
                    break
                retried += 1
                failed = chance.random() < share
                world.health.ended("east", world.now, world.now, "failed" if failed else "ok")
        assert retried <= 0.1 * first + 1 * seconds + 20
        assert retried >= min(wished, 0.1 * first + 1 * seconds) * 0.95, "and what is allowed can be used"
        assert world.health.counts()["east"].retries == wished - retried


def test_a_calm_time_saves_up_twenty_retries_and_no_more(world: World) -> None:
    for _ in range(10_000):
        world.attempt("ok")
    world.wait(3_600)
    assert sum(world.health.may_retry("east", world.now) for _ in range(100)) in (18, 19, 20)
    world.wait(3)
    assert sum(world.health.may_retry("east", world.now) for _ in range(100)) in (2, 3)


# A project that changes.


def test_a_reload_keeps_what_is_known_and_forgets_what_is_gone(world: World) -> None:
    world.break_it()
    world.health.use(["east", "west"])
    assert world.health.states(world.now) == {"east": "open", "west": "closed"}
    world.health.use(["west"])
    granted = world.grant()
    world.end(granted, "failed")
    world.health.answered("east", granted, world.now)
    world.health.withdrawn("east", granted)
    assert not world.health.may_retry("east", world.now)
    assert world.health.states(world.now) == {"west": "closed"}


def test_what_was_turned_away_is_counted_by_kind(world: World) -> None:
    world.break_it()
    for _ in range(3):
        world.denied()
    world.until_probe()
    world.attempt("limited", 5_000)
    for _ in range(2):
        world.denied()
    counts = world.health.counts()["east"]
    assert (counts.open, counts.paused, counts.throttled) == (4, 2, 0)
