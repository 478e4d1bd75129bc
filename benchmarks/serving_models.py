"""What trained models cost behind the gateway's doors: an empty workflow as the floor, three formats, two protocols.

`python benchmarks/serving_models.py --help`. One gateway with one worker serves four workflows: `empty` (one rule that
always answers), `text` (linear-text, trained on banking77), `table` (boosted trees over twenty columns, as ONNX) and
`trees` (LightGBM in its own format). Each is asked at the typed door and at `/v2` with 1 and with 32 rows, in turn, so
that other work on the machine falls on all of them. Before a cell is measured, answers are compared with what the
scorer says outside the gateway. Then gateways are started with and without the text model, for memory and the time to
a first answer. `mlflow_server.py` measures its cells with the same functions.
"""

from __future__ import annotations

import argparse
import csv
import http.client
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import drivetrain as dt
import load
import process_tree
from drivetrain.core.models import Column, Signature
from drivetrain.core.recipes import Examples, TextClassification
from drivetrain.embedded.modelling import registry_in
from drivetrain.inference.linear_text_files import read_linear_text
from drivetrain.inference.scorers import open_scorer
from drivetrain.registry.store import Draft, Registry
from drivetrain.training.text import train_text
from machine import ROOT, Pins, described, first_line, free_port, how_to_get, pins, stay_off_the_target, tool
from report import BUSY, Sample
from run import ANSWERS_PER_CONNECTION, LONGEST_WINDOW, WARM_UP_S
from shapes import WrongAnswer, ask
from targets.target import Running, launch

DATA = ROOT.parent / "shared" / "data" / "banking77"
EXTRA_MS_MAX = 3.0
"""What p99 at the typed door may be beyond the empty workflow's, of `PROMISED` at `PROMISED_AT` connections."""
PROMISED, PROMISED_AT = ("text", "table"), 16
FLOOR_MS_MAX = 3.0
"""p99 of the empty workflow in a round that counts for the promise; with nothing beside it, it is about 1."""
START_LIMIT_S = 90
BODIES = 500
"""Different requests of each cell, sent in turn; fewer where one has many rows."""
CHECKED = 40
"""Of them, those whose answers are compared before a cell is measured."""
CLOSE = 1e-5
COLUMNS, TRAINED_ROWS = 20, 4_000
DOORS = {"typed": 0, "v2 x1": 1, "v2 x32": 32}
"""Door -> the rows of a request; the typed one takes one input."""
MODELS = ("text", "table", "trees")
UNROLLED = "\n[lake]\nroll_every_s = 86_400\nroll_records = 1_000_000\n"
"""Records of one cell would else be rolled while the next one is measured, on its core and at its cost."""
EMPTY = """import drivetrain as dt


class Ticket(dt.Record):
    text: str


class Route(dt.Record):
    label: str
    confidence: float


empty = dt.Workflow(
    "empty", input=Ticket, output=Route, owner="bench@example.com", team="bench", use_case="bench",
    route=[dt.Rule("always", when=lambda ticket: True, then=Route(label="floor", confidence=1.0))],
)
"""

Said = list[tuple[str, float]]
"""Of each row of an answer: its label and how sure the model is."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Requests of one kind, and what is right for each of them."""

    path: str
    bodies: list[bytes]
    expected: list[Said]
    read: Callable[[bytes], Said]


@dataclass(kw_only=True)
class Cell:
    """What was measured of one workflow at one door."""

    workflow: str
    door: str
    samples: list[Sample] = field(default_factory=list)

    def middle(self, figure: str) -> float:
        """Median over the rounds of a field of `Sample`."""
        return float(statistics.median(getattr(one, figure) for one in self.samples))


