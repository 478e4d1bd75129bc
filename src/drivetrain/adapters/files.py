"""Payload keys as files: a Vault that encrypts each payload under a key per subject, and forgets on demand.

Owns the keys folder: `master.key`, one file of wrapped subject keys per writer and day, and `forgotten`. It does not
know what a payload is, nor where sealed payloads are kept. Wired by the gateway, the embedded runner and the commands.

Layout of the keys folder (0700, files 0600):
    master.key          32 random bytes, made once; without it no payload can be read.
    <ns>-<writer>.keys  records of 96 bytes: key id 8 | subject 16 | created_ns 8 | nonce 12 | wrapped key 48 | crc 4.
                        Appended by one writer, which holds an flock; anybody may overwrite a record with zeros.
    forgotten           records of 24 bytes: subject 16 | forgotten_ns 8; appended, honoured by every living writer.
A subject stands there as a keyed hash, never in clear. Fixed-size records make forgetting safe beside live writers:
an erased record is overwritten where it stands, while they append at the end.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import hmac
import os
import secrets
import struct
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from drivetrain.core.errors import DrivetrainError
from drivetrain.ports.journal import JournalFull

DAY_NS = 86_400_000_000_000
SECOND_NS = 1_000_000_000
LIVE_KEYS_MAX = 4096
"""Subjects whose key is in memory, about 1 KB each; one that was put out simply gets a new key when seen again."""
RECORD = struct.Struct("<8s16sQ12s48sI")
FORGOTTEN = struct.Struct("<16sQ")
ERASED = bytes(RECORD.size)
SEALED_VERSION = b"\x01"
SEALED_HEAD_BYTES = 1 + 8 + 12
CHECK_NS = SECOND_NS
"""How often a living writer looks whether a subject was forgotten: one stat a second."""


class _LiveKey:
    """A subject's key as this process seals with it."""

    __slots__ = ("counter", "encrypt", "head", "renew_ns", "subject")

    def __init__(self, encrypt: Callable[[bytes, bytes, bytes], bytes], head: bytes, renew_ns: int, subject: bytes):
        self.encrypt = encrypt
        self.head = head
        self.renew_ns = renew_ns
        self.subject = subject
        self.counter = 0


class KeyRecord:
    """One wrapped key as it lies in a file."""

    __slots__ = ("created_ns", "key_id", "nonce", "offset", "path", "subject", "wrapped")

    def __init__(self, path: Path, offset: int, raw: bytes) -> None:
        self.path = path
        self.offset = offset
        self.key_id: bytes
        self.subject: bytes
        self.created_ns: int
        self.nonce: bytes
        self.wrapped: bytes
        self.key_id, self.subject, self.created_ns, self.nonce, self.wrapped, _ = RECORD.unpack(raw)


