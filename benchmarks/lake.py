"""What the lake costs and how fast it answers: ingest, rolling, size at rest, ten million Calls, and the last second.

    python benchmarks/lake.py [--calls 10000000] [--skip-peers] [--parts ingest,roll,queries,fresh] [--json FILE]

`ingest` writes ready-made Calls through the journal with sync, from one process and from four (see ingest.py). `roll`
rolls such Calls and divides CPU time and the data folder's size by their number, after their segments were deleted.
`queries` makes Calls in the lake's own schema and asks what people ask, each question in a process of its own, beside
the same Calls in SQLite and in plain JSON lines. `fresh` asks for the last second while another process writes 2,000
Calls/s and a roller rolls. Prints Markdown; the exit code is 1 where a promise is missed. Needs nothing but Drivetrain.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import shutil
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

import ingest
from drivetrain.adapters.lake_places import lake_place
from drivetrain.core.ids import call_ids
from drivetrain.lake.columns import CALL_STATISTICS, PARTITION_BY
from drivetrain.lake.lake import Lake
from drivetrain.lake.retention import Keep, maintain
from drivetrain.lake.roller import Roller
from drivetrain.lake.spend import SPEND_STATISTICS, spend_sql
from drivetrain.ledger.journal import FrameJournal

PARTS = ("ingest", "roll", "queries", "fresh")
DAYS = 20
"""That the Calls of `queries` are spread over; each is one file."""
ROLL_CALLS = 200_000
FRESH_CALLS_PER_S = 2_000
FRESH_S = 10.0
ROUNDS = 5

SPEND = "SELECT team, workflow, variant, day, sum(cost_nano_usd) AS cost FROM {} GROUP BY ALL"
LATENCY = "SELECT workflow, quantile_disc(latency_us, [0.5, 0.95, 0.99]) AS p FROM calls GROUP BY ALL"
FRESH = "SELECT team, count(*) AS calls, sum(cost_nano_usd) AS cost FROM calls WHERE opened_ns >= ? GROUP BY team"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number and what is promised of it."""

    part: str
    what: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def kept(self) -> bool:
        """Whether the promise is kept; True where there is none."""
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )

    def row(self) -> str:
        """A line of the table."""
        promise = ""
        if self.at_most is not None:
            promise = f"<= {self.at_most:,g}"
        elif self.at_least is not None:
            promise = f">= {self.at_least:,g}"
        digits = 0 if self.value >= 100 else 1 if self.value >= 10 else 3
        value, missed = f"{self.value:,.{digits}f} {self.unit}", "" if self.kept else "missed"
        return f"| {self.part} | {self.what} | {value} | {promise} | {missed} |"


def ingest_part(parent: Path) -> list[Figure]:
    """Calls/s through the journal, synced."""
    found = []
    for processes, promised in ((1, 150_000), (4, 250_000)):
        rounds = [ingest.measure(processes, 200_000, 1_000, parent) for _ in range(3)]
        speed = statistics.median(one.calls_per_s for one in rounds)
        cpu = statistics.median(one.cpu_s / one.calls for one in rounds) * 1e6
        found.append(Figure(part="ingest", what=f"{processes} writing", value=speed, unit="Calls/s", at_least=promised))
        found.append(Figure(part="ingest", what=f"{processes} writing, CPU", value=cpu, unit="us/Call"))
    return found


