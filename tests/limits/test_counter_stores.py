"""What every counter store must do. An adapter passes by being added to `KINDS`."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from limits_world import NOW_NS, Clock, Stores

from drivetrain.core.times import NS_PER_S
from drivetrain.ports.counters import (
    BUCKET,
    GRANTED,
    MONEY,
    PENDING,
    REFUSED,
    SLOTS,
    AccountState,
    CounterStore,
    DeadWorker,
    Fenced,
    Line,
    Report,
    StoreUnavailable,
    SyncReply,
    SyncRequest,
    Terms,
    Want,
)

KINDS = ("memory", "sqlite")
PURSE = Terms("purse/@2026-03", MONEY, 100, ends_ns=NOW_NS + 10 * NS_PER_S)
OTHER = Terms("other/@2026-03", MONEY, 50, ends_ns=NOW_NS + 10 * NS_PER_S)
BUCKETS = Terms("calls/@rate", BUCKET, 10, refill=10, refill_ns=NS_PER_S)
RUNNING = Terms("gate/@running", SLOTS, 2)


@pytest.fixture(params=KINDS)
def stores(request: pytest.FixtureRequest) -> Iterator[Stores]:
    made = Stores(request.param, Clock())
    yield made
    made.close()


class Client:
    """A worker that says what a test makes it say."""

    def __init__(self, stores: Stores, name: str) -> None:
        self.name = name
        self.store: CounterStore = stores.handle()
        self.store.join(name, "segment-1")

    def sync(self, mark: int = 0, **said: object) -> SyncReply:
        return self.store.sync(SyncRequest(self.name, mark, **said))  # type: ignore[arg-type]

    def want(self, terms: Terms, need: int, *, number: int = 1, slice_: int = 1, last: bool = False) -> SyncReply:
        line = Line(slice_, terms, need, need, need)
        return self.sync(wants=(Want(number, (line,), last),))


def both(stores: Stores) -> tuple[Client, Client]:
    return Client(stores, "a"), Client(stores, "b")


def test_units_are_granted_until_the_cap_and_not_one_beyond(stores: Stores) -> None:
    one, other = both(stores)
    assert one.want(PURSE, 60).verdicts[0].outcome == GRANTED
    assert other.want(PURSE, 40).verdicts[0].outcome == GRANTED
    refused = other.want(PURSE, 1, last=True).verdicts[0]
    assert refused.outcome == REFUSED
    assert (refused.refused[0].left, refused.refused[0].resets_at_ns) == (0, PURSE.ends_ns)
    assert one.store.account(PURSE.account) == AccountState(settled=0, held=100, over=0)


def test_a_want_is_granted_whole_or_not_at_all(stores: Stores) -> None:
    one, _ = both(stores)
    lines = (Line(1, PURSE, 60, 60, 60), Line(2, OTHER, 60, 60, 60))
    assert one.sync(wants=(Want(1, lines),)).verdicts[0].refused[0].slice == 2
    state = one.store.account(PURSE.account)
    assert state is None or state.held == 0


def test_a_report_that_is_repeated_counts_once(stores: Stores) -> None:
    one, _ = both(stores)
    one.want(PURSE, 60)
    for _ in range(3):
        reply = one.sync(mark=5, reports=(Report(1, PURSE, returned=10, booked=30),))
        assert reply.leases[0].granted == 60
        assert one.store.account(PURSE.account) == AccountState(settled=30, held=20, over=0)


def test_the_last_words_of_a_slice_count_once_however_often_they_are_said(stores: Stores) -> None:
    one, _ = both(stores)
    one.want(PURSE, 60)
    for _ in range(3):
        one.sync(reports=(Report(1, PURSE, returned=20, booked=30, dropped=True),))
        assert one.store.account(PURSE.account) == AccountState(settled=30, held=0, over=0)
    one.sync()
    one.want(PURSE, 10, slice_=2)
    assert one.store.account(PURSE.account) == AccountState(settled=30, held=10, over=0)


def test_what_a_lost_answer_granted_is_told_again(stores: Stores) -> None:
    one, _ = both(stores)
    one.want(PURSE, 20)
    assert one.want(PURSE, 20).leases[0].granted == 40


def test_an_overrun_is_booked_in_full(stores: Stores) -> None:
    one, _ = both(stores)
    one.want(PURSE, 100)
    one.sync(reports=(Report(1, PURSE, booked=130, over=30),))
    assert one.store.account(PURSE.account) == AccountState(settled=130, held=0, over=30)
    assert one.want(PURSE, 1).verdicts[0].outcome == REFUSED


def test_others_are_asked_before_anybody_is_refused(stores: Stores) -> None:
    one, other = both(stores)
    one.want(PURSE, 100)
    assert other.want(PURSE, 30).verdicts[0].outcome == PENDING
    assert one.store.wait(30), "the holder was not rung"
    recalled = one.sync()
    assert recalled.recalls == (1,)
    assert recalled.leases[0].contended
    reply = one.sync(reports=(Report(1, PURSE, returned=50, answered=recalled.tick),))
    assert reply.recalls == ()
    assert other.store.wait(30), "the one who waits was not rung"
    assert other.want(PURSE, 30).verdicts[0].outcome == GRANTED
    assert one.sync(reports=(Report(1, PURSE, returned=50, answered=recalled.tick),)).leases[0].contended is False


def test_it_is_refused_once_every_holder_has_answered(stores: Stores) -> None:
    one, other = both(stores)
    one.want(PURSE, 100)
    other.want(PURSE, 30)
    tick = one.sync().tick
    one.sync(reports=(Report(1, PURSE, returned=20, answered=tick),))
    verdict = other.want(PURSE, 30).verdicts[0]
    assert (verdict.outcome, verdict.refused[0].left) == (REFUSED, 20)


def test_an_answer_to_an_earlier_recall_does_not_answer_a_later_one(stores: Stores) -> None:
    one, other = both(stores)
    one.want(PURSE, 100)
    other.want(PURSE, 30)
    one.sync(reports=(Report(1, PURSE, answered=one.sync().tick),))
    assert other.want(PURSE, 30).verdicts[0].outcome == REFUSED
    assert other.want(PURSE, 30, number=2).verdicts[0].outcome == PENDING


def test_what_can_never_fit_is_refused_without_asking_anybody(stores: Stores) -> None:
    one, other = both(stores)
    one.want(PURSE, 50)
    assert other.want(PURSE, 101).verdicts[0].outcome == REFUSED
    assert not one.store.wait(0)


def test_what_is_good_to_have_is_given_while_nobody_needs_it(stores: Stores) -> None:
    one, other = both(stores)
    granted = one.sync(wants=(Want(1, (Line(1, PURSE, 4, 64, 4),)),)).leases[0].granted
    assert 4 < granted <= 4 + 96 // 4
    other.want(PURSE, 100 - granted)
    assert one.sync(ahead=(Line(1, PURSE, 0, 64, 0),)).leases[0].granted == granted


def test_a_budget_that_is_only_counted_refuses_nothing(stores: Stores) -> None:
    one, other = both(stores)
    watched = Terms("watch/@2026-03", MONEY, 10, ends_ns=1, counted=True)
    one.sync(reports=(Report(1, watched, booked=8),))
    reply = other.sync(reports=(Report(1, watched, booked=9),))
    assert reply.leases[0].settled == 17
    assert other.store.account(watched.account) == AccountState(settled=17, held=0, over=0)


def test_an_alert_is_announced_by_one_worker_once(stores: Stores) -> None:
    one, other = both(stores)
    assert one.sync(alerts=((PURSE.account, 80),)).alerts == ((PURSE.account, 80),)
    assert one.sync(alerts=((PURSE.account, 80),)).alerts == ()
    assert other.sync(alerts=((PURSE.account, 80), (PURSE.account, 100))).alerts == ((PURSE.account, 100),)


def test_slots_come_back(stores: Stores) -> None:
    one, other = both(stores)
    assert one.want(RUNNING, 2).verdicts[0].outcome == GRANTED
    assert other.want(RUNNING, 1, last=True).verdicts[0].outcome == REFUSED
    one.sync(reports=(Report(1, RUNNING, returned=1),))
    assert other.want(RUNNING, 1).verdicts[0].outcome == GRANTED


def test_a_slot_is_waited_for_in_turn(stores: Stores) -> None:
    one, other = both(stores)
    third = Client(stores, "c")
    one.want(RUNNING, 2)
    tick = one.sync().tick
    one.sync(reports=(Report(1, RUNNING, answered=tick),))
    assert other.want(RUNNING, 1).verdicts[0].outcome == PENDING, "a Call may end at any moment"
    assert third.want(RUNNING, 1).verdicts[0].outcome == PENDING
    one.sync(reports=(Report(1, RUNNING, returned=1, answered=tick),))
    assert third.want(RUNNING, 1).verdicts[0].outcome == PENDING, "it is not the third's turn"
    assert other.want(RUNNING, 1).verdicts[0].outcome == GRANTED
    one.sync(reports=(Report(1, RUNNING, returned=2, answered=tick),))
    stores.clock.pass_s(1)
    assert third.want(RUNNING, 1).verdicts[0].outcome == GRANTED


def test_a_slot_that_is_kept_for_somebody_else_is_not_refused_at_the_end(stores: Stores) -> None:
    one, other = both(stores)
    third = Client(stores, "c")
    one.want(RUNNING, 2)
    other.want(RUNNING, 1)
    third.want(RUNNING, 1)
    one.sync(reports=(Report(1, RUNNING, returned=1),))
    assert third.want(RUNNING, 1, last=True).verdicts[0].outcome == GRANTED


def test_a_bucket_refills_by_the_stores_clock_and_never_beyond_its_size(stores: Stores) -> None:
    one, _ = both(stores)
    one.want(BUCKETS, 10)
    one.sync(reports=(Report(1, BUCKETS, booked=10),))
    stores.clock.pass_s(0.35)
    refused = one.want(BUCKETS, 5).verdicts[0].refused[0]
    assert refused.left == 3
    assert refused.resets_at_ns - stores.clock.now() == pytest.approx(0.2 * NS_PER_S, rel=0.3)
    stores.clock.pass_s(0.15)
    assert one.want(BUCKETS, 5).verdicts[0].outcome == GRANTED
    stores.clock.pass_s(3_600)
    state = one.store.account(BUCKETS.account)
    assert state is not None
    assert (state.level, state.held) == (5, 5), "what is leased and what is in the bucket exceed its size"


def test_what_was_taken_from_a_bucket_and_not_used_comes_back_as_far_as_it_fits(stores: Stores) -> None:
    one, _ = both(stores)
    one.want(BUCKETS, 10)
    one.sync(reports=(Report(1, BUCKETS, booked=10, refunded=4),))
    stores.clock.pass_s(0.8)
    one.sync(reports=(Report(1, BUCKETS, booked=10, refunded=9),))
    state = one.store.account(BUCKETS.account)
    assert state is not None
    assert state.level == 10


def test_a_clock_that_goes_back_refills_nothing_and_stops_nothing(stores: Stores) -> None:
    one, _ = both(stores)
    one.want(BUCKETS, 10)
    one.sync(reports=(Report(1, BUCKETS, booked=10),))
    stores.clock.wall_ns -= 3_600 * NS_PER_S
    assert one.want(BUCKETS, 1).verdicts[0].outcome == REFUSED
    stores.clock.pass_s(1)
    assert one.want(BUCKETS, 10).verdicts[0].outcome == GRANTED


def test_a_worker_that_leaves_takes_nothing_along(stores: Stores) -> None:
    one, other = both(stores)
    one.want(PURSE, 60)
    one.sync(reports=(Report(1, PURSE, booked=10),))
    assert one.store.leave()
    assert other.store.account(PURSE.account) == AccountState(settled=10, held=0, over=0)
    assert other.store.dead() == ()


def test_a_worker_with_open_reservations_cannot_leave(stores: Stores) -> None:
    one, other = both(stores)
    one.sync(mark=7, open=(3, 7), position="segment-2")
    assert not one.store.leave()
    one.store.close()
    assert other.store.dead() == (DeadWorker("a", 7, (3, 7), "segment-2"),)


def test_what_the_ledger_must_keep_is_told_until_a_worker_has_left_or_is_buried(stores: Stores) -> None:
    one, other = both(stores)
    one.sync(mark=7, open=(3, 7), position="segment-2")
    assert stores.handle().positions() == {"a": "segment-2", "b": "segment-1"}
    one.store.close()
    assert other.store.positions()["a"] == "segment-2"
    (dead,) = other.store.dead()
    other.store.bury(dead, {})
    assert other.store.positions() == {"b": "segment-1"}
    assert other.store.leave()
    assert stores.handle().positions() == {}


def test_a_dead_worker_is_buried_once(stores: Stores) -> None:
    one, other = both(stores)
    one.want(PURSE, 60)
    one.sync(mark=2, reports=(Report(1, PURSE, booked=10),))
    assert other.store.dead() == ()
    one.store.close()
    (dead,) = other.store.dead()
    assert dead.mark == 2
    assert other.store.bury(dead, {PURSE.account: 15})
    assert not other.store.bury(dead, {PURSE.account: 15})
    assert other.store.account(PURSE.account) == AccountState(settled=25, held=0, over=0)
    assert other.store.dead() == ()


def test_a_worker_that_died_before_it_said_anything_is_found(stores: Stores) -> None:
    one, other = both(stores)
    one.store.close()
    assert other.store.dead() == (DeadWorker("a", 0, (), "segment-1"),)


def test_a_living_worker_is_not_buried(stores: Stores) -> None:
    _, other = both(stores)
    assert not other.store.bury(DeadWorker("a", 0, (), ""), {})


def test_a_worker_that_was_never_there_is_fenced_off(stores: Stores) -> None:
    store = stores.handle()
    with pytest.raises(Fenced):
        store.sync(SyncRequest("nobody", 0))


def test_a_charge_beyond_what_was_held_is_an_overrun(stores: Stores) -> None:
    one, other = both(stores)
    one.want(PURSE, 60)
    one.store.close()
    other.store.bury(other.store.dead()[0], {PURSE.account: 70})
    assert other.store.account(PURSE.account) == AccountState(settled=70, held=0, over=10)


def test_what_a_dead_worker_wanted_is_forgotten(stores: Stores) -> None:
    one, other = both(stores)
    one.want(PURSE, 100)
    other.want(PURSE, 10)
    other.store.close()
    third = Client(stores, "c")
    third.store.bury(third.store.dead()[0], {})
    assert one.sync().recalls == ()


def test_a_period_that_was_swept_is_not_opened_again(stores: Stores) -> None:
    one, _ = both(stores)
    one.want(PURSE, 100)
    one.sync(reports=(Report(1, PURSE, booked=100),))
    assert one.store.sweep(PURSE.ends_ns + 1) == 0, "somebody still holds it"
    one.sync(reports=(Report(1, PURSE, booked=100, dropped=True),))
    one.sync()
    assert one.store.sweep(PURSE.ends_ns + 1) == 1
    assert one.want(PURSE, 1, slice_=2).verdicts[0].outcome == REFUSED
    assert one.store.account(PURSE.account) is None


def test_a_cap_that_was_lowered_grants_nothing_more(stores: Stores) -> None:
    one, other = both(stores)
    one.want(PURSE, 60)
    lower = Terms(PURSE.account, MONEY, 50, PURSE.ends_ns)
    assert other.want(lower, 1, last=True).verdicts[0].outcome == REFUSED
    assert other.want(PURSE, 40, number=2).verdicts[0].outcome == GRANTED


def test_a_wait_ends_when_somebody_wakes_it(stores: Stores) -> None:
    one, _ = both(stores)
    threading.Timer(0.05, one.store.wake).start()
    began = time.monotonic()
    assert one.store.wait(50) is False
    assert time.monotonic() - began < 25
    assert one.store.wait(0) is False


def test_a_report_of_hundreds_of_slices_books_what_each_of_them_says(stores: Stores) -> None:
    """Those that are known go together; new ones, edited ones and a second slice of an account one by one."""
    one, other = both(stores)
    terms = {number: Terms(f"key/k{number}@2026-03", MONEY, 100 + number, NOW_NS * 2) for number in range(1, 301)}
    for number, each in terms.items():
        if number <= 290:
            one.want(each, 40, number=number, slice_=number)
    other.want(terms[7], 30)
    assert other.want(terms[8], 80, number=2).verdicts[0].outcome == PENDING
    edited = Terms(terms[9].account, MONEY, 500, NOW_NS * 2)
    watched = Terms("watch/@2026-03", MONEY, 10, ends_ns=1, counted=True)
    reports = [Report(number, each, booked=20) for number, each in terms.items() if number not in (8, 9, 10, 11, 300)]
    reports += [
        Report(8, terms[8], booked=5, returned=35, answered=99), Report(9, edited, booked=20),
        Report(10, terms[10], booked=15, returned=25, dropped=True), Report(11, terms[11], booked=55, over=15),
        Report(300, terms[11], booked=1, over=1), Report(301, watched, booked=8), Report(302, BUCKETS, booked=3),
    ]  # fmt: skip
    for _ in range(2):  # a repeated one counts once
        reply = one.sync(mark=9, reports=tuple(reports))
        assert {state.slice for state in reply.leases} == {report.slice for report in reports} - {10}
        told = {state.slice: (state.granted, state.settled, state.contended) for state in reply.leases}
        assert [told[number] for number in (1, 7, 8, 9, 11, 300, 295, 301)] == [
            (40, 20, False), (40, 20, False), (40, 5, True), (40, 20, False), (40, 56, False), (0, 56, False),
            (0, 20, False), (0, 8, False),
        ]  # fmt: skip
        accounts = {number: one.store.account(terms[number].account) for number in (1, 7, 8, 9, 10, 11)}
        assert accounts == {
            1: AccountState(20, 20, 0), 7: AccountState(20, 50, 0), 8: AccountState(5, 0, 0),
            9: AccountState(20, 20, 0), 10: AccountState(15, 0, 0), 11: AccountState(56, 0, 16),
        }  # fmt: skip
    assert other.store.wait(30), "the one who waits was not rung"
    assert other.want(terms[8], 80, number=2).verdicts[0].outcome == GRANTED
    assert one.want(edited, 400, number=9, slice_=9).verdicts[0].outcome == GRANTED, "the cap was raised"


def test_after_a_power_cut_everything_held_is_charged(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Booked and returned units may be lost with the power, and so may the ledger's frames; leases are not."""
    stores = Stores("sqlite", Clock(), tmp_path)
    one = Client(stores, "a")
    one.want(PURSE, 60)
    one.sync(reports=(Report(1, PURSE, booked=10),))
    one.store.close()
    stores.boot = "boot-2"
    other = Client(stores, "b")
    assert other.store.bury(other.store.dead()[0], {PURSE.account: 5})
    assert other.store.account(PURSE.account) == AccountState(settled=60, held=0, over=0)
    stores.close()


