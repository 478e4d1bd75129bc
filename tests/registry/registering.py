"""Registers versions in a registry: ROOT MOMENT COUNT; at a moment other than `none` it stands still, to be killed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from registry_world import World, draft

from drivetrain.lineage.lineage import Lineage
from drivetrain.registry import store


def halting(inner: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
    """`inner`, that never returns: before or after it did its work."""

    def halted(*given: Any, **named: Any) -> Any:
        if after:
            inner(*given, **named)
        print("halted", flush=True)
        time.sleep(600)

    return halted


def main(root: Path, moment: str, count: int) -> None:
    world = World(root)
    if moment == "files":  # they are written, and nothing says what they are
        store.describe_files = halting(store.describe_files, after=False)
    elif moment == "manifest":  # it is written, and nothing is renamed
        store._sync_tree = halting(store._sync_tree, after=True)
    elif moment == "renamed":  # the version is there, and the control log does not know
        Lineage.made = halting(Lineage.made, after=False)  # type: ignore[method-assign]
    elif moment == "noted":  # it knows, and the mark still says otherwise
        Lineage.made = halting(Lineage.made, after=True)  # type: ignore[method-assign]
    for number in range(count):
        print(world.registry.register(draft(content=f"{moment} {number}".encode())).number, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
