"""How far a training is: a bar where somebody looks at a terminal, else one line for each stage.

Recipes report (stage, share of the whole from 0 to 1) and know nothing of terminals. Called by the command line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

Progress = Callable[[str, float], None]

LINE_STEP = 0.1
"""Without a terminal a stage that goes on is told again after so much of the whole: a log stays short."""


def silent(stage: str, share: float) -> None:
    """Tells nobody."""


@contextmanager
def progress_on(stream: TextIO | None = None, *, name: str = "") -> Iterator[Progress]:
    """A callback that shows itself on `stream`, by default standard error, so that standard output stays the result's.

    A bar leaves nothing behind where the training fails; what was printed as lines stands.
    """
    shown_on = sys.stderr if stream is None else stream
    if shown_on.isatty():
        with _bar(shown_on, name) as show:
            yield show
    else:
        yield _lines(shown_on, name)


@contextmanager
def _bar(stream: TextIO, name: str) -> Iterator[Progress]:
    from rich import progress as rich
    from rich.console import Console

    said = rich.TextColumn("{task.description}", markup=False)
    columns = (said, rich.BarColumn(), rich.TaskProgressColumn(), rich.TimeElapsedColumn())
    with rich.Progress(*columns, console=Console(file=stream), transient=True) as bars:
        task = bars.add_task(name, total=1.0)

        def show(stage: str, share: float) -> None:
            bars.update(task, description=_said(name, stage), completed=_within(share))

        yield show


def _lines(stream: TextIO, name: str) -> Progress:
    last: tuple[str, float] | None = None

    def show(stage: str, share: float) -> None:
        nonlocal last
        now = _within(share)
        if last is None or stage != last[0] or now - last[1] >= LINE_STEP - 1e-9:
            print(f"{now:4.0%}  {_said(name, stage)}", file=stream, flush=True)
            last = (stage, now)

    return show


def _said(name: str, stage: str) -> str:
    return f"{name}: {stage}" if name else stage


def _within(share: float) -> float:
    return min(1.0, max(0.0, share))
