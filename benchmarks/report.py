"""What was measured, and how it reads: records, medians, the Markdown tables, `RESULTS.md`.

Takes no measurement. Called by `run.py`.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from process_tree import ProcessMemory
from shapes import SHAPES

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"
APART = "## Measured apart\n"

RATIO_CONNECTIONS = 16
"""Connections at which targets are compared in the ratio table (or the nearest that was measured)."""

BUSY = 0.85
"""A target that used less of its core than this was not what limited the throughput."""

IN_FLIGHT = 0.05
"""Share of a window's answers that may be in flight at its end without a word about it."""

NOTES = """\
- CPU is user and system time of the target's whole process tree, divided by answers read to their end. It is the figure
  to compare: it does not depend on what limited the throughput. Requests/s do: where the target's core was less than
  {busy:.0%} busy ("core"), the load generator or the upstream was the limit, and the target could have done more.
- "range" is the smallest and largest of the rounds. Differences inside it mean nothing. Other work on the same machine
  shows here first.
- Loopback, plain HTTP, canned answers: the network, TLS and the model's own time are absent. A model takes hundreds of
  milliseconds; these are the microseconds that a gateway adds to the bill of its machine.
- The targets do different amounts of work for a request, as the table of targets says. nginx does almost none of it and
  is here as the floor. Drivetrain writes a record of every Call before its answer leaves; the peers ran without their
  databases, so they keep none.
- Events of streams reach the target one by one, round-robin over the open streams{gap}. A target that is slower sees
  more events per read, which flatters it. `--event-gap-us 1000` paces them as a fast model would.
- What is in flight at the end of a window was paid for and is not counted. Windows are lengthened so that this is at
  most 5 % of the answers{overstated}.
- Under "stream" TensorZero's latency is about 40 ms because its embedded server leaves Nagle's algorithm on (no
  TCP_NODELAY on what it accepts). Its events leave in fewer, larger writes, which lowers its CPU per event.
- The peers ran as their documentation says, with one worker and without access logs or telemetry, in the newest version
  that this machine's package index could install.
- Memory is the sum of the processes' peaks; pages that they share count more than once. TensorZero's includes an idle
  Python, because its standalone binary comes as a container image only. Every start was on one core."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One round of one cell."""

    cpu_us: float
    """CPU microseconds of the process tree per answer."""
    cpu_share: float
    """Share of one core that the tree used."""
    requests: int
    """Answers read to their end."""
    per_second: float
    """Answers per second."""
    p50_ms: float
    """Median latency."""
    p99_ms: float
    """99th percentile of latency."""


@dataclass(kw_only=True)
class Cell:
    """One target under one shape at one number of connections."""

    target: str
    """Its name."""
    shape: str
    """Name of the shape."""
    connections: int
    """Connections of the load generator."""
    events: int
    """What CPU per request is divided by in the table: 1, or the events of a stream."""
    samples: list[Sample] = field(default_factory=list)
    """One per round."""
    invalid: str | None = None
    """Why no figure of this cell may be used."""

    def median(self, name: str) -> float:
        """The median of a Sample's field over the rounds."""
        return float(statistics.median(getattr(sample, name) for sample in self.samples))

    @property
    def usable(self) -> bool:
        """Whether it has figures and may be used."""
        return bool(self.samples) and not self.invalid

    @property
    def cpu_us(self) -> float:
        """CPU microseconds per answer, or per event of a stream."""
        return self.median("cpu_us") / self.events

    def told(self) -> str:
        """The last sample in one line."""
        start = f"{self.target:17} {self.shape:6} c={self.connections:<3}"
        if self.invalid:
            return f"{start} INVALID: {self.invalid}"
        last = self.samples[-1]
        cost = f"{last.cpu_us / self.events:9.1f} us {last.per_second:9.0f}/s"
        return f"{start} {cost} p50 {last.p50_ms:.2f} p99 {last.p99_ms:.2f} ms"


@dataclass(kw_only=True)
class TargetFacts:
    """What is true of a target whatever it is asked."""

    name: str
    """Its name."""
    told: str
    """What it does for a request."""
    version: str
    """What was installed."""
    start_s: list[float] = field(default_factory=list)
    """From spawning it to its first right answer, per round."""
    memory: list[list[ProcessMemory]] = field(default_factory=list)
    """Its processes after the last cell, per round."""
    invalid: str | None = None
    """Why it was not measured."""

    @property
    def peak_mb(self) -> float:
        """Median over the rounds of the sum of its processes' peaks."""
        return statistics.median(sum(process.peak_mb for process in tree) for tree in self.memory)


@dataclass(frozen=True, kw_only=True)
class Result:
    """Everything one run found out."""

    machine: dict[str, str]
    """CPU, cores, kernel."""
    tools: dict[str, str]
    """Load generator, upstream, pinning."""
    command: str
    """How to run it again."""
    settings: str
    """Rounds and seconds, in words."""
    event_gap_us: int
    """Pace of the upstream's streams."""
    targets: list[TargetFacts]
    """In the order of the tables."""
    cells: list[Cell]
    """All shapes and connections."""
    when: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
    """End of the run."""

    def as_json(self) -> dict[str, object]:
        """For `--json`."""
        return dataclasses.asdict(self)

    def find(self, target: str, shape: str, connections: int) -> Cell | None:
        """A usable cell."""
        wanted = (target, shape, connections)
        return next(
            (cell for cell in self.cells if (cell.target, cell.shape, cell.connections) == wanted and cell.usable), None
        )


