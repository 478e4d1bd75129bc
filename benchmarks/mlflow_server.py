"""The same scikit-learn model behind MLflow's own model server and behind Drivetrain: requests/s and CPU per request.

`python benchmarks/mlflow_server.py --help`. MLflow runs as documented, in `.venvs/mlflow` (`--install` makes
it) and is skipped where that is absent: `mlflow models serve --env-manager local`, one worker, the estimator itself.
Drivetrain serves what `dt.import_model` makes of it, with one worker and a record per Call. Both are asked for the
probabilities of one row, and what both say of every row is compared before anything is measured. Each server has the
first core to itself while its turn lasts; the other one idles. MLflow is asked in both of its forms, and the one in
which it is faster counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import drivetrain as dt
from machine import ROOT, described, first_line, free_port, how_to_get, pins, stay_off_the_target, tool
from mlflow_estimators import ESTIMATORS, LABELS, columns, fitted, rows
from serving_models import (
    Cell,
    Kind,
    Said,
    first_answer,
    measured,
    project_registry,
    serve,
    told,
    typed,
    v2,
    write_project,
)
from targets.target import Running, launch

MLFLOW = ROOT / ".venvs" / "mlflow"
RATE_LEAST, CPU_MOST = 5.0, 1 / 5
"""What is promised at `PROMISED_AT` connections: times its requests/s, and share of its CPU per request."""
PROMISED_AT = 64
DOOR = "typed"
"""Drivetrain's, that the promise is about: one row in, its whole answer out."""


def main() -> int:
    """Measures and prints; 1 where the promise is broken, 2 where wrk is missing."""
    options = _options()
    if options.install:
        _install()
    if not (MLFLOW / "bin" / "mlflow").exists():
        print(f"skipped: MLflow is not in {MLFLOW}; run with --install")
        return 0
    wrk, pinned = tool("wrk"), pins()
    if not wrk:
        print(how_to_get("wrk"), file=sys.stderr)
        return 2
    facts = {**described(), "wrk": first_line(wrk, "-v"), "pinning": pinned.told}
    stay_off_the_target()
    cells: dict[tuple[str, str], Cell] = {}
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.workdir) as place:
        workdir = Path(place)
        facts |= _make_models(workdir)
        _make_project(workdir / "ours")
        for name in options.models:
            with ExitStack() as stack:
                servers = {"drivetrain": serve(workdir / "ours", pinned.target)}
                stack.callback(servers["drivetrain"].stop)
                servers["mlflow"] = _serve_mlflow(workdir, name, pinned.target)
                stack.callback(servers["mlflow"].stop)
                kinds = _kinds(name)
                for (server, _), kind in kinds.items():
                    first_answer(servers[server], kind)
                for number in range(options.rounds):
                    print(f"{name}, round {number + 1} of {options.rounds}", flush=True)
                    order = list(kinds) if number % 2 else list(reversed(kinds))
                    for server, form in order:
                        sample = measured(
                            servers[server], kinds[server, form], wrk, pinned.load,
                            connections=options.connections, seconds=options.seconds,
                        )  # fmt: skip
                        key = name, f"{server} {form}"
                        cells.setdefault(key, Cell(workflow=name, door=key[1])).samples.append(sample)
                        print(f"  {key[1]:26} {told(sample)}", flush=True)
    for fact, value in facts.items():
        print(f"{fact}: {value}")
    print(f"\n{options.connections} connections, {options.rounds} rounds of {options.seconds} s; median of the rounds")
    for (name, form), cell in cells.items():
        figures = (cell.middle("per_second"), cell.middle("cpu_us"), cell.middle("p50_ms"), cell.middle("p99_ms"))
        print("{:8}  {:26}  {:8,.0f}/s  CPU {:7.0f} us  p50 {:6.2f}  p99 {:6.2f} ms".format(name, form, *figures))
    kept: dict[str, bool] = {}
    for name in options.models:
        rate, cpu = _ratios(cells, name)
        print(f"{name}: {rate:.1f} times MLflow's requests/s, {cpu:.3f} of its CPU per request")
        kept[f"{name}: >= {RATE_LEAST:g} times the requests/s"] = rate >= RATE_LEAST
        kept[f"{name}: <= {CPU_MOST:g} of the CPU per request"] = cpu <= CPU_MOST
    if options.connections != PROMISED_AT:
        kept = {}
    for promise, holds in kept.items():
        print(f"{'ok    ' if holds else 'BROKEN'} {promise}")
    if options.json:
        shown = {"machine": facts, "cells": [asdict(one) for one in cells.values()], "kept": kept}
        options.json.write_text(json.dumps(shown, indent=1) + "\n")
    return 0 if all(kept.values()) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mlflow_server.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=int, default=3, help="length of one measurement (default 3)")
    parser.add_argument("--rounds", type=int, default=3, help="times each is measured; the median counts (default 3)")
    parser.add_argument(
        "--connections", type=int, default=PROMISED_AT, help=f"default {PROMISED_AT}; only there the promise is judged"
    )
    parser.add_argument("--models", default=",".join(ESTIMATORS), help=f"of {','.join(ESTIMATORS)} (default all)")
    parser.add_argument("--install", action="store_true", help="make MLflow's environment first; takes minutes")
    parser.add_argument("--workdir", type=Path, help="parent of the working folder (default: the system's)")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args()
    options.models = options.models.split(",")
    if unknown := [name for name in options.models if name not in ESTIMATORS]:
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(ESTIMATORS)}")
    return options


