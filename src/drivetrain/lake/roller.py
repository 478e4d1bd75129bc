"""The roller: what the segments hold becomes rows of `calls`, `outcomes` and `spend`, each exactly once.

Owns the order of events. A roll's plan is on the disk before any table changes; each table takes the roll's rows and
its number in one commit, and looks the number up first. So a roll that was cut off anywhere is done again from its
plan, by whoever rolls next, and adds only what is missing. One roller per data folder, by a lock that ends with its
process.
Called by the process that keeps the lake and by the commands. It deletes nothing: retention does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from drivetrain.core.codec import JSON
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.ids import is_call_id
from drivetrain.lake import plans
from drivetrain.lake.columns import (
    CALL_STATISTICS,
    NS_PER_DAY,
    OUTCOME_STATISTICS,
    PARTITION_BY,
)
from drivetrain.lake.plans import Ledger, Plan
from drivetrain.lake.rows import Collected, Limits, collect
from drivetrain.lake.spend import SPEND_STATISTICS, spend_rows
from drivetrain.ledger.frames import Damage, segments
from drivetrain.ports.tables import TableStore

TABLES = ("calls", "outcomes", "spend")
"""In the order in which a roll reaches them."""


class Rolled(msgspec.Struct, frozen=True, kw_only=True):
    """What one `roll` did."""

    number: int
    """The last roll that every table has; 0: none."""
    rolls: int = 0
    """How many were made or finished."""
    calls: int = 0
    outcomes: int = 0
    problems: tuple[Damage, ...] = ()
    """What of the segments was no good frame: torn ends are normal after a crash."""
    elsewhere: bool = False
    """Another roller is at work; this one did nothing."""


class _Done:
    """What the rolls of one `roll` came to; their rows are let go."""

    __slots__ = ("calls", "outcomes", "problems", "rolls")

    def __init__(self) -> None:
        self.rolls = self.calls = self.outcomes = 0
        self.problems: dict[tuple[str, int, str], Damage] = {}

    def add(self, made: Collected) -> None:
        self.rolls += 1
        self.calls += made.calls.count
        self.outcomes += made.outcomes.count
        self.problems.update({(one.segment, one.offset, one.kind): one for one in made.damage})


class Roller:
    """Rolls one data folder into the lake's tables.

    limits: of one roll; a `roll` makes as many as it takes. Not for threads; several processes may try at once.
    """

    def __init__(
        self,
        data_folder: Path,
        tables: TableStore,
        *,
        limits: Limits | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._data_folder = data_folder
        self._tables = tables
        self._limits = limits or Limits()
        self._now_ns = now_ns

    def roll(self) -> Rolled:
        """Everything that had ended when this was called is in the tables afterwards; running Calls stay behind.

        Costs 15 to 20 us of CPU a Call. Raises: DrivetrainError, NewerRecord; then the tables are as they were, or one
        roll further, and the next call goes on from there.
        """
        try:
            with plans.locked(self._data_folder) as held:
                if not held:
                    return Rolled(number=0, elsewhere=True)
                return self._roll()
        except OSError as error:
            raise DrivetrainError(
                f"The records cannot be rolled into the lake: {error.strerror or error}.",
                looked=[str(plans.plans_folder(self._data_folder))],
                do="See whether the disk is full or read-only. Nothing is lost: what was not rolled is read from the "
                "segments, and the next roll goes on from here.",
            ) from error

    def _roll(self) -> Rolled:
        ledger = plans.make_ledger(self._data_folder)
        before = plans.newest(self._data_folder) or Plan(number=0)
        done = _Done()
        self._finish(ledger, before, done)
        # What is written from now on is for the next roll, or this one would last as long as writers are faster.
        wanted = {segment.name: segment.size for segment in segments(self._data_folder)}
        while True:
            number = before.number + 1
            made = collect(
                self._data_folder,
                before,
                ledger=ledger.id,
                number=number,
                limits=self._limits,
                known=self._known,
                now_ns=self._now_ns(),
            )
            ended = set(made.plan.gone) - set(before.gone)
            if not (made.calls.count or made.outcomes.count or made.plan.dropped or ended or made.more):
                break
            plans.write_plan(self._data_folder, made.plan)
            self._commit(ledger, made)
            done.add(made)
            before = made.plan
            if not made.more or all(before.ends.get(name, 0) >= size for name, size in wanted.items()):
                break
        return Rolled(
            number=before.number,
            rolls=done.rolls,
            calls=done.calls,
            outcomes=done.outcomes,
            problems=tuple(done.problems[place] for place in sorted(done.problems)),
        )

    def _finish(self, ledger: Ledger, plan: Plan, done: _Done) -> None:
        """Do the rolls again that a table lacks: the last one, after a crash; more where a power failure took commits.

        Raises: DrivetrainError where lake and plans do not match.
        """
        reached = rolls_reached(self._tables, ledger)
        there = set(plans.numbers(self._data_folder))
        missing = range(min(reached) + 1, plan.number + 1)
        if max(reached) > plan.number or not there.issuperset(number - 1 for number in missing):
            raise DrivetrainError(
                f"The lake has {min(reached)} rolls of these records, and {plan.number} were made.",
                looked=[str(plans.plans_folder(self._data_folder)), *TABLES],
                do="This is not the lake that they were rolled into, or one of both is an older copy. Restore the lake "
                "and the data folder together, or give back the lake's former address.",
            )
        for number in missing:
            before, upto = (plans.read_plan(self._data_folder, one) for one in (number - 1, number))
            made = collect(self._data_folder, before, ledger=ledger.id, number=number, upto=upto)
            self._commit(ledger, made)
            done.add(made)

    def _commit(self, ledger: Ledger, made: Collected) -> None:
        plan = made.plan
        calls = made.calls.table()
        transaction = (ledger.application, plan.number)
        metadata = {
            "drivetrain.ledger": ledger.id,
            "drivetrain.roll": str(plan.number),
            "drivetrain.ends": JSON.encode(plan.ends).decode(),
        }
        for table, rows, statistics in (
            ("calls", calls, CALL_STATISTICS),
            ("outcomes", made.outcomes.table(), OUTCOME_STATISTICS),
            ("spend", spend_rows(calls, ledger.id, plan.number), SPEND_STATISTICS),
        ):
            self._tables.append(
                table,
                rows,
                transaction=transaction,
                partition_by=PARTITION_BY,
                statistics=statistics,
                metadata=metadata,
            )
        plans.mark_finished(self._data_folder, plan.number, self._now_ns())

    def _known(self, call_ids: Collection[str]) -> list[str]:
        """Those of these Calls that the lake has already: of a Call that was written twice, the first holds."""
        import duckdb

        days = sorted({day for call_id in call_ids for day in _days_of(call_id)})
        everywhere = not all(map(is_call_id, call_ids))
        files = self._tables.files("calls", where=None if everywhere else {"day": days})
        if files is None or not files.paths:
            return []
        with duckdb.connect(":memory:", config={"threads": 1}) as connection:
            found = connection.execute(
                "SELECT call_id FROM read_parquet(?, union_by_name=true) WHERE call_id IN (SELECT unnest(?))",
                [list(files.paths), list(call_ids)],
            ).fetchall()
        return [call_id for (call_id,) in found]


def rolls_reached(tables: TableStore, ledger: Ledger) -> list[int]:
    """The last roll of this ledger that each of `TABLES` has; 0: none."""
    found = [tables.files(table, transactions=[ledger.application]) for table in TABLES]
    return [0 if files is None else max(files.transactions.get(ledger.application, 0), 0) for files in found]


def _days_of(call_id: str) -> list[str]:
    """The days on which a Call with this id may have been opened: its id was made a moment before."""
    if not is_call_id(call_id):
        return []
    made_ns = int(call_id[5:17], 16) * 1_000_000
    return [time.strftime("%Y-%m-%d", time.gmtime(day * 86_400)) for day in _around(made_ns)]


def _around(ns: int) -> range:
    day = ns // NS_PER_DAY
    return range(day - 1, day + 2)