def rendered(result: Result) -> str:
    """The tables, as Markdown that also reads well in a terminal."""
    names = [fact.name for fact in result.targets]
    parts = []
    for shape in SHAPES.values():
        cells = [cell for cell in result.cells if cell.shape == shape.name]
        if not cells:
            continue
        cells.sort(key=lambda cell: (cell.connections, names.index(cell.target)))
        unit = "CPU us/event" if shape.stream else "CPU us"
        heads = ["target", "connections", unit, "range", "x nginx", "requests/s", "p50 ms", "p99 ms", "core"]
        parts.append(f"### {shape.name}: {shape.told}\n\n" + _table(heads, (_row(result, cell) for cell in cells)))
    parts.append("### CPU compared\n\n" + _ratios(result))
    heads = ["target", "start s", "peak MB", "processes (peak MB)"]
    parts.append("### Start and memory\n\n" + _table(heads, (_facts_row(fact) for fact in result.targets)))
    return "\n\n".join(parts)


def write_results(result: Result) -> Path:
    """Writes `RESULTS.md` and returns its path."""
    machine = _table(
        ["machine", ""], ([name, value] for name, value in (result.machine | result.tools).items() if value)
    )
    targets = _table(
        ["target", "version", "what it does for a request"], ([t.name, t.version, t.told] for t in result.targets)
    )
    gap = f", at most one per {result.event_gap_us} us and stream" if result.event_gap_us else " and without a pause"
    invalid = [f"- {cell.told()}" for cell in result.cells if cell.invalid]
    invalid += [f"- {fact.name}: {fact.invalid}" for fact in result.targets if fact.invalid]
    RESULTS.write_text(
        f"# Results\n\nWritten by `{result.command}` on {result.when}: {result.settings}, median of the rounds.\n"
        f"`README.md` says how it is measured.\n\n{machine}\n\n{targets}\n\n{rendered(result)}\n\n"
        + ("## Invalid\n\n" + "\n".join(invalid) + "\n\n" if invalid else "")
        + f"## How to read this\n\n{NOTES.format(busy=BUSY, gap=gap, overstated=_overstated(result))}\n"
        + _apart()
    )
    return RESULTS


def _apart() -> str:
    """What other benchmarks found, written by hand; it stays when the tables are written anew."""
    before = RESULTS.read_text() if RESULTS.exists() else ""
    _, found, kept = before.partition(APART)
    return f"\n{found}{kept}" if found else ""


def _overstated(result: Result) -> str:
    """The cells whose windows could not be made long enough, and by how much their CPU may be too high."""
    shares = [(cell, cell.connections / cell.median("requests")) for cell in result.cells if cell.usable]
    told = [
        f"{cell.target} {cell.shape} at {cell.connections} {share:.0%}" for cell, share in shares if share > IN_FLIGHT
    ]
    return f", except for {', '.join(told)} at most" if told else ""


def _row(result: Result, cell: Cell) -> list[str]:
    start = [cell.target, str(cell.connections)]
    if not cell.usable:
        return [*start, "invalid", "", "", "", "", "", ""]
    per = [sample.cpu_us / cell.events for sample in cell.samples]
    floor = result.find("nginx", cell.shape, cell.connections)
    return [
        *start,
        _short(cell.cpu_us),
        f"{_short(min(per))}-{_short(max(per))}",
        f"{cell.cpu_us / floor.cpu_us:.1f}" if floor else "",
        f"{cell.median('per_second'):,.0f}",
        f"{cell.median('p50_ms'):.2f}",
        f"{cell.median('p99_ms'):.2f}",
        f"{min(cell.median('cpu_share'), 1):.0%}",
    ]


def _ratios(result: Result) -> str:
    """Every target's CPU as a multiple of nginx's and of each mode of Drivetrain."""
    measured = sorted({cell.connections for cell in result.cells}, key=lambda number: abs(number - RATIO_CONNECTIONS))
    if not measured:
        return "Nothing was measured."
    at = measured[0]
    bases = [fact.name for fact in result.targets if fact.name == "nginx" or fact.name.startswith("drivetrain")]
    shapes = [shape for shape in SHAPES.values() if any(cell.shape == shape.name for cell in result.cells)]
    heads = [f"at {at} connections", *(f"{shape.name} / {base}" for shape in shapes for base in bases)]
    rows = []
    for fact in result.targets:
        row = [fact.name]
        for shape in shapes:
            mine = result.find(fact.name, shape.name, at)
            for base in bases:
                other = result.find(base, shape.name, at)
                row.append(_short(mine.cpu_us / other.cpu_us) if mine and other else "")
        rows.append(row)
    return _table(heads, rows)


def _facts_row(fact: TargetFacts) -> list[str]:
    if not fact.start_s or not fact.memory:
        return [fact.name, "invalid", "", ""]
    processes = ", ".join(f"{process.command} {process.peak_mb:.0f}" for process in fact.memory[-1])
    return [fact.name, f"{statistics.median(fact.start_s):.2f}", f"{fact.peak_mb:.0f}", processes]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    listed = [list(heads), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in listed) for column in range(len(heads))]
    texts = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in listed
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([texts[0], rule, *texts[1:]])


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}"
