"""Which rows are scored next, together: by a clock of the test's own, on service curves that are known to it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from drivetrain.inference.batching import Batcher, Waiting
from drivetrain.inference.curve import ServiceCurve

MS = 1_000_000


class Row:
    def __init__(self, arrived_ms: float, deadline_ms: float) -> None:
        self.arrived_ns = int(arrived_ms * MS)
        self.deadline_ns = int(deadline_ms * MS)
        self.over = False


def usual_ms(rows: int) -> float:
    """A fixed part and one per row: batches pay."""
    return 4 + 0.5 * rows


def taught(times_ms: Callable[[int], float] = usual_ms, rows_max: int = 32) -> Batcher:
    curve = ServiceCurve(rows_max)
    for _ in range(10):
        for rows in (1, 2, 4, 8, 16, 32):
            curve.learn(rows, int(times_ms(rows) * MS))
    return Batcher(curve)


def added(batcher: Batcher, count: int, at_ms: float = 0, slo_ms: float = 100) -> list[Row]:
    rows = [Row(at_ms, at_ms + slo_ms) for _ in range(count)]
    for row in rows:
        assert batcher.add(row, int(at_ms * MS))
    return rows


def test_the_curve_is_learned_from_batches_and_tells_sizes_between() -> None:
    curve = taught().curve
    for rows in range(1, 33):
        assert curve.mean_ns(rows) == pytest.approx(usual_ms(rows) * MS, rel=0.03)
    assert curve.best_rows == 32


def test_one_stall_moves_the_curve_little_and_a_slower_machine_is_believed_for_all_sizes() -> None:
    curve = taught().curve
    curve.learn(16, 4_000 * MS)
    assert curve.mean_ns(16) < 1.35 * usual_ms(16) * MS
    for _ in range(60):
        curve.learn(16, int(3 * usual_ms(16) * MS))
    assert curve.mean_ns(16) == pytest.approx(3 * usual_ms(16) * MS, rel=0.1)
    assert curve.mean_ns(32) > 1.6 * usual_ms(32) * MS
    for _ in range(60):
        curve.learn(16, int(usual_ms(16) * MS))
    assert curve.mean_ns(16) == pytest.approx(usual_ms(16) * MS, rel=0.1)


def test_the_size_that_brings_most_rows_per_second_is_found_where_larger_ones_do_not_pay() -> None:
    curve = taught(lambda rows: 3 + 0.3 * rows + 0.04 * rows * rows).curve
    assert 6 <= curve.best_rows <= 11


def test_all_who_wait_are_scored_together_and_at_once() -> None:
    batcher = taught()
    rows = added(batcher, 20)
    turn = batcher.next(0)
    assert (list(turn.batch), list(turn.refused), turn.again_ns) == (rows, [], 0)
    assert len(batcher) == 0


def test_the_earliest_deadlines_go_first() -> None:
    batcher = taught(rows_max=32)
    late = added(batcher, 32, slo_ms=500)
    early = added(batcher, 8, slo_ms=50)
    turn = batcher.next(0)
    assert list(turn.batch)[:8] == early
    assert not turn.refused
    batcher.ended(len(turn.batch), int(usual_ms(len(turn.batch)) * MS))
    assert set(late) - set(turn.batch) == set(batcher.next(20 * MS).batch)


def test_a_batch_is_no_larger_than_its_earliest_deadline_allows_where_that_costs_nobody_else() -> None:
    batcher = taught()
    first = added(batcher, 2, slo_ms=9)
    others = added(batcher, 20, slo_ms=500)
    turn = batcher.next(0)
    assert set(first) <= set(turn.batch)
    assert len(turn.batch) <= 10
    assert not turn.refused
    assert others[-1] not in turn.batch


def test_who_cannot_be_in_time_is_refused_when_it_comes() -> None:
    batcher = taught()
    added(batcher, 32)
    batcher.next(0)
    assert not batcher.add(Row(1, 15), 1 * MS)  # the batch that runs ends at 20 ms
    assert batcher.add(Row(1, 40), 1 * MS)
    held = 1
    while batcher.add(Row(1, 101), 1 * MS):
        held += 1
    assert 90 <= held <= 140  # four batches of 20 ms fit behind the one that runs


def test_who_became_late_while_a_batch_ran_is_given_up_and_the_others_are_scored() -> None:
    batcher = taught()
    added(batcher, 32)
    batcher.next(0)
    soon = Row(1, 40)
    assert batcher.add(soon, 1 * MS)
    later = added(batcher, 5, at_ms=2, slo_ms=200)
    batcher.ended(32, 60 * MS)  # three times its time
    turn = batcher.next(60 * MS)
    assert (list(turn.refused), list(turn.batch)) == ([soon], later)


def test_a_worker_that_is_free_takes_a_row_whatever_it_expects_so_that_it_learns_when_it_is_fast_again() -> None:
    batcher = taught(lambda rows: 1000 + rows)
    row = Row(0, 50)
    assert batcher.add(row, 0)
    assert list(batcher.next(0).batch) == [row]
    for turn in range(60):
        batcher.ended(1, 5 * MS)
        row = Row(turn * 100, turn * 100 + 50)
        assert batcher.add(row, turn * 100 * MS)
        assert list(batcher.next(turn * 100 * MS).batch) == [row]
    assert batcher.curve.mean_ns(1) < 20 * MS


def test_it_waits_only_where_a_batch_begun_now_would_make_the_next_rows_late() -> None:
    usual = taught()
    added(usual, 1, slo_ms=30)
    assert usual.next(0).batch
    tight = taught(lambda rows: 8 + 0.05 * rows)
    (row,) = added(tight, 1, slo_ms=14)
    turn = tight.next(0)
    assert not turn.batch
    assert 2 * MS < turn.again_ns <= 6 * MS
    assert list(tight.next(turn.again_ns).batch) == [row]


def test_cancelled_rows_are_not_scored() -> None:
    batcher = taught()
    rows = added(batcher, 3)
    rows[1].over = True
    assert list(batcher.next(0).batch) == [rows[0], rows[2]]


def test_the_queue_is_bounded() -> None:
    batcher = Batcher(ServiceCurve(8), queue_rows_max=10)
    added(batcher, 10)
    assert not batcher.add(Row(0, 100), 0)


def test_larger_sizes_are_tried_step_by_step_before_the_curve_is_known() -> None:
    batcher = Batcher(ServiceCurve(32))
    added(batcher, 100, slo_ms=10_000)
    sizes = []
    while len(batcher):
        batch = batcher.next(0).batch
        sizes.append(len(batch))
        batcher.ended(len(batch), int(usual_ms(len(batch)) * MS))
    assert sizes[:6] == [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize("seed", range(3))
def test_every_row_is_scored_or_refused_once_and_few_of_those_scored_are_late(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    batcher = taught()
    now_ns, late = 0, 0
    rows: list[Row] = []
    scored: list[Waiting] = []
    refused: list[Waiting] = []
    running: list[Waiting] = []
    ends_ns, took_ms = 0, 0.0
    for _ in range(4_000):
        now_ns += int(rng.expovariate(1.2) * MS)  # more than it can serve in bursts
        while running and ends_ns <= now_ns:
            at_ns = ends_ns
            batcher.ended(len(running), int(took_ms * MS))
            late += sum(row.deadline_ns < at_ns for row in running)
            scored += running
            running = []
            turn = batcher.next(at_ns)
            refused += turn.refused
            if turn.batch:
                running = list(turn.batch)
                took_ms = usual_ms(len(running)) * rng.lognormvariate(0, 0.1)
                ends_ns = at_ns + int(took_ms * MS)
        row = Row(now_ns / MS, now_ns / MS + rng.choice((30, 60, 200)))
        rows.append(row)
        if not batcher.add(row, now_ns):
            refused.append(row)
        if not running:
            turn = batcher.next(now_ns)
            refused += turn.refused
            if turn.batch:
                running = list(turn.batch)
                took_ms = usual_ms(len(running)) * rng.lognormvariate(0, 0.1)
                ends_ns = now_ns + int(took_ms * MS)
    left = running + list(batcher.next(now_ns + 10_000 * MS).refused)
    seen: list[Waiting] = [*scored, *refused, *left]
    assert len(seen) == len(set(map(id, seen))) == len(rows)
    assert late <= 0.03 * len(scored)
    assert len(scored) >= 0.8 * len(rows)