def roll_part(parent: Path) -> list[Figure]:
    """CPU per Call from the segments into all three tables, and what a Call takes there."""
    folder = Path(tempfile.mkdtemp(prefix="lake-roll-", dir=parent))
    try:
        tables = lake_place("", {}, folder=folder / "lake", mirror=folder / "mirror").tables
        rolling = Roller(folder, tables)
        _write(folder, 1_000, 1)
        rolling.roll()  # loads the libraries, which takes 0.1 s
        _write(folder, ROLL_CALLS, 2)
        wall, cpu = time.perf_counter(), time.process_time()
        done = rolling.roll()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        assert done.calls == ROLL_CALLS, done
        later = time.time_ns() + 3_600 * 10**9
        tidied = maintain(folder, tables, keep=Keep(), history_s=0, now_ns=lambda: later)
        assert tidied.segments == 2, tidied
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        peak = _peak_mb()
        return [
            Figure(part="roll", what="CPU", value=cpu / ROLL_CALLS * 1e6, unit="us/Call"),
            Figure(part="roll", what="speed", value=ROLL_CALLS / wall, unit="Calls/s"),
            Figure(part="roll", what="peak RSS of the process", value=peak, unit="MB"),
            Figure(part="roll", what="at rest", value=size / (ROLL_CALLS + 1_000), unit="B/Call", at_most=120),
        ]
    finally:
        shutil.rmtree(folder)


def _write(folder: Path, count: int, seed: int) -> None:
    """In a process of its own, so that its memory is not taken for the roller's."""
    process = multiprocessing.get_context("spawn").Process(target=_write_ready, args=(folder, count, seed))
    process.start()
    process.join()
    assert process.exitcode == 0


def _write_ready(folder: Path, count: int, seed: int) -> None:
    ready = ingest.ready_calls(count, seed)
    journal = FrameJournal(folder)
    asyncio.run(ingest.write_calls(journal, ready, len(ready), min(1_000, len(ready))))
    journal.close()


def queries_part(parent: Path, calls: int, peers: bool) -> list[Figure]:
    """What people ask, of many Calls; peers: of SQLite and JSON lines too."""
    folder = Path(tempfile.mkdtemp(prefix="lake-queries-", dir=parent))
    try:
        make_calls(folder, calls, peers)
        scale = calls / 10_000_000
        found = []
        asked: tuple[tuple[str, Callable[[Path], Any], str, float | None], ...] = (
            ("spend by team, workflow, variant, day", ask_calls, "lake, `calls`", 1.0 * scale),
            ("spend by team, workflow, variant, day", ask_spend, "lake, `spend`", None),
            ("p50, p95, p99 by workflow", ask_latency, "lake, `calls`", 0.5 * scale),
            ("spend by team, workflow, variant, day", ask_sqlite_spend, "SQLite", None),
            ("p50, p95, p99 by workflow", ask_sqlite_latency, "SQLite", None),
            ("spend by team, workflow, variant, day", ask_lines_spend, "JSON lines", None),
            ("p50, p95, p99 by workflow", ask_lines_latency, "JSON lines", None),
        )
        answers: dict[str, Any] = {}
        for what, ask, where, most_s in asked[: None if peers else 3]:
            seconds, peak, answer = _apart(ask, folder)
            assert answers.setdefault(what, answer) == answer, f"{where} answers otherwise"
            found.append(Figure(part="queries", what=f"{what}: {where}", value=seconds, unit="s", at_most=most_s))
            limit = 500.0 if most_s is not None and what.startswith("spend") else None
            found.append(Figure(part="queries", what=f"{what}: {where}, RSS", value=peak, unit="MB", at_most=limit))
        return found
    finally:
        shutil.rmtree(folder)


