"""A project with limits, `drivetrain budget` on it, and a worker that spends under them and writes the ledger."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from typer.testing import CliRunner

from drivetrain.adapters.sqlite import SqliteControlLog, open_control_log
from drivetrain.adapters.sqlite_control_feed import open_control_feed
from drivetrain.adapters.sqlite_counters import SqliteCounters
from drivetrain.cli.budget import app
from drivetrain.core.calls import AttemptV1, Attribution, ClosedV1, OpenedV1
from drivetrain.core.ids import call_ids
from drivetrain.core.limits import Limit, Refusal
from drivetrain.core.money import NANO_PER_USD
from drivetrain.embedded.limit_watch import LimitWatch
from drivetrain.ledger.journal import FrameJournal
from drivetrain.limits.leasing import Limits
from drivetrain.limits.slices import Hold, Waiter
from drivetrain.ports.control import ControlRecord
from support.projects import model, provider, settings, workflow
from support.tries import PATIENCE_S

T = TypeVar("T")
CENT = NANO_PER_USD // 100
RULE = '{ rule = "all", matches = ".", answer = "by rule" }'
TABLES = """
[limits.all]
scope = "project"
usd = "10"
per = "month"
zone = "Europe/Berlin"

[limits.support]
scope = "team:support"
usd = "2"
per = "day"

[limits.person]
scope = "each user"
usd = "1"
per = "month"

[limits.customer]
scope = "each tag:customer"
usd = "5"
per = "week"
mode = "soft"

[limits.pace]
scope = "project"
requests = 600
per = "minute"

[limits.gate]
scope = "project"
concurrent = 20
"""


class Said:
    """What a command said."""

    def __init__(self, stdout: str, stderr: str) -> None:
        self.stdout, self.stderr = stdout, stderr

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


class Project:
    """Its folder and its commands."""

    def __init__(self, root: Path, tables: str = TABLES) -> None:
        self.root = root
        self.data = root / ".drivetrain" / "data"
        self.declare(tables)

    def declare(self, tables: str) -> None:
        """Write drivetrain.toml."""
        self.root.mkdir(parents=True, exist_ok=True)
        parts = [provider("far", "http://127.0.0.1:9/v1"), model("far/m"), "[teams.support]\n[teams.sales]\n"]
        text = settings(tables="".join([*parts, workflow("help", RULE, "far/m"), tables]))
        (self.root / "drivetrain.toml").write_text(text)

    @property
    def limits(self) -> dict[str, Limit]:
        from drivetrain.project.load import load

        return dict(load(self.root).limits)

    @property
    def log(self) -> SqliteControlLog:
        return open_control_log(self.data, self.root / ".drivetrain" / "keys")

    def logged(self) -> list[ControlRecord]:
        return [one for one in self.log.records() if one.kind.startswith("budget.")]

    def run(self, *arguments: str, code: int = 0) -> Said:
        groups = {"show", "set", "top-up", "reset", "burn"}
        named = ["--project", str(self.root)]
        given = [*arguments, *named] if set(arguments) & groups else [*named, *arguments]
        result = CliRunner().invoke(app, given)
        assert result.exit_code == code, f"{given}: {result.stdout}{result.stderr}{result.exception!r}"
        return Said(result.stdout, result.stderr)

    def account(self, name: str, value: str = "") -> dict[str, Any]:
        """One account as `budget show --json` has it."""
        found = self.run("show", name, "--json").json["accounts"]
        return dict(next(one for one in found if value in ("", one["value"])))

    def worker(self, name: str, loop: asyncio.AbstractEventLoop) -> Spender:
        return Spender(self, name, loop)


class Spender:
    """A worker: limits that follow the control log, and a ledger."""

    def __init__(self, project: Project, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self.watch = LimitWatch(project.limits, open_control_feed(project.data))
        self.limits = Limits(
            self.watch.limits, SqliteCounters(project.data / "limits"), worker=name, loop=loop,
            recall_ms=5_000, wait_ms=10_000,
        )  # fmt: skip
        self.watch.start(self.limits.use, loop)
        self.journal = FrameJournal(project.data, writer=name)
        self._next_id = call_ids(time.time_ns)

    async def spend(self, who: Attribution, worst: int, cost: int) -> Refusal | None:
        """One Call through a single attempt; the refusal where there is one."""
        opened_ns = time.time_ns()
        hold = await _heard(lambda then: self.limits.admit(who, "help", opened_ns, then))
        if isinstance(hold, Refusal):
            return hold
        assert isinstance(hold, Hold)
        refused = await _heard(lambda then: self.limits.reserve(hold, worst, 0, then))
        if refused is None:
            call_id = self._next_id()
            self._write(OpenedV1(call_id, opened_ns, "0123456789abcdef", "help", "chat", False, who))
            self._write(hold.frame(call_id))
            self.limits.settle(hold, cost, 0)
            attempt = AttemptV1(
                variant="v", model="far/m", purpose="answer", verdict="accepted", status=200, cost_nano_usd=cost
            )
            self._write(ClosedV1(call_id, time.time_ns(), "answered", 200, "v", cost, (attempt,)))
        self.limits.close_hold(hold)
        assert refused is None or isinstance(refused, Refusal)
        return refused

    async def close(self) -> None:
        self.watch.close()
        await self.limits.close()
        self.journal.close()

    def _write(self, record: Any) -> None:
        self.journal.append(record, lambda _: None)
        self.journal.flush()


async def _heard(ask: Callable[[Callable[[Any], None]], Any]) -> Any:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    taken = ask(future.set_result)
    return await future if type(taken) is Waiter else taken


def run(story: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async def all_of_it() -> T:
        return await asyncio.wait_for(story(), 4 * PATIENCE_S)

    return asyncio.run(all_of_it())


async def comes(is_so: Callable[[], bool]) -> float:
    """Waits until `is_so`; the seconds that this took."""
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < PATIENCE_S, "it never comes"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


def who(user: str = "ann", *tags: str, team: str = "support") -> Attribution:
    return Attribution("acme", team, "tickets", "key-1", user, tags)
