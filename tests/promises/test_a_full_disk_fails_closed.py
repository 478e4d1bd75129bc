"""Promise 13: on a full disk nothing is answered that cannot be recorded or counted, probes say so, and it recovers.

The disk is a small tmpfs of its own, below the ledger or below the counters; that takes root.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from promise_gateway import Gateway, eventually, gateway, simulated

from drivetrain.simulator import SimulatorProcess
from support import books, wire
from support.projects import model, provider, settings, workflow

DISK_BYTES = 4 * 1024 * 1024


def _may_mount() -> bool:
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return os.geteuid() == 0 and subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _may_mount(), reason="only root may mount a small disk"),
]


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess({"seed": 1, "models": {"m": simulated(output_tokens=5)}}) as running:
        yield running


@contextlib.contextmanager
def served_with_disk(simulator: SimulatorProcess, below: str) -> Iterator[tuple[Gateway, Path]]:
    """A gateway with a small disk of its own in `below` its data folder, and that place."""
    audited = workflow("audited", "sim/m", more='durability = "audit"\n')
    tables = (
        provider("sim", f"{simulator.url}/v1") + model("sim/m") + workflow("free", "sim/m") + audited
        + workflow("limited", "sim/m") + books.limit("month", "workflow:limited", usd="900")
        + books.limit("user", "each user", usd="900", mode="hard")
    )  # fmt: skip
    with gateway({"drivetrain.toml": settings(tables=tables)}, start=False) as made:
        place = made.data_folder / below
        place.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)], check=True)
        try:
            made.start()
            yield made, place
            made.stop()
        finally:
            if made.alive:
                made.kill()
            subprocess.run(["umount", "-l", str(place)], check=False)


def fill(place: Path) -> Path:
    filler = place / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4_096)
    return filler


def ask(served: Gateway, name: str, user: str = "") -> wire.Answered:
    body = {"model": name, "max_tokens": 20, "user": user, "messages": [{"role": "user", "content": "hello"}]}
    return wire.one(served.port, wire.request(body))


def readyz(served: Gateway) -> wire.Answered:
    return wire.one(served.port, wire.request(method="GET", path="/readyz"))


def refused_by(answer: wire.Answered) -> str:
    assert answer.status == 503, answer
    return str(answer.json["error"]["code"])


def test_without_room_for_the_ledger_nothing_is_answered(simulator: SimulatorProcess) -> None:
    with served_with_disk(simulator, "calls") as (served, place):
        for name in ("free", "audited", "limited"):
            assert ask(served, name).status == 200
        filler = fill(place)
        before = len(served.calls())
        # What fits into the last page of the segment is still recorded, and so may be answered.
        assert eventually(lambda: ask(served, "free").status == 503, every_s=0)
        for name in ("free", "audited", "limited"):
            assert refused_by(ask(served, name)) == "ledger_unavailable"
        probe = readyz(served)
        assert (probe.status, probe.json["status"]) == (503, "ledger_unavailable")
        assert "space" in probe.json["ledger"]
        answered = len(served.calls())
        assert answered >= before
        filler.unlink()
        assert eventually(lambda: readyz(served).status == 200)
        for name in ("free", "audited", "limited"):
            assert ask(served, name).status == 200


def test_what_was_spent_as_the_disk_filled_is_the_same_everywhere(simulator: SimulatorProcess) -> None:
    """A call that was sent before there was no more room, and ended after."""
    with served_with_disk(simulator, "calls") as (served, place):
        filler = fill(place)
        assert eventually(lambda: ask(served, "limited").status == 503, every_s=0)
        filler.unlink()
        assert eventually(lambda: ask(served, "limited").status == 200)
        check_books(served)


def test_without_room_for_the_counters_only_what_is_leased_is_spent(simulator: SimulatorProcess) -> None:
    with served_with_disk(simulator, "limits") as (served, place):
        assert ask(served, "limited").status == 200
        filler = fill(place)
        users = iter(range(10_000))
        # A user whom nobody has met yet has no slice.
        assert eventually(lambda: ask(served, "limited", f"u{next(users)}").status == 503, every_s=0)
        assert refused_by(ask(served, "limited", f"u{next(users)}")) == "limits_unavailable"
        assert eventually(lambda: readyz(served).status == 503)
        assert readyz(served).json["status"] == "limits_unavailable"
        filler.unlink()
        assert eventually(lambda: ask(served, "limited", f"u{next(users)}").status == 200)
        assert eventually(lambda: readyz(served).status == 200)
        check_books(served)


def check_books(served: Gateway) -> None:
    """The counters have settled what the ledger says, whatever failed meanwhile."""

    def spent() -> dict[str, int]:
        limited = [call for call in served.calls() if call.workflow == "limited"]
        return {**books.spent(limited, month="workflow"), **books.spent(served.calls(), user="user")}

    assert eventually(lambda: books.settled(served.data_folder, "month", "user") == spent()), (
        books.settled(served.data_folder, "month", "user"), spent(),
    )  # fmt: skip
