"""What waits to be rolled: how much, and from when on a question has it rolled before it reads.

Each process that asks decodes by itself what no roll has taken; ten commands in a row decode it ten times. So whoever
may write the lake rolls a long tail first, once, for all that ask later. That also bounds what a question holds in
memory. Called by the lake and by its upkeep.
"""

from __future__ import annotations

from pathlib import Path

from drivetrain.lake.plans import Plan
from drivetrain.ledger.frames import segments

ROLL_FIRST_BYTES = 2 * 1024 * 1024
"""Some 17,000 Calls of a busy gateway, whose blocks hold 120 B of each; 7,000 of an idle one. Rolling them takes 0.2 s,
as long as decoding them twice. At the highest compression that was seen, 13 B a Call, it is 160,000 and 300 MB."""


def waiting_bytes(data_folder: Path, *standing: Plan | None) -> int:
    """How much the segments hold beyond the plans that tables stand at; None: one that has nothing yet.

    Costs a listing of the folder.
    """
    ends = [{} if plan is None else plan.ends for plan in standing]
    return sum(
        max(segment.size - min(one.get(segment.name, 0) for one in ends), 0) for segment in segments(data_folder)
    )