class FileVault:
    """Vault over a folder of key files; AES-256-GCM with a counter nonce, a fresh key per process, subject and day.

    payload_days: how long a payload may be read at most. A subject's key is renewed every day (every eighth of the
    time where that is shorter), and a key is void `payload_days` after it was made, so a payload lives at least
    `payload_days` minus that day.
    Raises (constructor): DrivetrainError where keys stand there without their master key.
    """

    __slots__ = (
        "__weakref__",
        "_checked_ns",
        "_digest_key",
        "_fd",
        "_files",
        "_folder",
        "_forgotten",
        "_forgotten_size",
        "_index",
        "_index_ends",
        "_keep_ns",
        "_live",
        "_live_max",
        "_master",
        "_now_ns",
        "_opened",
        "_opened_day",
        "_path",
        "_renew_ns",
        "_subject_key",
        "_writer",
    )

    def __init__(
        self,
        keys_folder: Path,
        *,
        payload_days: int = 30,
        live_keys_max: int = LIVE_KEYS_MAX,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        if payload_days < 1:
            raise ValueError(f"payload_days is {payload_days}; a payload that is kept is kept for a day at least")
        keys_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = keys_folder
        self._keep_ns = payload_days * DAY_NS
        self._renew_ns = min(DAY_NS, self._keep_ns // 8)
        self._live_max = live_keys_max
        self._now_ns = now_ns
        master_path = keys_folder / "master.key"
        if not master_path.exists() and any(True for _ in _key_files(keys_folder)):
            raise DrivetrainError(
                f"{master_path} is missing, and without it the keys beside it open nothing.",
                looked=[str(keys_folder)],
                do="Restore it from your backup, or move the *.keys files away to give up what was sealed with them.",
            )
        master = key_file(master_path)
        self._master = AESGCM(hashlib.blake2b(b"wrap", key=master, digest_size=32).digest())
        self._digest_key = hashlib.blake2b(b"digest", key=master, digest_size=32).digest()
        self._subject_key = hashlib.blake2b(b"subject", key=master, digest_size=32).digest()
        self._writer = f"{os.getpid():x}.{secrets.token_hex(6)}"
        self._fd = -1
        self._files = 0
        self._path = keys_folder
        self._opened_day = -1
        self._live: OrderedDict[str, _LiveKey] = OrderedDict()
        self._opened: OrderedDict[bytes, tuple[KeyRecord, AESGCM]] = OrderedDict()
        self._index: dict[bytes, tuple[Path, int]] = {}
        self._index_ends: dict[Path, int] = {}
        self._forgotten: dict[bytes, int] = {}
        self._forgotten_size = 0
        self._checked_ns = 0
        # A forked child must not seal under its parent's keys: their counters would meet.
        own = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _drop_after_fork(own))

    def seal(self, subject: str, call_id: str, kind: str, payload: bytes) -> bytes:
        """`payload` sealed for `subject`: version, key id, nonce, ciphertext; 37 bytes longer.

        kind: `request` or `answers`. Costs about 2 us per KB, and a write when the subject is new.
        Raises: JournalFull where a new key cannot be written.
        """
        now_ns = self._now_ns()
        if now_ns >= self._checked_ns + CHECK_NS or now_ns < self._checked_ns:
            self._checked_ns = now_ns
            self._honour_forgotten()
        live = self._live.get(subject)
        if live is None or now_ns >= live.renew_ns:
            live = self._new_key(subject, now_ns)
        else:
            self._live.move_to_end(subject)
        live.counter += 1
        nonce = live.counter.to_bytes(12, "big")
        return live.head + nonce + live.encrypt(nonce, payload, f"{call_id}\0{kind}".encode())

    def digest(self, payload: bytes) -> bytes:
        """32 bytes that tell whether two payloads are the same, to nobody without the master key."""
        return hashlib.blake2b(payload, key=self._digest_key, digest_size=32).digest()

    def open(self, call_id: str, kind: str, sealed: bytes) -> bytes | None:
        """The payload; None where its subject was forgotten or its time is over.

        Raises: ValueError where it was altered, or belongs to another Call or kind.
        """
        if len(sealed) < SEALED_HEAD_BYTES + 16 or sealed[:1] != SEALED_VERSION:
            raise ValueError(f"what call {call_id} keeps as its {kind} is no sealed payload of a version known here")
        key_id = sealed[1:9]
        found = self._key(key_id)
        if found is None:
            return None
        nonce, ciphertext = sealed[9:SEALED_HEAD_BYTES], sealed[SEALED_HEAD_BYTES:]
        try:
            return found.decrypt(nonce, ciphertext, f"{call_id}\0{kind}".encode())
        except InvalidTag:
            raise ValueError(f"the {kind} of call {call_id} was altered, or is another call's") from None

    def forget(self, subject: str) -> int:
        """Make every payload of `subject` unreadable for ever; how many keys were erased.

        Living writers take a new key within a second; what they seal for this subject until then is unreadable too.
        """
        hashed = self._hash(subject)
        now_ns = self._now_ns()
        fd = os.open(self._folder / "forgotten", os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            whole = os.fstat(fd).st_size // FORGOTTEN.size * FORGOTTEN.size
            os.ftruncate(fd, whole)
            if os.write(fd, FORGOTTEN.pack(hashed, now_ns)) != FORGOTTEN.size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(fd)
        finally:
            os.close(fd)
        self._honour_forgotten()
        return self._erase(lambda record: record.subject == hashed)

    def keys_of(self, subject: str) -> int:
        """How many keys of `subject` there are."""
        hashed = self._hash(subject)
        return sum(record.subject == hashed for path in _key_files(self._folder) for record in _records(path))

    def expire(self, now_ns: int) -> int:
        """Erase every key whose time is over, and files that hold none; how many keys were erased.

        Also erases what a writer added for a forgotten subject while it was being forgotten.
        """
        self._honour_forgotten()
        erased = self._erase(lambda record: self._is_void(record, now_ns))
        for path in list(_key_files(self._folder)):
            if path != self._path and not any(True for _ in _records(path)) and not _is_locked(path):
                path.unlink(missing_ok=True)
                self._index_ends.pop(path, None)
        return erased

    def close(self) -> None:
        """Let the key file go and forget what is in memory."""
        self._live.clear()
        self._opened.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _new_key(self, subject: str, now_ns: int) -> _LiveKey:
        hashed = self._hash(subject)
        key, key_id, nonce = secrets.token_bytes(32), secrets.token_bytes(8), secrets.token_bytes(12)
        # A forgotten subject that comes back gets a key that is younger than the forgetting.
        created_ns = max(now_ns, self._forgotten.get(hashed, -1) + 1)
        wrapped = self._master.encrypt(nonce, key, _wrap_context(key_id, hashed, created_ns))
        body = RECORD.pack(key_id, hashed, created_ns, nonce, wrapped, 0)[:-4]
        try:
            self._write_record(body + crc32(body).to_bytes(4, "little"), now_ns)
        except OSError as error:
            raise JournalFull(f"a payload key cannot be written to {self._folder}: {error.strerror}") from error
        live = _LiveKey(AESGCM(key).encrypt, SEALED_VERSION + key_id, now_ns + self._renew_ns, hashed)
        self._live[subject] = live
        self._live.move_to_end(subject)
        if len(self._live) > self._live_max:
            self._live.popitem(last=False)
        return live

    def _write_record(self, record: bytes, now_ns: int) -> None:
        day = now_ns // DAY_NS
        if self._fd < 0 or day != self._opened_day:
            self._new_file(now_ns)
            self._opened_day = day
        if os.write(self._fd, record) != len(record):
            # What follows half a record would not be found: a torn one may only be a file's last.
            os.close(self._fd)
            self._fd = -1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _new_file(self, now_ns: int) -> None:
        """A key file that is locked before anybody can see it, so that `expire` never takes it for a dead one's."""
        self._files += 1
        path = self._folder / f"{now_ns:016x}-{self._writer}.{self._files}.keys"
        hidden = path.with_name(f".{path.name}.new")
        fd = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        hidden.rename(path)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._path = fd, path

    def _key(self, key_id: bytes) -> AESGCM | None:
        self._honour_forgotten()
        cached = self._opened.get(key_id)
        if cached is None:
            record = self._find(key_id)
            if record is None or self._is_void(record, self._now_ns()):
                return None
            context = _wrap_context(record.key_id, record.subject, record.created_ns)
            try:
                key = self._master.decrypt(record.nonce, record.wrapped, context)
            except InvalidTag:
                raise ValueError(f"a payload key in {record.path} was altered, or is another master key's") from None
            cached = (record, AESGCM(key))
            self._opened[key_id] = cached
            if len(self._opened) > self._live_max:
                self._opened.popitem(last=False)
        if self._is_void(cached[0], self._now_ns()):
            del self._opened[key_id]
            return None
        return cached[1]

    def _find(self, key_id: bytes) -> KeyRecord | None:
        place = self._index.get(key_id)
        if place is None:
            self._refresh_index()
            place = self._index.get(key_id)
            if place is None:
                return None
        path, offset = place
        try:
            with path.open("rb") as file:
                file.seek(offset)
                raw = file.read(RECORD.size)
        except FileNotFoundError:
            return None
        return KeyRecord(path, offset, raw) if _is_record(raw) and raw[:8] == key_id else None

    def _refresh_index(self) -> None:
        for path in _key_files(self._folder):
            start = self._index_ends.get(path, 0)
            end = start
            for record in _records(path, start):
                self._index[record.key_id] = (path, record.offset)
                end = record.offset + RECORD.size
            self._index_ends[path] = end

    def _honour_forgotten(self) -> None:
        path = self._folder / "forgotten"
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return
        if size // FORGOTTEN.size == self._forgotten_size:
            return
        data = path.read_bytes()
        for hashed, forgotten_ns in FORGOTTEN.iter_unpack(data[: len(data) // FORGOTTEN.size * FORGOTTEN.size]):
            self._forgotten[hashed] = max(forgotten_ns, self._forgotten.get(hashed, 0))
        self._forgotten_size = len(data) // FORGOTTEN.size
        for subject in [subject for subject, live in self._live.items() if live.subject in self._forgotten]:
            del self._live[subject]
        for key_id in [key_id for key_id, (record, _) in self._opened.items() if record.subject in self._forgotten]:
            del self._opened[key_id]

    def _is_void(self, record: KeyRecord, now_ns: int) -> bool:
        forgotten_ns = self._forgotten.get(record.subject, -1)
        return now_ns >= record.created_ns + self._keep_ns or record.created_ns <= forgotten_ns

    def _erase(self, unwanted: Callable[[KeyRecord], bool]) -> int:
        erased = 0
        for path in list(_key_files(self._folder)):
            offsets = [record.offset for record in _records(path) if unwanted(record)]
            if not offsets:
                continue
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                for offset in offsets:
                    os.pwrite(fd, ERASED, offset)
                os.fdatasync(fd)
            finally:
                os.close(fd)
            erased += len(offsets)
        return erased

    def _hash(self, subject: str) -> bytes:
        return hashlib.blake2b(subject.encode(), key=self._subject_key, digest_size=16).digest()


def key_file(path: Path) -> bytes:
    """The 32 bytes in `path`, made on first use; processes that start at once all get the same.

    Raises: DrivetrainError where the file holds something else.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        fresh = path.with_name(f".{path.name}.{os.getpid():x}.{secrets.token_hex(6)}")
        fd = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, secrets.token_bytes(32))
            os.fsync(fd)
            with contextlib.suppress(FileExistsError):
                os.link(fresh, path)
        finally:
            os.close(fd)
            fresh.unlink(missing_ok=True)
    key = path.read_bytes()
    if len(key) != 32:
        raise DrivetrainError(
            f"{path} holds {len(key)} bytes; a key has 32.",
            do="Restore it from your backup.",
        )
    return key


def keyed_mac(key: bytes, data: bytes) -> bytes:
    """32 bytes that only who has `key` can make for `data`."""
    return hmac.digest(key, data, "sha256")


def _key_files(folder: Path) -> Iterator[Path]:
    for name in sorted(os.listdir(folder)):
        if name.endswith(".keys"):
            yield folder / name


def _records(path: Path, start: int = 0) -> Iterator[KeyRecord]:
    """The keys in a file that were not erased; a torn last one is none."""
    try:
        data = path.read_bytes() if start == 0 else _from(path, start)
    except FileNotFoundError:
        return
    for at in range(0, len(data) - RECORD.size + 1, RECORD.size):
        raw = data[at : at + RECORD.size]
        if _is_record(raw):
            yield KeyRecord(path, start + at, raw)


def _from(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read()


def _is_record(raw: bytes) -> bool:
    return len(raw) == RECORD.size and raw[:8] != ERASED[:8] and crc32(raw[:-4]) == int.from_bytes(raw[-4:], "little")


def _is_locked(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def _wrap_context(key_id: bytes, subject: bytes, created_ns: int) -> bytes:
    return key_id + subject + created_ns.to_bytes(8, "little")


def _drop_after_fork(vault_ref: weakref.ref[FileVault]) -> None:
    vault = vault_ref()
    if vault is not None:
        vault.close()
        vault._writer = f"{os.getpid():x}.{secrets.token_hex(6)}"
