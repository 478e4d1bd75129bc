"""What became of the copies of Calls for a shadow, as its processes left it in the run folder: for whoever asks.

The gateway's workers count what they sent and what they did not, the shadow what it did with what came. Nothing here
writes, and nothing waits. Called by `drivetrain rollout status`.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from drivetrain.core.releases import ActiveRollout
from drivetrain.embedded.shadow_calls import (
    ANSWERED,
    FAILED,
    LATE,
    REFUSED,
    SENT,
    UNAFFORDABLE,
    UNSENT,
    ShadowCounts,
)


class CopiesTold(msgspec.Struct, frozen=True, kw_only=True):
    """Copies of the workflows that a rollout changes, since the gateway was started."""

    sent: int
    """Taken by the kernel for the shadow."""
    unsent: int
    """Lost before: too large, or nobody took them in time."""
    answered: int
    failed: int
    refused: int
    """Not admitted, or refused by a limit or a provider."""
    late: int
    """Lost in the shadow: others came before they had begun."""
    unaffordable: int
    """Lost for the shadow's budget."""

    @property
    def lost(self) -> int:
        """Those that the candidate never answered because of a limit."""
        return self.unsent + self.late + self.unaffordable

    @property
    def open(self) -> int:
        """Sent and not ended: they wait or run, or went with a shadow that was ended."""
        return max(0, self.sent - self.answered - self.failed - self.refused - self.late - self.unaffordable)

    def facts(self) -> dict[str, int]:
        """All of it by name."""
        return {**msgspec.structs.asdict(self), "open": self.open, "lost": self.lost}

    def sentence(self) -> str:
        """All of it in one line."""
        why = (
            (self.unsent, "too large, or not taken in time"), (self.late, "too many at once"),
            (self.unaffordable, "beyond the shadow's budget"),
        )  # fmt: skip
        lost = ", ".join(f"{number:,} {text}" for number, text in why if number)
        return (
            f"Copies since the gateway started: {self.answered:,} answered, {self.failed:,} failed, "
            f"{self.refused:,} refused, {self.open:,} under way or gone with a shadow; "
            f"{self.lost:,} lost{f': {lost}' if lost else ''}."
        )


def copies_of(run_folder: Path, active: ActiveRollout) -> CopiesTold | None:
    """What became of copies for a rollout's shadow; None where none was ever made and none is wanted now."""
    found: dict[str, int] = {}
    for path in run_folder.glob("*.metrics"):
        try:
            counted = msgspec.msgpack.decode(path.read_bytes(), type=ShadowCounts).shadow_copies
        except (OSError, msgspec.MsgspecError):
            continue  # it is being replaced, or its process is gone
        for name, number in counted.items():
            workflow, _, how = name.partition("\x00")
            if workflow in active.workflows:
                found[how] = found.get(how, 0) + number
    if not found and not active.shadow_ppm:
        return None
    return CopiesTold(
        sent=found.get(SENT, 0), unsent=found.get(UNSENT, 0), answered=found.get(ANSWERED, 0),
        failed=found.get(FAILED, 0), refused=found.get(REFUSED, 0), late=found.get(LATE, 0),
        unaffordable=found.get(UNAFFORDABLE, 0),
    )  # fmt: skip
