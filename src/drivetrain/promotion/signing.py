"""Signatures of people: what a proposal, an approval or a Release says, signed with an Ed25519 key.

A key is a PEM file that its person keeps; the project declares the public half. Called by the commands, which sign,
and by the fold, which checks.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from pathlib import Path
from typing import TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.releases import ApprovalV1, ProposalV1, ReleaseV1, RolloutEventV1, WithdrawalV1

Signed = ProposalV1 | ApprovalV1 | WithdrawalV1 | ReleaseV1 | RolloutEventV1
One = TypeVar("One", bound=Signed)
KEY_FILE_BYTES_MAX = 16 * 1024
"""A private key has some hundred bytes; another file was named by mistake."""
PUBLIC_BYTES = 32
SIGNATURE_BYTES = 64


class PersonKey:
    """Somebody's private key. Its repr never shows it."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    @property
    def public(self) -> str:
        """The public half as `[people]` declares it: base64."""
        return base64.b64encode(self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()

    def signature(self, body: Signed) -> str:
        """Over everything that `body` says, base64."""
        return base64.b64encode(self._private.sign(said(body))).decode()


def said(body: Signed) -> bytes:
    """What a signature is over: the hash of all but the signature, its type included, as `ProposalV1.hash` is made."""
    return hashlib.sha256(msgspec.json.encode(unsigned(body), order="deterministic")).hexdigest().encode()


def unsigned(body: One) -> One:
    """The same without its signature, which has several spellings."""
    return msgspec.structs.replace(body, signature="")


def is_signed(body: Signed, public: str) -> bool:
    """Whether `body` carries the signature of the key whose public half is `public`."""
    try:
        raw, signature = _decoded(public, PUBLIC_BYTES), _decoded(body.signature, SIGNATURE_BYTES)
        Ed25519PublicKey.from_public_bytes(raw).verify(signature, said(body))
    except (InvalidSignature, ValueError):
        return False
    return True


def make_key(path: Path) -> PersonKey:
    """A new key in a new file that only its owner reads. Raises: DrivetrainError where there is one already."""
    key = Ed25519PrivateKey.generate()
    content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise DrivetrainError(f"{path} exists, and a key is never written over.", do="Name another file.") from None
    except OSError as error:
        raise DrivetrainError(f"{path} cannot be written: {error.strerror or error}.") from error
    return PersonKey(key)


def read_key(path: Path) -> PersonKey:
    """The key in a file. Raises: DrivetrainError where it is none, or where others may read it."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(KEY_FILE_BYTES_MAX)
    except OSError as error:
        raise DrivetrainError(f"The key {path} cannot be read: {error.strerror or error}.") from error
    if mode & 0o077:
        raise DrivetrainError(f"Others may read the key {path}.", do=f"Run `chmod 600 {path}`.")
    try:
        key = load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise DrivetrainError(
            f"{path} holds no Ed25519 key without a password.", do="`drivetrain approve --new-key FILE` makes one."
        )
    return PersonKey(key)


def _decoded(text: str, size: int) -> bytes:
    """Raises: ValueError where it is not base64 of so many bytes."""
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    if len(raw) != size:
        raise ValueError(f"{len(raw)} bytes")
    return raw
