"""What of a Call's payloads is kept, and how: nothing, a hash, or encrypted under the subject's key."""

from __future__ import annotations

from hashlib import blake2b

from drivetrain.core.calls import RETAINED_FULL, RETAINED_HASH, RETAINED_NONE, Answers, Attribution
from drivetrain.core.codec import MSGPACK
from drivetrain.core.errors import report_fault
from drivetrain.ports.journal import JournalFull, Vault

SAMPLED_ONE_IN = 100


def retained(retention: str, vault: Vault | None, call_id: str) -> int:
    """What is kept of this Call, under its workflow's retention."""
    if vault is None or retention == "none":
        return RETAINED_NONE
    if retention == "hash":
        return RETAINED_HASH
    if retention == "sampled":
        drawn = int.from_bytes(blake2b(call_id.encode(), digest_size=4).digest(), "big")
        return RETAINED_FULL if drawn % SAMPLED_ONE_IN == 0 else RETAINED_NONE
    return RETAINED_FULL


def sealed(vault: Vault | None, kept: int, payload: bytes, *, whose: Attribution, call_id: str, kind: str) -> bytes:
    """`payload` as it is recorded. Raises: JournalFull where it cannot be."""
    if vault is None or kept == RETAINED_NONE:
        return b""
    subject = whose.user or whose.key or whose.team or "-"
    try:
        if kept == RETAINED_HASH:
            return vault.digest(payload)
        return vault.seal(subject, call_id, kind, payload)
    except JournalFull:
        raise
    except Exception as fault:  # what cannot be recorded must not be answered, whatever the reason
        report_fault(call_id, fault)
        raise JournalFull("a payload cannot be sealed") from fault


def answers(bodies: list[bytes], answer: bytes | None) -> bytes:
    """The payload of a closed frame. answer: what the client got, where it is not the last of `bodies`."""
    return MSGPACK.encode(Answers(tuple(bodies), answer))