def make_calls(folder: Path, count: int, peers: bool) -> None:
    """Calls with one Attempt in the lake, and the columns that are asked for in SQLite and as JSON lines."""
    import duckdb

    tables = lake_place("", {}, folder=folder / "lake", mirror=folder / "mirror").tables
    database = sqlite3.connect(folder / "calls.db")
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("PRAGMA synchronous = OFF")
    database.execute("CREATE TABLE calls (call_id, day, team, workflow, variant, cost_nano_usd, latency_us)")
    each = count // DAYS
    with duckdb.connect(":memory:", config={"threads": 2}) as connection:
        for day in range(DAYS):
            connection.execute("SELECT setseed(?)", [day / DAYS]).fetchall()
            connection.execute(f"CREATE OR REPLACE TABLE made AS {_made_sql(day, each)}")
            tables.append("calls", connection.sql("FROM made"), partition_by=PARTITION_BY, statistics=CALL_STATISTICS)
            sums = connection.sql(f"SELECT *, '' AS ledger, CAST(1 AS BIGINT) AS roll FROM ({spend_sql('made')})")
            tables.append("spend", sums, partition_by=PARTITION_BY, statistics=SPEND_STATISTICS)
            if not peers:
                continue
            asked = "call_id, CAST(day AS VARCHAR) AS day, team, workflow, variant, cost_nano_usd, latency_us"
            connection.execute(f"COPY (SELECT {asked} FROM made) TO '{folder}/calls-{day:02}.jsonl' (FORMAT json)")
            rows = connection.cursor().execute(f"SELECT {asked} FROM made")
            while some := rows.fetchmany(50_000):
                database.executemany("INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?, ?)", some)
    database.commit()
    database.close()


def _made_sql(day: int, count: int) -> str:
    opened = f"{ingest.START_NS + day * 86_400_000_000_000} + i * {86_400_000_000_000 // count}"
    attempt = (
        "{'variant': variant, 'model': 'openai/' || variant, 'purpose': 'answer', 'verdict': 'accepted', 'reason': '', "
        "'sent_us': CAST(200 AS BIGINT), 'first_byte_us': latency_us // 3, 'ended_us': latency_us - 50, "
        "'status': CAST(200 AS BIGINT), 'input_tokens': input_tokens, 'input_cached_tokens': CAST(0 AS BIGINT), "
        "'cache_write_tokens': CAST(0 AS BIGINT), 'cache_write_1h_tokens': CAST(0 AS BIGINT), "
        "'output_tokens': output_tokens, 'reasoning_tokens': CAST(0 AS BIGINT), 'usage_source': 'reported', "
        "'cost_nano_usd': cost_nano_usd, 'price_source': 'genai-prices', "
        "'provider_request_id': 'chatcmpl-' || hex(CAST(random() * 1e18 AS BIGINT)), 'repaired': false, 'failure': '', "
        "'retry_after_ms': CAST(-1 AS BIGINT), 'streamed': false, 'cached': false, 'saved_nano_usd': CAST(0 AS BIGINT)}"
    )
    return f"""
    WITH drawn AS (
        SELECT {opened} AS opened_ns, i, CAST(200000 + random() * 3800000 AS BIGINT) AS latency_us,
            CAST(50 + random() * 3000 AS BIGINT) AS input_tokens, CAST(10 + random() * 600 AS BIGINT) AS output_tokens,
            CAST(random() * 1000 AS INTEGER) AS dice
        FROM range({count}) r(i)
    ), costed AS (
        SELECT *, input_tokens * 150 + output_tokens * 600 AS cost_nano_usd,
            ['support', 'sales', 'search', 'operations'][1 + dice % 4] AS team,
            ['triage', 'summarize', 'classify', 'answer', 'translate'][1 + dice % 5] AS workflow,
            ['small', 'large', 'rule'][1 + dice % 3] AS variant
        FROM drawn
    )
    SELECT CAST(make_timestamp(opened_ns // 1000) AS DATE) AS day,
        'call_' || printf('%012x', opened_ns // 1000000) || '0123456789' || printf('%08x', i) AS call_id,
        opened_ns, opened_ns + latency_us * 1000 AS closed_ns, latency_us, '0123456789abcdef' AS snapshot, workflow,
        'chat' AS door, false AS stream, 'acme' AS tenant, team, 'tickets' AS use_case, team || '-app' AS "key",
        'user-' || (dice * 7) AS "user", ['env=prod', 'region=eu'] AS tags, '2026-01-01' AS prices_date,
        'answered' AS status, CAST(200 AS BIGINT) AS http_status, variant, 'openai/' || variant AS model, cost_nano_usd,
        CAST(1 AS BIGINT) AS attempt_count, false AS escalated, input_tokens, CAST(0 AS BIGINT) AS input_cached_tokens,
        output_tokens, CAST(0 AS BIGINT) AS reasoning_tokens, '' AS error, 'stop' AS finish_reason, '' AS degraded,
        CAST([] AS VARCHAR[]) AS notes, CAST(0 AS BIGINT) AS retained, CAST(NULL AS BLOB) AS request,
        CAST(NULL AS BLOB) AS answers, '' AS business_key, 'segment' AS segment, 'ledger' AS ledger,
        CAST(1 AS BIGINT) AS roll, CAST(NULL AS STRUCT(service VARCHAR, fingerprint VARCHAR, as_of_ns BIGINT,
        stale VARCHAR[], missing VARCHAR[], sealed BLOB)) AS features, [{attempt}] AS attempts
    FROM costed
    """


