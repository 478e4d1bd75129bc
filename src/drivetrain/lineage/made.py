"""What was made and what was erased, written into the control log and read back.

Called by whatever makes an artifact (Datasets, features, releases), by erasure, and by the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.lineage import MADE, MadeV1
from drivetrain.lineage.artifacts import parse_artifact
from drivetrain.ports.control import ControlLog, ControlRecord

ERASED = "erased"
"""The control log's kind of what says that an artifact, or a part of it, is gone; the subject is the artifact."""
INPUTS_MAX = 2_000
"""Of one artifact, so that its record fits the control log; more are a table or a Dataset of their own."""
FACTS_MAX = 64
"""Facts are for a glance."""


class ErasedV1(msgspec.Struct, frozen=True, kw_only=True):
    """An artifact, or rows of it, were destroyed: the body of its record in the control log."""

    artifact: str
    at_ns: int
    facts: dict[str, str | int | float | bool] = {}
    """What is worth knowing, such as how many rows; never whose."""


class Making(msgspec.Struct, frozen=True):
    """One time that an artifact was made."""

    made: MadeV1
    actor: str
    """Who made it."""
    seq: int
    """Of its record."""


class History(msgspec.Struct, frozen=True):
    """What the control log tells of artifacts."""

    made: Mapping[str, tuple[Making, ...]] = {}
    """Artifact -> each time that it was made, oldest first."""
    erased: Mapping[str, tuple[ErasedV1, ...]] = {}
    unreadable: tuple[int, ...] = ()
    """Numbers of records of these kinds that are none; something else, or a newer version, wrote them."""


def record_made(
    control: ControlLog,
    artifact: str,
    *,
    at_ns: int,
    inputs: Sequence[str] = (),
    code_hash: str = "",
    facts: Mapping[str, str | int | float | bool] | None = None,
    actor: str = "",
) -> MadeV1:
    """Record that `artifact` came to be, from `inputs` as each was then, by code of `code_hash`.

    facts: `rows`, `content_hash`, `newest_event_ns` (of the newest row, for freshness) and others.
    Raises: DrivetrainError for ids that are none, more than `INPUTS_MAX` inputs, or a log that was tampered with.
    """
    given = dict(facts or {})
    unique = tuple(dict.fromkeys(inputs))
    _check(at_ns, artifact, *unique)
    if len(unique) > INPUTS_MAX or len(given) > FACTS_MAX:
        raise DrivetrainError(
            f"`{artifact}` has {len(unique)} inputs and {len(given)} facts; at most {INPUTS_MAX} and {FACTS_MAX} fit.",
            do="Name the table or the Dataset that holds the inputs, instead of each of its files.",
        )
    made = MadeV1(artifact=artifact, inputs=unique, code_hash=code_hash, at_ns=at_ns, facts=given)
    control.append(kind=MADE, actor=actor, subject=artifact, body=msgspec.to_builtins(made))
    return made


def record_erased(
    control: ControlLog,
    artifact: str,
    *,
    at_ns: int,
    facts: Mapping[str, str | int | float | bool] | None = None,
    actor: str = "",
) -> ErasedV1:
    """Record that `artifact`, or rows of it, are gone. Raises: DrivetrainError as `record_made`."""
    _check(at_ns, artifact)
    erased = ErasedV1(artifact=artifact, at_ns=at_ns, facts=dict(facts or {}))
    control.append(kind=ERASED, actor=actor, subject=artifact, body=msgspec.to_builtins(erased))
    return erased


def read_history(records: Iterable[ControlRecord]) -> History:
    """What records of the control log tell of artifacts; other kinds are passed over."""
    made: dict[str, list[Making]] = {}
    erased: dict[str, list[ErasedV1]] = {}
    unreadable = []
    for record in records:
        try:
            if record.kind == MADE:
                one = _MADE.decode(record.body)
                _check(one.at_ns, one.artifact, *one.inputs)
                made.setdefault(one.artifact, []).append(Making(one, record.actor, record.seq))
            elif record.kind == ERASED:
                gone = _ERASED.decode(record.body)
                _check(gone.at_ns, gone.artifact)
                erased.setdefault(gone.artifact, []).append(gone)
        except (msgspec.MsgspecError, DrivetrainError):
            unreadable.append(record.seq)
    return History(
        {artifact: tuple(makings) for artifact, makings in made.items()},
        {artifact: tuple(ends) for artifact, ends in erased.items()},
        tuple(unreadable),
    )


def _check(at_ns: int, *artifacts: str) -> None:
    for one in artifacts:
        parse_artifact(one)
    if not 0 <= at_ns < 2**63:
        raise DrivetrainError(
            f"`{artifacts[0]}` cannot have been made at {at_ns} ns.", do="Give nanoseconds since 1970."
        )


_MADE = msgspec.json.Decoder(MadeV1)
_ERASED = msgspec.json.Decoder(ErasedV1)
