"""How an environment stands: its proposals, its Releases, and what is live.

Made by the fold (`state`); read by everything that shows or changes what is live.
"""

from __future__ import annotations

import msgspec

from drivetrain.core.releases import ApprovalV1, Live, ProposalV1, ReleaseV1, RolloutEventV1, RulesV1


class Proposed(msgspec.Struct, frozen=True, kw_only=True):
    """A proposal, and what became of it."""

    proposal: ProposalV1
    at_ns: int
    seq: int = 0
    """Of its record."""
    approvals: tuple[ApprovalV1, ...] = ()
    """Those that count, one per person."""
    withdrawn_by: str = ""
    release: int = 0
    """The Release that came of it; 0: none."""


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """A Release, and what became of it."""

    release: ReleaseV1
    at_ns: int
    state: str
    """`live`, `rollout` while some callers have it, `retired` or `aborted` before all had it."""
    seq: int = 0
    """Of its record."""
    since_ns: int = 0
    """When it became live; 0: it never was."""
    until_ns: int = 0
    """When it was live or rolled out no more; 0: it is."""
    lacks: tuple[str, ...] = ()
    """What it went live without: of an override, and of a Release that restores one."""
    rules: RulesV1 = RulesV1()
    """In force since it is live."""
    events: tuple[tuple[int, RolloutEventV1], ...] = ()
    """Of its rollout: when, and what."""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one environment at one moment."""

    live: Live
    proposals: dict[int, Proposed] = {}
    releases: dict[int, Released] = {}
    seq: int = 0
    """Of the last record that was read, whatever its kind."""

    @property
    def next_proposal(self) -> int:
        return len(self.proposals) + 1

    @property
    def next_release(self) -> int:
        return len(self.releases) + 1

    def is_stale(self, proposed: Proposed) -> bool:
        """Whether another Release became live since it was made."""
        return proposed.proposal.base != self.live.release

    def condition(self, proposed: Proposed) -> str:
        """`open`, `released`, `withdrawn` or `stale`."""
        if proposed.release:
            return "released"
        if proposed.withdrawn_by:
            return "withdrawn"
        return "stale" if self.is_stale(proposed) else "open"