def _lake_of(folder: Path) -> Lake:
    return Lake(folder, lake_place("", {}, folder=folder / "lake", mirror=folder / "mirror").tables)


def ask_calls(folder: Path) -> Any:
    """Spend from the Calls themselves."""
    return _sorted(_lake_of(folder).query(SPEND.format("calls")).rows)


def ask_spend(folder: Path) -> Any:
    """Spend from the rollup."""
    return _sorted(_lake_of(folder).query(SPEND.format("spend")).rows)


def ask_latency(folder: Path) -> Any:
    """Exact quantiles."""
    return sorted((workflow, list(p)) for workflow, p in _lake_of(folder).query(LATENCY).rows)


def ask_sqlite_spend(folder: Path) -> Any:
    """The same from SQLite."""
    sql = "SELECT team, workflow, variant, day, sum(cost_nano_usd) FROM calls GROUP BY 1, 2, 3, 4"
    return _sorted(sqlite3.connect(folder / "calls.db").execute(sql).fetchall())


def ask_sqlite_latency(folder: Path) -> Any:
    """SQLite has no quantiles: they are taken of the sorted values."""
    rows = sqlite3.connect(folder / "calls.db").execute("SELECT workflow, latency_us FROM calls ORDER BY 1, 2")
    found: dict[str, list[int]] = {}
    for workflow, latency_us in rows:
        found.setdefault(workflow, []).append(latency_us)
    return sorted((workflow, _quantiles(values)) for workflow, values in found.items())


def ask_lines_spend(folder: Path) -> Any:
    """The same from JSON lines."""
    found: dict[tuple[str, ...], int] = {}
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as lines:
            for line in lines:
                call = json.loads(line)
                key = (call["team"], call["workflow"], call["variant"], call["day"])
                found[key] = found.get(key, 0) + call["cost_nano_usd"]
    return _sorted((*key, cost) for key, cost in found.items())


def ask_lines_latency(folder: Path) -> Any:
    """The same from JSON lines."""
    found: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as lines:
            for line in lines:
                call = json.loads(line)
                found.setdefault(call["workflow"], []).append(call["latency_us"])
    return sorted((workflow, _quantiles(sorted(values))) for workflow, values in found.items())


