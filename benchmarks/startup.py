"""How long Drivetrain takes to import and to give its first answer, and how much disk a fresh install needs.

`python benchmarks/startup.py --help`. The install goes into a temporary environment made from `requirements/run.txt`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from machine import ROOT, Pins, free_port, pins, stay_off_the_target
from run import first_answer
from targets import Drivetrain
from upstream import upstream


def main() -> int:
    """Measures and prints; 2 when Drivetrain is not there."""
    parser = argparse.ArgumentParser(prog="startup.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--times", type=int, default=10, help="times each is measured (default 10)")
    parser.add_argument("--skip-install", action="store_true", help="do not measure the size of a fresh install")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    target = Drivetrain(retention="none")
    if why := target.missing():
        print(why, file=sys.stderr)
        return 2
    pinned = pins()
    stay_off_the_target()
    bare = _timed(options.times, lambda: _python("pass"))
    imported = _timed(options.times, lambda: _python("import drivetrain"))
    answered = _timed_start(target, options.times, pinned)
    facts: dict[str, float] = {
        "python_s": min(bare),
        "import_s_min": min(imported) - min(bare),
        "import_s_median": statistics.median(imported) - statistics.median(bare),
        "first_answer_s_min": min(answered),
        "first_answer_s_median": statistics.median(answered),
    }
    for name, least, middle in (
        ("bare python", min(bare), statistics.median(bare)),
        ("import drivetrain, beyond it", facts["import_s_min"], facts["import_s_median"]),
        ("serve to first answer", min(answered), statistics.median(answered)),
    ):
        print(f"{name:29} {least * 1e3:7.1f} ms min, {middle * 1e3:7.1f} ms median")
    if not options.skip_install:
        facts["install_mb"] = _install_mb()
        print(f"fresh install                 {facts['install_mb']:7.1f} MB of packages")
    if options.json:
        options.json.write_text(json.dumps(facts, indent=1) + "\n")
    return 0


def _timed(times: int, work: Callable[[], None]) -> list[float]:
    """Seconds of each run, after one that fills the disk cache."""
    work()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return taken


def _python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def _timed_start(target: Drivetrain, times: int, pinned: Pins) -> list[float]:
    """Seconds from spawning `drivetrain serve` to its first right answer, each time on a fresh project folder."""
    taken = []
    with ExitStack() as stack:
        workdir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="startup-")))
        up = stack.enter_context(upstream(workdir, pin=pinned.upstream))
        for number in range(times):
            own = workdir / str(number)
            own.mkdir()
            began = time.perf_counter()
            running = target.start(free_port(), up.port, own, pinned.target)
            try:
                first_answer(target, running, up)
                taken.append(time.perf_counter() - began)
            finally:
                running.stop()
    return taken


def _install_mb() -> float:
    """MB (10^6 bytes) that the package and what it needs add to an empty environment, compiled files included."""
    with tempfile.TemporaryDirectory(prefix="install-") as folder:
        venv.create(folder, with_pip=True)
        empty = _size(Path(folder))
        pip = [f"{folder}/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--require-hashes", "-r", str(ROOT / "requirements" / "run.txt")], check=True)
        subprocess.run([*pip, "--no-deps", str(ROOT)], check=True)
        return (_size(Path(folder)) - empty) / 1e6


def _size(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


if __name__ == "__main__":
    sys.exit(main())
