"""Model workers while the gateway serves: processes of their own, started, watched and replaced by the supervisor.

Owns when one runs, where its socket is, and what it is made of: `python -m drivetrain.gateway.modelling` is a model
worker's process, in which the registry's check of every artifact and the scorers are wired. The supervisor never loads
a model, and a gateway whose project has no trained model never starts one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from drivetrain.ports.sockets import socket_folder

if TYPE_CHECKING:
    from drivetrain.inference.worker import ModelCounts

MODEL_WORKERS = 1
"""Each has one core, and a gateway worker per core is there already."""
LOOK_S = 0.25
"""Between two looks at the model workers; no request waits for one."""
STEADY_S = 10.0
"""One that lived so long ended by chance, and the next is started at once."""
PAUSE_S, PAUSE_S_MAX = 0.1, 5.0
"""Before one is started again: none at first, then `PAUSE_S`, and twice as long each time."""
SILENT_S = 10.0
"""One that has not told its counters for so long is killed: it tells them twice a second."""
START_S = 60.0
"""Until it first tells them: importing its libraries takes about a second on a machine that is not busy."""


def socket_paths(run_folder: Path, count: int = MODEL_WORKERS) -> list[Path]:
    """Where each model worker listens. Raises: DrivetrainError as `socket_folder` does."""
    folder = socket_folder(run_folder)
    return [folder / f"m{index}.sock" for index in range(count)]


class _Place(msgspec.Struct):
    """Of one model worker, and of those that follow it."""

    index: int
    pid: int = 0
    began_s: float = 0.0
    losses: int = 0
    """Those that ended here, one soon after the other."""
    due_s: float = 0.0
    """When the next one may be started."""


class ModelWorkers:
    """The model workers of one gateway, or none."""

    def __init__(
        self,
        run_folder: Path,
        models_folder: Path,
        supervisor_fd: int,
        *,
        count: int = MODEL_WORKERS,
        command: tuple[str, ...] = (sys.executable, "-m", "drivetrain.gateway.modelling"),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """models_folder: the registry's. supervisor_fd: an end of a pipe that is readable once this process is gone."""
        self.wanted = False
        """Whether they are to run: set while the project has a trained model."""
        self._run_folder = run_folder
        self._models_folder = models_folder
        self._supervisor_fd = supervisor_fd
        self._command = command
        self._monotonic = monotonic
        self._places = [_Place(index) for index in range(count)]
        self._look_s = 0.0
        self._ending = False

    @property
    def pids(self) -> list[int]:
        """Those that run."""
        return [place.pid for place in self._places if place.pid]

    def look(self) -> None:
        """Start whoever is due, and kill whoever hangs. Takes a stat per model worker, four times a second."""
        now_s = self._monotonic()
        if now_s < self._look_s or self._ending:
            return
        self._look_s = now_s + LOOK_S
        for place in self._places:
            if place.pid:
                self._watch(place, now_s)
            elif self.wanted and now_s >= place.due_s:
                self._start(place, now_s)

    def ended(self, pid: int, code: int) -> bool:
        """Whether this process was one of them; then another takes its place."""
        place = next((place for place in self._places if place.pid == pid), None)
        if place is None:
            return False
        now_s = self._monotonic()
        place.pid = 0
        place.losses = 1 if now_s - place.began_s >= STEADY_S else place.losses + 1
        place.due_s = now_s + (
            0.0 if place.losses <= 1 else min(PAUSE_S_MAX, PAUSE_S * 2.0 ** min(place.losses - 2, 10))
        )
        self._look_s = min(self._look_s, place.due_s)
        if not self._ending:
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            print(f"drivetrain: model worker {place.index} ended {how}; starting another.", file=sys.stderr)
        return True

    def end(self, signum: int = signal.SIGTERM) -> None:
        """Let them go, after the batch that runs. To be told after the gateway workers have ended their calls."""
        self._ending = True
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def _start(self, place: _Place, now_s: float) -> None:
        place.began_s = now_s
        path = socket_paths(self._run_folder, len(self._places))[place.index]
        arguments = ["--socket", str(path), "--models", str(self._models_folder), "--run", str(self._run_folder)]
        arguments += ["--index", str(place.index), "--supervisor-fd", str(self._supervisor_fd)]
        try:
            process = subprocess.Popen(
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(self._supervisor_fd,),
                # One scoring thread has one core: libraries that start their own would fight for it.
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            )
        except OSError as error:
            print(f"drivetrain: a model worker cannot be started: {error.strerror}.", file=sys.stderr)
            place.due_s = now_s + PAUSE_S_MAX
            return
        place.pid = process.pid
        process.returncode = 0  # the supervisor waits for it, as for its workers

    def _watch(self, place: _Place, now_s: float) -> None:
        try:
            silent_s = time.time() - counts_file(self._run_folder, place.index, place.pid).stat().st_mtime
            limit_s = SILENT_S
        except FileNotFoundError:
            silent_s, limit_s = now_s - place.began_s, START_S
        if silent_s > limit_s:
            print(f"drivetrain: model worker {place.index} has been silent for {limit_s:.0f} s.", file=sys.stderr)
            with contextlib.suppress(ProcessLookupError):
                os.kill(place.pid, signal.SIGKILL)


def counts_file(run_folder: Path, index: int, pid: int) -> Path:
    """Where a model worker leaves its counters: beside the gateway workers', read by the same."""
    return run_folder / f"m{index}-{pid}.metrics"


def publish_counts(path: Path, index: int, counts: dict[str, ModelCounts]) -> None:
    """Replaces a model worker's file, which is read as those of gateway workers are."""
    from drivetrain.gateway.metrics import Published, count_models

    published = Published()
    count_models(published, f"m{index}", counts)
    made = path.with_name(f".{path.stem}.tmp")
    made.write_bytes(msgspec.msgpack.encode(published))
    os.replace(made, path)


def main() -> int:
    """A model worker's process; the exit code."""
    parser = argparse.ArgumentParser(prog="drivetrain.gateway.modelling", description="A model worker.")
    parser.add_argument("--socket", type=Path, required=True, help="the Unix socket to listen on")
    parser.add_argument("--models", type=Path, required=True, help="the registry's folder")
    parser.add_argument("--run", type=Path, required=True, help="the project's run folder")
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--supervisor-fd", type=int, required=True)
    options = parser.parse_args()
    from drivetrain.inference.scorers import open_scorer
    from drivetrain.inference.worker import run_model_worker
    from drivetrain.registry.artifacts import open_artifact

    counts = counts_file(options.run, options.index, os.getpid())
    try:
        run_model_worker(
            options.socket,
            lambda pinned: open_scorer(open_artifact(options.models, pinned), pinned),
            supervisor_fd=options.supervisor_fd,
            publish=lambda told: publish_counts(counts, options.index, told),
        )
    except OSError as error:
        print(f"drivetrain: model worker {options.index}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
