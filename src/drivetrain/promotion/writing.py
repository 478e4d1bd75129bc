"""How a decision gets into the control log: read, decided, judged by the fold, and appended where nothing came between.

So of two who decide at once one is first, and the other decides anew upon what the first one did. Called by proposing,
approving, releasing and rollouts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.releases import APPROVED, PROMOTED, PROPOSED, ROLLOUT, WITHDRAWN, RulesV1
from drivetrain.ports.control import ControlRecord, OrderedControlLog
from drivetrain.promotion.counting import Body, kind_of, refusal, refusal_of_signature
from drivetrain.promotion.signing import PersonKey, is_signed
from drivetrain.promotion.standing import State
from drivetrain.promotion.state import read, subject_of

TRIES_MAX = 100
"""Records that others may write between our reading and our writing, one after the other."""

HISTORY = "`drivetrain history` tells what was done."
_NAMES = {
    PROPOSED: "The proposal", APPROVED: "The approval", WITHDRAWN: "The withdrawal", PROMOTED: "The Release",
    ROLLOUT: "This step of the rollout",
}  # fmt: skip

One = TypeVar("One", bound=Body)


class Desk(msgspec.Struct, frozen=True, kw_only=True):
    """Where somebody decides: an environment's log, and who they are."""

    log: OrderedControlLog
    environment: str
    user: str
    """Who the system says they are."""
    key: PersonKey | None = None
    """Theirs; then they are the declared person who has its public half."""


class Written(msgspec.Struct, Generic[One], frozen=True):
    """What was written, and upon what."""

    body: One
    record: ControlRecord
    before: State


def name_of(desk: Desk, rules: RulesV1) -> str:
    """Who decides here, under some rules. Raises: DrivetrainError where their key is nobody's."""
    if desk.key is None:
        return desk.user
    public = desk.key.public
    for one in rules.people:
        if one.key == public:
            return one.name
    raise DrivetrainError(
        "This key is of nobody whom the rules in force know.",
        looked=[f"{one.name} ({one.key[:12]}...)" for one in rules.people if one.key][:8],
        do=f'Declare `[people.NAME]` with `key = "{public}"`, and release that first.',
    )


def standing(desk: Desk) -> State:
    """How the environment stands. Raises: DrivetrainError where the log was changed from outside."""
    found = desk.log.verify()
    if not found.whole:
        raise DrivetrainError(
            f"The control log was changed from outside, so nothing is decided upon it. {' '.join(found.findings)}",
            do="Run `drivetrain audit verify`, and restore the log from your backup.",
        )
    return read(desk.log.records(), desk.environment)


def write(desk: Desk, make: Callable[[State], One]) -> Written[One]:
    """What `make` decides upon how things stand, in the log.

    make: called again where somebody else wrote meanwhile. Raises: DrivetrainError where it does not count, and why.
    """
    for _ in range(TRIES_MAX):
        state = standing(desk)
        body = _as_read(make(state))
        if desk.key is not None:
            body = msgspec.structs.replace(body, signature=desk.key.signature(body))
        why = refusal(state, body) or refusal_of_signature(state, body, is_signed)
        if why:
            raise DrivetrainError(f"{_NAMES[kind_of(body)]} is refused: {why}.", do=HISTORY)
        record = desk.log.append_after(
            state.seq, kind=kind_of(body), actor=body.by, subject=subject_of(body), body=msgspec.to_builtins(body)
        )
        if record is not None:
            return Written(body, record, state)
    raise DrivetrainError("Others write to the control log all the time.", do="Try again.")


def _as_read(body: One) -> One:
    """As it will be read: a whole number in a field of fractions comes back as another text, which nobody signed."""
    return msgspec.json.decode(msgspec.json.encode(body), type=type(body))
