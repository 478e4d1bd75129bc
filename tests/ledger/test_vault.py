"""The vault: sealed payloads open for who may, and for nobody once forgotten or expired."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from drivetrain.adapters import files
from drivetrain.adapters.files import DAY_NS, FileVault
from drivetrain.core.errors import DrivetrainError
from drivetrain.ports.journal import JournalFull

T0_NS = 1_767_225_600_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now_ns = T0_NS

    def __call__(self) -> int:
        return self.now_ns


def test_another_process_opens_what_one_sealed(tmp_path: Path) -> None:
    writer, reader = FileVault(tmp_path), FileVault(tmp_path)
    sealed = writer.seal("ann", "call_1", "request", b"hello")
    again = writer.seal("ann", "call_1", "request", b"hello")
    assert sealed != again
    assert b"hello" not in sealed
    assert len(sealed) == len(b"hello") + 37
    assert reader.open("call_1", "request", sealed) == b"hello"
    assert FileVault(tmp_path).open("call_1", "request", again) == b"hello"


def test_every_altered_byte_and_every_swap_is_found(tmp_path: Path) -> None:
    vault = FileVault(tmp_path)
    sealed = vault.seal("ann", "call_1", "request", b"hello")
    for place in range(len(sealed)):
        altered = bytearray(sealed)
        altered[place] ^= 1
        if 1 <= place < 9:
            assert vault.open("call_1", "request", bytes(altered)) is None, "a key id that nobody knows"
            continue
        with pytest.raises(ValueError, match="call_1"):
            vault.open("call_1", "request", bytes(altered))
    for call_id, kind in (("call_2", "request"), ("call_1", "answers")):
        with pytest.raises(ValueError, match=call_id):
            vault.open(call_id, kind, sealed)
    for short in (b"", sealed[:20]):
        with pytest.raises(ValueError, match="no sealed payload"):
            vault.open("call_1", "request", short)


def test_nonces_never_repeat_and_keys_are_fresh_per_vault_and_subject(tmp_path: Path) -> None:
    seen = set()
    for _ in range(3):
        vault = FileVault(tmp_path)
        for subject in ("ann", "bob"):
            seen |= {vault.seal(subject, "c", "request", b"")[:21] for _ in range(50)}
    assert len(seen) == 300
    assert len({head[:9] for head in seen}) == 6


def test_forgetting_reaches_living_writers_and_leaves_no_key(tmp_path: Path) -> None:
    clock = Clock()
    writer, other = FileVault(tmp_path, now_ns=clock), FileVault(tmp_path, now_ns=clock)
    anns = writer.seal("ann", "c1", "request", b"secret")
    bobs = writer.seal("bob", "c2", "request", b"other")
    assert other.open("c1", "request", anns) == b"secret"
    assert other.forget("ann") == 1
    for vault in (writer, other, FileVault(tmp_path, now_ns=clock)):
        assert vault.open("c1", "request", anns) is None
        assert vault.open("c2", "request", bobs) == b"other"
    key_ids = b"".join(path.read_bytes() for path in tmp_path.glob("*.keys"))
    assert anns[1:9] not in key_ids, "the key is gone from the disk, not only marked"
    clock.now_ns += 2 * 10**9
    back = writer.seal("ann", "c3", "request", b"she came back")
    assert back[1:9] != anns[1:9]
    assert other.open("c3", "request", back) == b"she came back"
    assert not any(b"ann" in path.read_bytes() for path in tmp_path.iterdir())


def test_a_key_added_while_its_subject_is_forgotten_is_void_and_swept(tmp_path: Path) -> None:
    clock = Clock()
    writer = FileVault(tmp_path, now_ns=clock)
    FileVault(tmp_path, now_ns=lambda: clock.now_ns + 1000).forget("ann")
    sealed = FileVault.seal(writer, "ann", "c", "request", b"x")
    assert writer.open("c", "request", sealed) == b"x", "younger than the forgetting"
    late = FileVault(tmp_path, now_ns=clock)
    late._checked_ns = clock.now_ns
    unaware = late.seal("ann", "c", "request", b"x")
    assert FileVault(tmp_path, now_ns=clock).open("c", "request", unaware) is None
    assert FileVault(tmp_path, now_ns=clock).expire(clock.now_ns) == 1


def test_payloads_end_with_their_days_and_keys_are_renewed_daily(tmp_path: Path) -> None:
    clock = Clock()
    vault = FileVault(tmp_path, payload_days=10, now_ns=clock)
    sealed = []
    for day in range(12):
        clock.now_ns = T0_NS + day * DAY_NS
        sealed.append(vault.seal("ann", "c", "request", b"%d" % day))
    assert len({one[1:9] for one in sealed}) == 12
    readable = [vault.open("c", "request", one) is not None for one in sealed]
    assert readable == [False, False, *[True] * 10]
    before = len(list(tmp_path.glob("*.keys")))
    assert FileVault(tmp_path, payload_days=10, now_ns=clock).expire(clock.now_ns) == 2
    assert len(list(tmp_path.glob("*.keys"))) == before - 2
    clock.now_ns += 20 * DAY_NS
    assert vault.expire(clock.now_ns) == 10
    clock.now_ns = T0_NS + 11 * DAY_NS
    assert FileVault(tmp_path, payload_days=10, now_ns=clock).open("c", "request", sealed[11]) is None
    clock.now_ns += DAY_NS
    after = vault.seal("ann", "c", "request", b"on")
    assert FileVault(tmp_path, now_ns=clock).open("c", "request", after) == b"on", "the living file was not taken away"


def test_a_subject_that_was_put_out_gets_a_new_key(tmp_path: Path) -> None:
    vault = FileVault(tmp_path, live_keys_max=2)
    sealed = [(f"u{n % 3}", vault.seal(f"u{n % 3}", "c", "request", b"%d" % n)) for n in range(12)]
    assert len({one[1:9] for _, one in sealed}) == 12
    assert [vault.open("c", "request", one) for _, one in sealed] == [b"%d" % n for n in range(12)]


def test_a_torn_key_record_harms_no_other(tmp_path: Path) -> None:
    vault = FileVault(tmp_path)
    sealed = vault.seal("ann", "c", "request", b"x")
    vault.close()
    (path,) = tmp_path.glob("*.keys")
    with path.open("ab") as file:
        file.write(b"half a record")
    assert FileVault(tmp_path).open("c", "request", sealed) == b"x"


def test_a_key_that_cannot_be_written_seals_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = FileVault(tmp_path)
    vault.seal("ann", "c", "request", b"x")
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "write", lambda fd, data: 5)
        with pytest.raises(JournalFull, match="payload key"):
            vault.seal("bob", "c", "request", b"x")
    assert vault.open("c", "request", vault.seal("bob", "c", "request", b"y")) == b"y"


def test_keys_are_for_their_owner_only_and_a_lost_master_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    FileVault(folder).seal("ann", "c", "request", b"x")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    (folder / "master.key").unlink()
    with pytest.raises(DrivetrainError, match=r"master\.key is missing"):
        FileVault(folder)


def test_a_forked_child_never_seals_under_its_parents_keys(tmp_path: Path) -> None:
    vault = FileVault(tmp_path)
    vault.seal("ann", "c", "request", b"x")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, vault.seal("ann", "c", "request", b"child"))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    from_child = os.read(read, 4096)
    os.close(read)
    os.close(write)
    own = vault.seal("ann", "c", "request", b"parent")
    assert from_child[1:9] != own[1:9]
    assert vault.open("c", "request", from_child) == b"child"
    assert vault.open("c", "request", own) == b"parent"


START = """
import sys
from pathlib import Path
from drivetrain.adapters.files import FileVault
sys.stdin.readline()
print(FileVault(Path(sys.argv[1])).seal("ann", "c", "request", b"x").hex())
"""


def test_four_processes_that_start_at_once_share_one_master_key(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", START, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    sealed = [bytes.fromhex(process.communicate()[0]) for process in started]
    assert [FileVault(folder).open("c", "request", one) for one in sealed] == [b"x"] * 4
    assert [path.name for path in folder.glob(".master*")] == []
