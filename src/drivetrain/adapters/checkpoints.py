"""Checkpoints of the control log: a head that is signed, so that it proves elsewhere and later what the log held.

Owns `checkpoint.key` in the keys folder and the format of checkpoint files. Called by `drivetrain audit`.

A file names the head's place and hash under an Ed25519 signature (RFC 8032). It holds marks too, each the beginning of
one record's hash: since a hash covers all records before it, the first mark that differs tells where a log was changed.
A checkpoint protects against whoever owns the machine only where it, and the public key, are kept somewhere else.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from drivetrain.adapters.files import key_file
from drivetrain.core.errors import DrivetrainError
from drivetrain.ports.control import ControlRecord

KEY_FILE = "checkpoint.key"
"""In the keys folder: 32 random bytes."""
KEY_BYTES_MAX = 16 * 1024
"""Of a key that was given; no key is larger."""
MARKS_MAX = 1_024
"""Marks in one file: up to so many records each has its own, beyond that every second, third ... one."""
MARK_CHARS = 16
"""Of a record's hash."""
FILE_BYTES_MAX = 1024 * 1024
_SIGNED_AS = b"drivetrain checkpoint 1\0"
"""Before what is signed, so that no signature of something else passes for one of a checkpoint."""


class CheckpointV1(msgspec.Struct, frozen=True, kw_only=True, tag="checkpoint.1"):
    """What a checkpoint file says."""

    project: str
    environment: str
    seq: int
    """Of the newest record when it was made."""
    head: str
    """That record's hash."""
    at: str
    """UTC, by the clock of the machine that made it."""
    marks_every: int
    marks: tuple[str, ...]
    """The first digits of the hashes of records `marks_every`, 2 x `marks_every` ..."""
    public_key: str
    """Ed25519, base64."""
    signature: str = ""
    """Of everything else, base64."""


def checkpoint_key(keys_folder: Path, given: Path | None = None) -> Ed25519PrivateKey:
    """The project's own key, made on first use, or the one in a file: 32 bytes or PEM. Raises: DrivetrainError."""
    if given is None:
        return Ed25519PrivateKey.from_private_bytes(key_file(keys_folder / KEY_FILE))
    try:
        with given.open("rb") as file:
            content = file.read(KEY_BYTES_MAX)
        if len(content) == 32:
            return Ed25519PrivateKey.from_private_bytes(content)
        key = load_pem_private_key(content, password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DrivetrainError(
            f"{given} cannot be read as a key: {error}.",
            do="`openssl genpkey -algorithm ed25519 -out FILE` makes one; it may not have a password.",
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise DrivetrainError(
            f"{given} holds a key of another kind.", do="`openssl genpkey -algorithm ed25519 -out FILE` makes one."
        )
    return key


def public_text(key: Ed25519PrivateKey) -> str:
    """Its public key as base64, 44 characters."""
    return base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def own_public_key(keys_folder: Path) -> str:
    """The project's own public key; empty where it has none yet."""
    path = keys_folder / KEY_FILE
    return public_text(checkpoint_key(keys_folder)) if path.exists() else ""


def make_checkpoint(
    records: Iterable[ControlRecord], key: Ed25519PrivateKey, *, project: str, environment: str, at: str
) -> CheckpointV1:
    """The signed head of a log that was found whole. Raises: DrivetrainError where it is empty."""
    hashes = [record.hash for record in records]
    if not hashes:
        raise DrivetrainError("The control log is empty, so there is nothing to sign.")
    every = -(-len(hashes) // MARKS_MAX)
    unsigned = CheckpointV1(
        project=project,
        environment=environment,
        seq=len(hashes),
        head=hashes[-1],
        at=at,
        marks_every=every,
        marks=tuple(one[:MARK_CHARS] for one in hashes[every - 1 :: every]),
        public_key=public_text(key),
    )
    return msgspec.structs.replace(unsigned, signature=signed(key, _SIGNED_AS, unsigned))


def encoded(checkpoint: CheckpointV1) -> bytes:
    """The file's content."""
    return msgspec.json.format(msgspec.json.encode(checkpoint), indent=2) + b"\n"


def read_checkpoint(path: Path, trusted: Sequence[str]) -> tuple[CheckpointV1 | None, str]:
    """What a file says and an empty text, or None and why it cannot be believed.

    trusted: public keys, any of which may have signed it. Raises: DrivetrainError where the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise DrivetrainError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        found = msgspec.json.decode(content, type=CheckpointV1)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return None, f"{path} is no checkpoint, or was edited: {error}."
    # Byte for byte, so that no other spelling of the same checkpoint passes.
    if encoded(found) != content or found.seq < 1 or found.marks_every < 1:
        return None, f"{path} was edited: it is not written as checkpoints are."
    unsigned = msgspec.structs.replace(found, signature="")
    if not is_signed(found.public_key, _SIGNED_AS, unsigned, found.signature):
        return None, f"{path} was edited or forged: its signature does not fit."
    if found.public_key not in trusted:
        return None, f"{path} was signed with another key, {found.public_key}, which is not trusted here."
    return found, ""


def differences(checkpoint: CheckpointV1, hashes: Sequence[str]) -> str:
    """Where a log is not the one that was signed, in one sentence; empty where it still begins with all of it.

    hashes: of the log's records, in order.
    """
    seq, every = checkpoint.seq, checkpoint.marks_every
    good = 0
    for place, mark in enumerate(checkpoint.marks, start=1):
        number = place * every
        if number > len(hashes):
            break
        if hashes[number - 1][:MARK_CHARS] != mark:
            which = f"record {number}" if number == good + 1 else f"one of the records {good + 1} to {number}"
            return f"{_upper(which)} is not the one that stood there {_when(checkpoint)}: the log was computed anew."
        good = number
    if len(hashes) < seq:
        gone = f"record {seq}" if len(hashes) + 1 == seq else f"records {len(hashes) + 1} to {seq}"
        return f"{_upper(gone)} stood there {_when(checkpoint)}, and the log ends at {len(hashes)}: its tail was cut."
    if hashes[seq - 1] != checkpoint.head:
        which = f"one of the records {good + 1} to {seq}" if good < seq - 1 else f"record {seq}"
        return f"{_upper(which)} is not the one that stood there {_when(checkpoint)}: the log was computed anew."
    return ""


def signed(key: Ed25519PrivateKey, purpose: bytes, unsigned: msgspec.Struct) -> str:
    """The signature of a struct for one purpose, base64."""
    return base64.b64encode(key.sign(purpose + msgspec.json.encode(unsigned, order="deterministic"))).decode()


def is_signed(public_key: str, purpose: bytes, unsigned: msgspec.Struct, signature: str) -> bool:
    """Whether `signed` with that key's private half gave this."""
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public_key, validate=True))
        said = base64.b64decode(signature, validate=True)
        key.verify(said, purpose + msgspec.json.encode(unsigned, order="deterministic"))
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return base64.b64encode(said).decode() == signature


def _when(checkpoint: CheckpointV1) -> str:
    return f"at {checkpoint.at}"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