def main() -> int:
    """Measures and prints; 1 where the promise is broken, 2 where something is missing."""
    options = _options()
    wrk, pinned = tool("wrk"), pins()
    if not wrk:
        print(how_to_get("wrk"), file=sys.stderr)
        return 2
    if not (options.data / "test.csv").is_file():
        print(f"banking77 is not at {options.data}: say where with --data", file=sys.stderr)
        return 2
    facts = {**described(), "wrk": first_line(wrk, "-v"), "pinning": pinned.told}
    stay_off_the_target()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.workdir) as place:
        workdir = Path(place)
        text_model = options.text_model or workdir / "text"
        every = prepared(workdir / "served", options.data, text_model)
        kinds = {key: kind for key, kind in every.items() if key[1] in options.doors}
        cells = {key: Cell(workflow=key[0], door=key[1]) for key in kinds}
        with ExitStack() as stack:
            running = serve(workdir / "served", pinned.target)
            stack.callback(running.stop)
            for number in range(options.rounds):
                print(f"round {number + 1} of {options.rounds}", flush=True)
                keys = list(kinds)
                for key in keys[number % len(keys) :] + keys[: number % len(keys)]:
                    sample = measured(
                        running, kinds[key], wrk, pinned.load, connections=options.connections, seconds=options.seconds
                    )
                    cells[key].samples.append(sample)
                    print(f"  {key[0]:6} {key[1]:6} {told(sample)}", flush=True)
        starts = _starts(workdir, every, pinned, text_model, options) if options.starts else {}
    for name, value in facts.items():
        print(f"{name}: {value}")
    _tell(cells, options)
    for name, figure in starts.items():
        print(f"{name}: {figure:,.2f}")
    kept = _kept(cells) if options.connections == PROMISED_AT and "typed" in options.doors else {}
    for promise, holds in kept.items():
        print(f"{'ok    ' if holds else 'BROKEN'} {promise}")
    if options.json:
        shown = {"machine": facts, "cells": [asdict(one) for one in cells.values()], "starts": starts, "kept": kept}
        options.json.write_text(json.dumps(shown, indent=1) + "\n")
    return 0 if all(kept.values()) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="serving_models.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=int, default=3, help="length of one measurement (default 3)")
    parser.add_argument("--rounds", type=int, default=3, help="times each is measured; the median counts (default 3)")
    parser.add_argument(
        "--connections", type=int, default=PROMISED_AT, help=f"default {PROMISED_AT}; only there the promise is judged"
    )
    parser.add_argument("--doors", default=",".join(DOORS), help="of 'typed,v2 x1,v2 x32' (default all)")
    parser.add_argument("--starts", type=int, default=3, help="gateways started for memory; 0: none (default 3)")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of banking77")
    parser.add_argument(
        "--text-model", type=Path, help="folder of a linear-text artifact of banking77; made there if it is not yet"
    )
    parser.add_argument("--workdir", type=Path, help="parent of the working folder (default: the system's)")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args()
    options.doors = options.doors.split(",")
    if unknown := [door for door in options.doors if door not in DOORS]:
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(DOORS)}")
    return options


# The project, and what is asked of it.


def prepared(root: Path, data: Path, text_model: Path) -> dict[tuple[str, str], Kind]:
    """Writes and registers everything; the requests by (workflow, door)."""
    write_project(root, MODELS, UNROLLED)
    _write_empty(root)
    registry = project_registry(root)
    _register_text(registry, text_model, data)
    table = _register_tables(registry, root)
    texts = [{"text": text} for text in _questions(data / "test.csv")[0][: BODIES * 2]]
    asked: dict[str, Sequence[Mapping[str, Any]]] = {"empty": texts, "text": texts, "table": table, "trees": table}
    kinds: dict[tuple[str, str], Kind] = {}
    for door, rows in DOORS.items():
        for workflow, inputs in asked.items():
            expected = (
                [("floor", 1.0)] * len(inputs)
                if workflow == "empty"
                else scored(registry, workflow, [list(one.values()) for one in inputs])
            )
            kinds[workflow, door] = v2(workflow, inputs, expected, rows) if rows else typed(workflow, inputs, expected)
    return kinds


def write_project(root: Path, models: Sequence[str], more: str = "") -> None:
    """An open project that serves these models by their names, keeping no inputs. more: of its settings."""
    root.mkdir()
    listed = ", ".join(f'"models:/{name}@champion"' for name in models)
    (root / "drivetrain.toml").write_text(
        f'[project]\nname = "bench"\n\n[gateway]\ndirect_models = [{listed}]\n\n[ledger]\nretention = "none"\n{more}'
    )


