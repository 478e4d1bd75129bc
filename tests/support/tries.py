"""What is promised within a time, measured so that a machine that stands still is not taken for the product.

A stall of the machine only ever makes a try longer, or lets a deadline of the product pass that would not have passed
otherwise. So such a promise holds where it holds in one of a few whole tries; what is promised whatever the time is
asserted in each of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
TRIES = 5
PATIENCE_S = 30.0
"""For what is sure to come: a limit for a machine that stands still. It says nothing of how soon."""


def within(most_s: float, what: Callable[[], T], *, least_s: float = 0.0) -> T:
    """What `what()` gives in the first try that takes less than `most_s`. No try may take less than `least_s`.

    An AssertionError of `what` ends the test: it is for what holds in every try.
    """
    took_s: list[float] = []
    for _ in range(TRIES):
        begun = time.monotonic()
        found = what()
        took_s.append(time.monotonic() - begun)
        assert took_s[-1] >= least_s, f"it took {took_s[-1]:.3f} s, and less than {least_s} s is too soon"
        if took_s[-1] < most_s:
            return found
    raise AssertionError(f"it took {', '.join(f'{one:.3f}' for one in took_s)} s, and never less than {most_s} s")


def measured(most: float, what: Callable[[], float]) -> None:
    """`what` measures by itself; in one of a few whole tries it gives less than `most`.

    As with `within`, an AssertionError of `what` ends the test.
    """
    found: list[float] = []
    while not found or found[-1] >= most:
        assert len(found) < TRIES, f"it took {', '.join(f'{one:.3f}' for one in found)}, and never less than {most}"
        found.append(what())


class Spoiled(Exception):
    """A condition of time did not hold in this try: the machine may have stood still, so another one tells."""


def in_one_try(what: Callable[[], T]) -> T:
    """What `what()` gives in the first of a few whole tries that is not `Spoiled`; what it asserts holds in each."""
    for _ in range(TRIES - 1):
        try:
            return what()
        except Spoiled:
            continue
    return what()


def eventually(what: Callable[[], T], wait_s: float = PATIENCE_S, every_s: float = 0.02) -> T:
    """`what()` as soon as it is true; its last value where it never is. It is asked once more after the time is over,
    so that a stall of this process is no answer."""
    deadline = time.monotonic() + wait_s
    while True:
        last = time.monotonic() >= deadline
        found = what()
        if found or last:
            return found
        time.sleep(every_s)