def test_a_damaged_file_refuses_and_does_not_grant(tmp_path) -> None:  # type: ignore[no-untyped-def]
    stores = Stores("sqlite", Clock(), tmp_path)
    one = Client(stores, "a")
    one.want(PURSE, 60)
    stores.close()
    (tmp_path / "counters.db").write_bytes(b"no database" * 1000)
    for left in ("counters.db-wal", "counters.db-shm"):
        (tmp_path / left).unlink(missing_ok=True)
    with pytest.raises(StoreUnavailable):
        Client(stores, "b")


def test_a_second_handle_in_a_process_lets_no_lock_of_the_first_go(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """POSIX drops all of a process's locks on a file when it closes any descriptor of it: SQLite would then take
    another process for the last user, and remove the log that this one writes to."""
    stores = Stores("sqlite", Clock(), tmp_path)
    one = Client(stores, "a")
    one.want(PURSE, 60)
    stores.handle().close()
    look = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('SELECT * FROM accounts').fetchall()"
    subprocess.run([sys.executable, "-c", f"{look}; db.close()", str(tmp_path / "counters.db")], check=True)
    assert (tmp_path / "counters.db-wal").exists(), "the first handle's log was removed under it"
    one.sync(reports=(Report(1, PURSE, booked=30),))
    fresh = stores.handle()
    assert fresh.account(PURSE.account) == AccountState(settled=30, held=30, over=0)
    stores.close()


def test_an_account_that_got_another_name_goes_on_and_its_old_name_is_gone(stores: Stores) -> None:
    one, other = both(stores)
    hers = Terms("person/mary@2026-03", MONEY, 100, ends_ns=NOW_NS + 10 * NS_PER_S)
    his, tagged = Terms("person/mary-ann@2026-03", MONEY, 100), Terms("tagged/customer=mary@2026-03", MONEY, 100)
    assert one.want(hers, 60).verdicts[0].outcome == GRANTED
    other.want(his, 10, slice_=1)
    other.want(tagged, 10, number=2, slice_=2)
    other.want(hers, 30, number=3, slice_=3)
    one.sync(reports=(Report(1, hers, booked=20),), alerts=((hers.account, 50),))
    assert one.store.named("mary") == (hers.account, tagged.account)
    assert one.store.rename({hers.account: "person/erased-1@2026-03", "person/nobody@2026-03": "x/y@z"}) == 1
    assert one.store.account(hers.account) is None
    assert one.store.account("person/erased-1@2026-03") == AccountState(20, 70, 0)
    # Who holds some of it calls it as ever.
    reply = one.sync(reports=(Report(1, hers, booked=45),), alerts=((hers.account, 50),))
    assert (reply.leases[0].settled, reply.alerts) == (45, ())
    assert one.want(hers, 20, number=2, last=True).verdicts[0].outcome == REFUSED, "45 spent, 15 and 30 held"
    assert one.want(hers, 10, number=3).verdicts[0].outcome == GRANTED
    one.sync(reports=(Report(1, hers, returned=25, booked=45, dropped=True),))
    assert one.store.account(hers.account) is None
    assert one.store.account("person/erased-1@2026-03") == AccountState(45, 30, 0)
    # Somebody who comes later opens the name anew.
    assert one.want(hers, 100, number=4, slice_=2).verdicts[0].outcome == GRANTED
    assert one.store.account(hers.account) == AccountState(0, 100, 0)
    assert one.store.account(his.account) == AccountState(0, 10, 0)


def test_what_workers_told_is_known_of_all_of_them(stores: Stores) -> None:
    one, other = both(stores)
    one.sync(7, open=(3, 5), position="segment-2")
    assert set(other.store.told()) == {DeadWorker("a", 7, (3, 5), "segment-2"), DeadWorker("b", 0, (), "segment-1")}


def test_a_full_report_that_was_prepared_before_a_renaming_is_booked(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from drivetrain.adapters.sqlite_counter_batch import WORTH_IT
    from drivetrain.adapters.sqlite_counters import SqliteCounters

    terms = [Terms(f"person/{number}@2026-03", MONEY, 100) for number in range(WORTH_IT + 2)]
    store, other = SqliteCounters(tmp_path), SqliteCounters(tmp_path)
    store.join("a", "segment-1")
    lines = tuple(Line(number, one, 10, 10, 10) for number, one in enumerate(terms, 1))
    store.sync(SyncRequest("a", 0, wants=tuple(Want(line.slice, (line,)) for line in lines)))
    prepared = store._prepared

    def renamed_meanwhile(request: SyncRequest) -> object:
        batch = prepared(request)
        assert other.rename({terms[1].account: "person/erased@2026-03"}) == 1
        return batch

    store._prepared = renamed_meanwhile  # type: ignore[method-assign,assignment]
    reports = tuple(Report(line.slice, line.terms, booked=3) for line in lines)
    store.sync(SyncRequest("a", 0, reports=reports))
    listed = other.accounts("person/", "@2026-03", 10_000)
    assert (listed.count, listed.settled, listed.held) == (len(terms), 3 * len(terms), 7 * len(terms))
    assert other.account(terms[1].account) is None
    store.close()
    other.close()
