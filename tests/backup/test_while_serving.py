"""A project is backed up while a gateway answers and the roller and the upkeep work; each backup is of one moment."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from backup_world import (
    BUSY,
    Load,
    Said,
    answered,
    answering,
    asked,
    calls_of,
    chat,
    cost_of,
    errors_of,
    other_root,
    run,
    served_again,
    serving,
    settled,
    state,
)

from drivetrain.core.times import NS_PER_S
from drivetrain.embedded.asking import open_lake
from drivetrain.embedded.upkeep import Upkeep
from drivetrain.lake.retention import SEGMENT_GRACE_S, Keep, maintain
from drivetrain.ledger.frames import segments
from drivetrain.ledger.leaving import leave_all
from support import wire
from support.served import Served
from support.tries import PATIENCE_S

pytestmark = pytest.mark.slow
BACKUPS = 3


def order(gateway: Served, key: str, number: int) -> str:
    said = {"customer": f"c{number % 3}", "number": f"A-{number}", "text": "where is it?"}
    return asked(gateway.port, wire.request(said, path="/v1/workflows/refund", key=key)).headers["x-request-id"]


def once(port: int, key: str, name: str = "once") -> None:
    """A Call under an idempotency key, as soon as the gateway knows of the API key and so asks for it."""
    said = {"model": "help", "max_tokens": 50, "messages": [{"role": "user", "content": "Only once."}]}
    deadline = time.monotonic() + PATIENCE_S
    while wire.one(port, wire.request(said)).status != 401 and time.monotonic() < deadline:
        time.sleep(0.1)
    asked(port, wire.request(said, key=key, headers=f"Idempotency-Key: {name}\r\n"))


class Upkeeping(threading.Thread):
    """Rolls and tidies up without a pause, with no time for anything to stay."""

    def __init__(self, root: Path) -> None:
        super().__init__(daemon=True)
        self.rolls = self.deleted = 0
        self.error: BaseException | None = None
        self._root = root
        self._ended = threading.Event()

    def run(self) -> None:
        try:
            while not self._ended.wait(0.02):
                upkeep = Upkeep(self._root)
                leave_all(upkeep.data_folder, PATIENCE_S)
                self.rolls += upkeep.roller().roll().rolls
                done = maintain(
                    upkeep.data_folder,
                    upkeep.tables,
                    keep=Keep(),
                    history_s=0,
                    needed=upkeep._needed,
                    now_ns=lambda: time.time_ns() + 2 * SEGMENT_GRACE_S * NS_PER_S,
                )
                self.deleted += done.segments + done.vacuumed
        except BaseException as error:
            self.error = error
            raise

    def end(self) -> None:
        self._ended.set()
        self.join()
        assert self.error is None


def test_every_backup_under_load_is_of_one_moment(tmp_path: Path) -> None:
    known: list[tuple[set[str], int]] = []
    with serving(code=False) as gateway:
        root = gateway.root
        first = chat(gateway)
        with Load(gateway) as load:
            upkeeping = Upkeeping(root)
            upkeeping.start()
            for number in range(1, BACKUPS + 1):
                before = set(load.answered)
                said = answered("backup", tmp_path / "b", "--with-keys", tmp_path / "k", "--project", root)
                known.append((before, said["generation"]))
                assert said["generation"] == number
                rolls = upkeeping.rolls
                while (upkeeping.rolls == rolls or len(load.answered) == len(before)) and upkeeping.is_alive():
                    time.sleep(0.01)
            while upkeeping.deleted <= 10 and upkeeping.is_alive():
                time.sleep(0.01)
            upkeeping.end()
        in_the_end = calls_of(root)
        assert upkeeping.deleted > 10
        assert not gateway.faults
        files = other_root(root, tmp_path / "files")
    assert len(known[-1][0]) > len(known[0][0])
    for before, number in known:
        new = other_root(files, tmp_path / f"new{number}")
        run("restore", tmp_path / "b", "--generation", str(number), "--keys", tmp_path / "k", "--project", new)
        found = calls_of(new)
        assert before <= set(found) <= set(in_the_end)
        assert first in found
        # Some may have ended with a refusal, where counters did not answer in time; they are as they were, too.
        assert set(errors_of(new).values()) <= {BUSY}
        ended = {call: how for call, how in found.items() if how[0] != "interrupted"}
        assert ended == {call: in_the_end[call] for call in ended}
        assert {how[0] for how in found.values()} <= {"answered", "failed", "interrupted"}
        total = sum(cost for _, cost in found.values())
        assert cost_of(new) == total
        assert settled(new) == {"all/": total, "team/support": total}
        run("audit", "verify", "--project", new)
        run("lake", "roll", "--project", new)
        assert calls_of(new) == found
        assert cost_of(new) == total
        run("calls", "show", first, "--project", new)


def test_everything_is_as_it_was(tmp_path: Path) -> None:
    with serving() as gateway:
        root = gateway.root
        rows = tmp_path / "rows.jsonl"
        rows.write_text('{"customer": "c1", "page": "home"}\n{"customer": "c2", "page": "help"}\n')
        run("features", "push", "clicks", rows, "--project", root)
        key = run("keys", "issue", "app", "--project", root).strip()
        once(gateway.port, key)
        calls = [order(gateway, key, number) for number in range(6)]
        run("lake", "roll", "--project", root)
        run("dataset", "create", "golden", "--from-file", "data/rows.csv", "--project", root)
        outcomes: list[dict[str, Any]] = [
            {"workflow": "refund", "key": "A-1", "metric": "ok", "value": True},
            {"call_id": calls[0], "metric": "stars", "value": 4},
        ]
        body = wire.request(json.dumps(outcomes).encode(), path="/v1/outcomes", key=key)
        assert wire.one(gateway.port, body).status == 200
        run(
            "dataset",
            "create",
            "seen",
            "--from-calls",
            "workflow = 'refund'",
            "--with-outcomes",
            "ok",
            "--project",
            root,
        )
        calls += [order(gateway, key, number) for number in range(6, 9)]
        gateway.stop()
        run("backup", tmp_path / "b", "--with-keys", tmp_path / "k", "--project", root)
        shown = {
            call: answered("calls", "show", call, "--payload", "--project", root) for call in (calls[0], calls[-1])
        }
        before = {**state(root), "more": more(root)}
        new = other_root(root, tmp_path / "new")
    run("restore", tmp_path / "b", "--keys", tmp_path / "k", "--project", new)
    assert {**state(new), "more": more(new)} == before
    assert shown == {call: answered("calls", "show", call, "--payload", "--project", new) for call in shown}
    assert "where is it?" in json.dumps(shown)
    log = [json.loads(line) for line in run("audit", "log", "--project", new, "--json").splitlines()]
    assert log[-1]["kind"] == "restored"
    # It goes on, and knows the key and the answer that was given before.
    with answering() as upstream:
        toml = new / "drivetrain.toml"
        toml.write_text(re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{upstream.port}", toml.read_text()))
        with served_again(new) as port:
            once(port, key)
            assert not upstream.asked
            once(port, key, "twice")
            assert len(upstream.asked) == 1
    assert set(before["calls"]) < set(calls_of(new))


def more(root: Path) -> dict[str, Any]:
    lake = open_lake(root)
    return {
        "golden": lake.query("SELECT * FROM dataset.golden ORDER BY ALL").rows,
        "seen": lake.query("SELECT count(*) FROM dataset.seen").rows,
        "pushed": lake.query("SELECT customer, page FROM push.clicks ORDER BY ALL").rows,
        "verified": [run("dataset", "verify", name, "--project", root) for name in ("golden@1", "seen@1")],
        "online": [answered("features", "get", "seen", f"customer={one}", "--project", root) for one in ("c1", "c9")],
        "keys": run("keys", "list", "--project", root, "--json"),
        "budget": answered("budget", "--project", root),
        "lineage": answered("lineage", "dataset:seen@1", "--project", root),
    }


def test_a_project_that_is_used_is_not_replaced(tmp_path: Path) -> None:
    with serving(code=False) as gateway:
        chat(gateway)
        run("backup", tmp_path / "b", "--project", gateway.root)
        before = calls_of(gateway.root)
        with pytest.raises(Said, match="write to this project's ledger"):
            run("restore", tmp_path / "b", "--replace", "--project", gateway.root)
        assert calls_of(gateway.root) == before
        assert any(one.live for one in segments(gateway.data_folder))
        chat(gateway)
        assert len(calls_of(gateway.root)) == len(before) + 1