def _install() -> None:
    """MLflow's environment, from `requirements/bench-mlflow.in`."""
    if not (MLFLOW / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(MLFLOW)], check=True)
    pip = [str(MLFLOW / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(ROOT / "requirements" / "bench-mlflow.in")], check=True)


def _environment(workdir: Path) -> dict[str, str]:
    """MLflow's own programs first on the path, nothing told to anybody, and nothing written beside the folder."""
    return {
        "PATH": f"{MLFLOW / 'bin'}:{os.environ['PATH']}",
        "HOME": str(workdir),
        "MLFLOW_TRACKING_URI": f"sqlite:///{workdir / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }


def _make_models(workdir: Path) -> dict[str, str]:
    """MLflow's folders. Versions; asserts that estimators fitted there say what ours say."""
    child = [str(MLFLOW / "bin" / "python"), str(Path(__file__).with_name("mlflow_model.py")), str(workdir)]
    environment = {**os.environ, **_environment(workdir)}
    done = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    made = json.loads(done.stdout.splitlines()[-1])
    for name in ESTIMATORS:
        ours = fitted(name).predict_proba(rows())
        worst = float(abs(ours - made["said"][name]).max())
        assert worst < 1e-9, f"{name} was not fitted the same in both environments: {worst}"
    return {"MLflow": made["mlflow"], "scikit-learn there": made["sklearn"]}


def _make_project(root: Path) -> None:
    """Every estimator by conversion, which compares it with the original on every row that is asked about."""
    write_project(root, list(ESTIMATORS))
    for name in ESTIMATORS:
        made = dt.import_model(
            fitted(name), name, sample=rows(), labels=LABELS, columns=columns(), target="label", project=root
        )
        project_registry(root).move_alias(name, "champion", made.number, reason="benchmark")


def _serve_mlflow(workdir: Path, name: str, pin: Sequence[str]) -> Running:
    port, own = free_port(), workdir / f"serve-{name}"
    own.mkdir()
    command = [MLFLOW / "bin" / "mlflow", "models", "serve", "-m", workdir / name, "--env-manager", "local"]
    return launch(
        [*command, "--host", "127.0.0.1", "--port", port, "--workers", 1],
        port=port, workdir=own, pin=pin, environment=_environment(workdir),
    )  # fmt: skip


def _kinds(name: str) -> dict[tuple[str, str], Kind]:
    """By (server, form): the same row in each request of the same place, and the same answer expected."""
    values: list[list[float]] = rows().tolist()
    probabilities = fitted(name).predict_proba(rows())
    places = probabilities.argmax(axis=1).tolist()
    expected: Said = [
        (LABELS[place], float(chances[place])) for place, chances in zip(places, probabilities, strict=True)
    ]
    inputs = [dict(zip(columns(), row, strict=True)) for row in values]
    forms: dict[str, list[dict[str, Any]]] = {
        "inputs": [{"inputs": [row]} for row in values],
        "dataframe_split": [{"dataframe_split": {"columns": columns(), "data": [row]}} for row in values],
    }
    return {
        ("drivetrain", DOOR): typed(name, inputs, expected),
        ("drivetrain", "v2"): v2(name, inputs, expected, 1),
        **{
            ("mlflow", form): Kind(
                path="/invocations",
                bodies=[json.dumps(one).encode() for one in bodies],
                expected=[[one] for one in expected],
                read=_read_mlflow,
            )
            for form, bodies in forms.items()
        },
    }


def _read_mlflow(answer: bytes) -> Said:
    found: Said = []
    for chances in json.loads(answer)["predictions"]:
        place = max(range(len(chances)), key=chances.__getitem__)
        found.append((LABELS[place], chances[place]))
    return found


def _ratios(cells: dict[tuple[str, str], Cell], name: str) -> tuple[float, float]:
    """(requests/s, CPU per request) of ours over MLflow's in its better form: medians over the rounds."""
    theirs = max(
        (cell for (model, form), cell in cells.items() if model == name and form.startswith("mlflow")),
        key=lambda cell: cell.middle("per_second"),
    )
    pairs = list(zip(cells[name, f"drivetrain {DOOR}"].samples, theirs.samples, strict=True))
    return (
        statistics.median(ours.per_second / one.per_second for ours, one in pairs),
        statistics.median(ours.cpu_us / one.cpu_us for ours, one in pairs),
    )


if __name__ == "__main__":
    sys.exit(main())