def project_registry(root: Path) -> Registry:
    """Of a project with its folders where they are by default."""
    return registry_in(root / ".drivetrain" / "data", root / ".drivetrain" / "keys")


def scored(registry: Registry, name: str, rows: Sequence[list[Any]]) -> Said:
    """What the scorer says of rows, with no gateway around it."""
    pinned = registry.resolve(f"models:/{name}@champion")
    return [
        (one.label or one.fault, one.confidence or 0.0)
        for one in open_scorer(registry.open(pinned), pinned).score(rows)
    ]


def typed(name: str, inputs: Sequence[Mapping[str, Any]], expected: Said) -> Kind:
    """One input per request at the typed door."""

    def read(answer: bytes) -> Said:
        output = json.loads(answer)["output"]
        return [(output["label"], output["confidence"])]

    chosen = inputs[:BODIES]
    return Kind(
        path=f"/v1/workflows/{name}",
        bodies=[json.dumps(one).encode() for one in chosen],
        expected=[[one] for one in expected[: len(chosen)]],
        read=read,
    )


def v2(name: str, inputs: Sequence[Mapping[str, Any]], expected: Said, rows: int) -> Kind:
    """So many rows per request at the Open Inference Protocol's door."""

    def read(answer: bytes) -> Said:
        tensors = {one["name"]: one["data"] for one in json.loads(answer)["outputs"]}
        return list(zip(tensors["label"], tensors["confidence"], strict=True))

    bodies, right = [], []
    for number in range(min(BODIES, len(inputs) // rows)):
        start = number * rows
        chosen = inputs[start : start + rows]
        tensors = [
            {
                "name": column,
                "datatype": "BYTES" if isinstance(chosen[0][column], str) else "FP64",
                "shape": [rows],
                "data": [one[column] for one in chosen],
            }
            for column in chosen[0]
        ]
        bodies.append(json.dumps({"inputs": tensors}).encode())
        right.append(expected[start : start + rows])
    return Kind(path=f"/v2/models/{name}/infer", bodies=bodies, expected=right, read=read)


def _write_empty(root: Path) -> None:
    (root / "workflows").mkdir()
    (root / "workflows" / "empty.py").write_text(EMPTY)


def _register_text(registry: Registry, saved: Path, data: Path) -> None:
    """The text model, from this folder; trained and put there first where it is not yet."""
    if not saved.is_dir():
        texts, labels = _questions(data / "train.csv")
        began = time.perf_counter()
        files = train_text(
            Examples(columns={"text": texts}, labels=labels),
            TextClassification(),
            text="text",
            label="label",
            seed=0,
            progress=lambda _stage, _share: None,
        ).files
        print(f"trained on {len(texts):,} texts in {time.perf_counter() - began:.0f} s", flush=True)
        saved.mkdir(parents=True)
        for name, content in files.items():
            (saved / name).write_bytes(content)
    labels_known = read_linear_text(saved).labels
    signature = Signature(
        task="classification", inputs=(Column(name="text", dtype="text"),), target="label", labels=labels_known
    )
    stored = {one.name: one for one in saved.iterdir()}
    made = registry.register(Draft(name="text", format="linear-text", signature=signature, files=stored))
    registry.move_alias("text", "champion", made.number, reason="benchmark")


def _register_tables(registry: Registry, root: Path) -> list[dict[str, float]]:
    """Both tabular models, by conversion; the rows that they are asked about."""
    from lightgbm import LGBMClassifier
    from sklearn.ensemble import GradientBoostingClassifier

    dice = np.random.default_rng(7)
    values = dice.normal(size=(TRAINED_ROWS + BODIES * 2, COLUMNS)).round(4)
    truth = (values[:, :5].sum(axis=1) + values[:, 5] * values[:, 6] + dice.normal(size=len(values)) > 0).astype(int)
    names = [f"x{number}" for number in range(COLUMNS)]
    sample = values[TRAINED_ROWS:]
    for name, estimator in (
        ("table", GradientBoostingClassifier(n_estimators=100, max_depth=3, random_state=0)),
        ("trees", LGBMClassifier(n_estimators=100, num_leaves=15, random_state=0, n_jobs=1, verbose=-1)),
    ):
        estimator.fit(values[:TRAINED_ROWS], truth[:TRAINED_ROWS])
        made = dt.import_model(
            estimator, name, sample=sample, labels=("no", "yes"), columns=names, target="label", project=root
        )
        registry.move_alias(name, "champion", made.number, reason="benchmark")
    return [dict(zip(names, row, strict=True)) for row in sample.tolist()]


def _questions(file: Path) -> tuple[list[str], list[str]]:
    """(texts, intents)"""
    with file.open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    return [row["text"] for row in rows], [row["category"] for row in rows]


# Measuring; also called by `mlflow_server.py`.


def serve(root: Path, pin: Sequence[str]) -> Running:
    """`drivetrain serve` with one worker; it need not listen yet."""
    port = free_port()
    beside = Path(sys.executable).with_name("drivetrain")
    script = beside if beside.exists() else ROOT / ".venv" / "bin" / "drivetrain"
    command = [script, "serve", "--project", root, "--host", "127.0.0.1", "--port", port, "--workers", 1]
    return launch(command, port=port, workdir=root, pin=pin)


def first_answer(running: Running, kind: Kind) -> float:
    """Seconds until the first right answer.

    Raises: what `ask` raises, when there is none in time or the process ended.
    """
    began = time.monotonic()
    while True:
        try:
            check(running, kind, 1)
            return time.monotonic() - began
        except (WrongAnswer, OSError, http.client.HTTPException):
            if time.monotonic() - began > START_LIMIT_S or running.process.poll() is not None:
                print(running.log_tail(), file=sys.stderr)
                raise
            time.sleep(0.005)


def measured(running: Running, kind: Kind, wrk: str, pin: Sequence[str], *, connections: int, seconds: int) -> Sample:
    """One round of one cell, once its answers were right. Raises: WrongAnswer where one is not, or is an error."""
    first_answer(running, kind)
    url = f"http://127.0.0.1:{running.port}{kind.path}"
    lua = running.workdir / "load.lua"
    lua.write_text(load.script(kind.bodies, {"Content-Type": "application/json"}))
    size = check(running, kind, CHECKED)
    warm = load.run(wrk, url, lua, connections=connections, seconds=WARM_UP_S, pin=pin)
    # What is in flight at the end is paid for and not counted, so a slow server gets a longer window.
    wanted_s = ANSWERS_PER_CONNECTION * connections / max(warm.per_second, 0.1)
    seconds = math.ceil(min(max(seconds, wanted_s), LONGEST_WINDOW * seconds))
    before = process_tree.cpu_us(running.process.pid)
    seen = load.run(wrk, url, lua, connections=connections, seconds=seconds, pin=pin)
    spent = process_tree.cpu_us(running.process.pid) - before
    if seen.errors or not seen.requests or seen.answer_bytes / seen.requests < 0.9 * size:
        raise WrongAnswer(f"{kind.path}: {seen.requests} answers, errors {seen.errors}, {seen.answer_bytes} B in all")
    return Sample(
        cpu_us=spent / seen.requests,
        cpu_share=spent / (seen.seconds * 1e6),
        requests=seen.requests,
        per_second=seen.per_second,
        p50_ms=seen.p50_ms,
        p99_ms=seen.p99_ms,
    )


def told(sample: Sample) -> str:
    """One round in one line."""
    return (
        f"{sample.per_second:8,.0f}/s  p50 {sample.p50_ms:7.2f}  p99 {sample.p99_ms:7.2f} ms  "
        f"CPU {sample.cpu_us:8.1f} us  core {sample.cpu_share:.0%}"
    )


def check(running: Running, kind: Kind, count: int) -> int:
    """Mean size of an answer's body. Raises: WrongAnswer and what `ask` raises."""
    sizes = []
    for body, right in list(zip(kind.bodies, kind.expected, strict=True))[:count]:
        answer = ask(f"http://127.0.0.1:{running.port}{kind.path}", {}, body)
        said = kind.read(answer)
        same = len(said) == len(right) and all(
            label == wanted and math.isclose(sure, share, abs_tol=CLOSE)
            for (label, sure), (wanted, share) in zip(said, right, strict=True)
        )
        if not same:
            raise WrongAnswer(f"{kind.path} said {said[:3]}, expected {right[:3]}")
        sizes.append(len(answer))
    return int(statistics.mean(sizes))


# Memory and starts.


def _starts(
    workdir: Path, kinds: Mapping[tuple[str, str], Kind], pinned: Pins, text_model: Path, options: argparse.Namespace
) -> dict[str, float]:
    """Memory of the gateway worker, and seconds to a first answer, without a model and with the text model alone."""
    found: dict[str, float] = {}
    for name, workflow in (("without a model", "empty"), ("with linear-text", "text")):
        root = workdir / f"only-{workflow}"
        write_project(root, ("text",) if workflow == "text" else ())
        if workflow == "text":
            _register_text(project_registry(root), text_model, options.data)
        else:
            _write_empty(root)
        seconds, resident = [], []
        for _ in range(options.starts):
            with ExitStack() as stack:
                began = time.monotonic()
                running = serve(root, pinned.target)
                stack.callback(running.stop)
                first_answer(running, kinds[workflow, "typed"])
                seconds.append(time.monotonic() - began)
                check(running, kinds[workflow, "typed"], BODIES)
                resident.append(process_tree.memory(running.process.pid)[1].rss_mb)
        found[f"seconds from serve to a first answer, {name}"] = statistics.median(seconds)
        found[f"MB resident of the gateway worker after {BODIES} answers, {name}"] = statistics.median(resident)
    return found


# What is told.


def _tell(cells: Mapping[tuple[str, str], Cell], options: argparse.Namespace) -> None:
    print(f"\n{options.connections} connections, {options.rounds} rounds of {options.seconds} s; median of the rounds")
    print("workflow  door    requests/s   p50 ms   p99 ms   CPU us   p99 beyond empty, by round")
    for (workflow, door), cell in cells.items():
        rounds = [] if workflow == "empty" else _beyond(cells, workflow, door)
        figures = (cell.middle("p50_ms"), cell.middle("p99_ms"), cell.middle("cpu_us"))
        shown = "  ".join(f"{figure:7.2f}" for figure in figures) + "   " + " ".join(f"{one:+.2f}" for one in rounds)
        print(f"{workflow:8}  {door:6}  {cell.middle('per_second'):10,.0f}  {shown}")
    print()


def _beyond(cells: Mapping[tuple[str, str], Cell], workflow: str, door: str, *, calm: bool = False) -> list[float]:
    """Milliseconds of p99 beyond the empty workflow's in the same round.

    calm: only rounds in which the gateway had its core to itself and the floor was none of somebody else's making.
    """
    return [
        one.p99_ms - floor.p99_ms
        for one, floor in zip(cells[workflow, door].samples, cells["empty", door].samples, strict=True)
        if not calm or (floor.p99_ms <= FLOOR_MS_MAX and min(floor.cpu_share, one.cpu_share) >= BUSY)
    ]


def _kept(cells: Mapping[tuple[str, str], Cell]) -> dict[str, bool]:
    """Each promise, and whether it was shown to hold: rounds that others disturbed show neither."""
    kept = {}
    rounds = len(cells["empty", "typed"].samples)
    for workflow in PROMISED:
        calm = _beyond(cells, workflow, "typed", calm=True)
        if 2 * len(calm) > rounds:
            shown = f"{statistics.median(calm):+.2f} ms in {len(calm)} calm rounds of {rounds}"
        else:
            shown = f"not shown, only {len(calm)} of {rounds} rounds were calm"
        kept[f"p99 of `{workflow}` <= {EXTRA_MS_MAX:g} ms beyond `empty`: {shown}"] = (
            2 * len(calm) > rounds and statistics.median(calm) <= EXTRA_MS_MAX
        )
    return kept


if __name__ == "__main__":
    sys.exit(main())