def _quantiles(values: Sequence[int]) -> list[int]:
    """Nearest rank, as everywhere here."""
    return [values[max(-(-len(values) * percent // 100) - 1, 0)] for percent in (50, 95, 99)]


def _sorted(rows: Any) -> list[tuple[str, ...]]:
    return sorted((*map(str, row[:-1]), str(int(row[-1]))) for row in rows)


def _apart(ask: Callable[[Path], Any], folder: Path) -> tuple[float, float, Any]:
    """Seconds (median of rounds after one that loads libraries and files), peak MB and answer, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_asking, args=(ask, folder, theirs))
    process.start()
    theirs.close()
    said: tuple[float, float, Any] = mine.recv()
    process.join()
    return said


def _asking(ask: Callable[[Path], Any], folder: Path, out: Connection) -> None:
    slow = ask not in (ask_calls, ask_spend, ask_latency)
    times = []
    for _ in range(1 if slow else 1 + ROUNDS):
        start = time.perf_counter()
        answer = ask(folder)
        times.append(time.perf_counter() - start)
    seconds = times[0] if slow else statistics.median(times[1:])
    out.send((seconds, _peak_mb(), answer))


def _peak_mb() -> float:
    """Of this process since it began; `ru_maxrss` would begin with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def fresh_part(parent: Path) -> list[Figure]:
    """A group-by over the last second, again and again, while Calls come in and are rolled."""
    folder = Path(tempfile.mkdtemp(prefix="lake-fresh-", dir=parent))
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    writer = context.Process(target=_writing, args=(folder, stop))
    writer.start()
    ended = threading.Event()
    try:
        tables = lake_place("", {}, folder=folder / "lake", mirror=folder / "mirror").tables
        lake = Lake(folder, tables)

        def keep_rolling() -> None:
            while not ended.wait(3.0):
                Roller(folder, tables).roll()

        rolling = threading.Thread(target=keep_rolling)
        rolling.start()
        time.sleep(3.0)
        times, counts = [], []
        until = time.monotonic() + FRESH_S
        while time.monotonic() < until:
            start = time.perf_counter()
            rows = lake.query(FRESH, [time.time_ns() - 10**9]).rows
            times.append(time.perf_counter() - start)
            counts.append(sum(row[1] for row in rows))
            time.sleep(0.05)
        times.sort()
        return [
            Figure(part="fresh", what="median", value=statistics.median(times) * 1e3, unit="ms", at_most=50),
            Figure(part="fresh", what="p95", value=times[int(len(times) * 0.95)] * 1e3, unit="ms"),
            Figure(
                part="fresh",
                what="Calls of the last second that were seen, median",
                value=statistics.median(counts),
                unit="Calls",
                at_least=FRESH_CALLS_PER_S * 0.5,
            ),
        ]
    finally:
        ended.set()
        rolling.join()
        stop.set()
        writer.join()
        shutil.rmtree(folder)


def _writing(folder: Path, stop: Any) -> None:
    """`FRESH_CALLS_PER_S`, a hundredth of them at a time, as they happen."""
    ready = ingest.ready_calls(1_000, 3)
    next_id = call_ids(time.time_ns)
    journal = FrameJournal(folder)
    some = FRESH_CALLS_PER_S // 100
    due = time.monotonic()
    at = 0
    while not stop.is_set():
        for _ in range(some):
            opened, closed = ready[at % len(ready)]
            at += 1
            call_id, now_ns = next_id(), time.time_ns()
            journal.append(msgspec.structs.replace(opened, call_id=call_id, opened_ns=now_ns))
            journal.append(msgspec.structs.replace(closed, call_id=call_id, closed_ns=now_ns + 1_000_000))
        journal.flush()
        due += 0.01
        time.sleep(max(due - time.monotonic(), 0))
    journal.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where a promise is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--calls", type=int, default=10_000_000, help="Calls of the part `queries`")
    parser.add_argument("--skip-peers", action="store_true", help="ask neither SQLite nor JSON lines")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--folder", type=Path, default=None, help="where to write; the disk that is measured")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    options = parser.parse_args(arguments)
    parts: dict[str, Callable[[], list[Figure]]] = {
        "ingest": lambda: ingest_part(options.folder),
        "roll": lambda: roll_part(options.folder),
        "queries": lambda: queries_part(options.folder, options.calls, not options.skip_peers),
        "fresh": lambda: fresh_part(options.folder),
    }
    figures: list[Figure] = []
    print(f"{options.calls:,} Calls in `queries`.\n\n| part | what | measured | promised | |\n|---|---|---:|---|---|")
    for name in options.parts.split(","):
        for figure in parts[name]():
            figures.append(figure)
            print(figure.row(), flush=True)
    if options.json:
        options.json.write_text(json.dumps([{**asdict(one), "kept": one.kept} for one in figures], indent=2))
    return 0 if all(one.kept for one in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
