"""Copies for the shadow leave unfelt: which ones, how many bytes, and what happens where nobody takes them."""

from __future__ import annotations

import asyncio
import random
import secrets
import socket
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from drivetrain.core.calls import Attribution
from drivetrain.core.ids import call_ids
from drivetrain.core.releases import WHOLE, ActiveRollout
from drivetrain.embedded.shadow_socket import (
    DATAGRAM_BYTES_MAX,
    Copy,
    Received,
    Unreadable,
    listening,
    packed,
    socket_path,
    unpacked,
)
from drivetrain.execution.plan import Plans, compile_plans
from drivetrain.gateway.copies import COPY_BYTES_MAX, HELD_BYTES_MAX, PAUSE_S_MAX, Copies, connected
from drivetrain.project import load
from support.projects import model, provider, settings, workflow
from support.shadows import ID, rollout
from support.tries import PATIENCE_S

pytestmark = pytest.mark.slow

WHO = Attribution("acme", "support", "tests", "app", "anna", ("blue",))


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="drivetrain-copies-") as made:
        yield Path(made)


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Plans:
    root = tmp_path_factory.mktemp("copies")
    tables = provider("up", "http://127.0.0.1:9/v1") + model("up/m") + workflow("help", "up/m")
    (root / "drivetrain.toml").write_text(settings(tables=tables))
    return compile_plans(load(root), lambda _: "")


def active(*, ppm: int = WHOLE, id_: str = ID, snapshot: str = "c" * 64, paused: bool = False) -> ActiveRollout:
    return ActiveRollout(
        release=2, snapshot=snapshot, workflows=("help",), rollout=rollout(ppm=ppm, id_=id_), stage=0, stage_ns=0,
        started_ns=0, paused=paused,
    )  # fmt: skip


def on_loop(
    folder: Path,
    what: Callable[[Copies], Coroutine[Any, Any, None]],
    connect: Callable[[Path], socket.socket] = connected,
) -> dict[str, int]:
    """What was counted of copies to a shadow in `folder`."""

    async def run() -> dict[str, int]:
        copies = Copies(folder, asyncio.get_running_loop(), connect)
        copies.use(active())
        await what(copies)
        copies.close()
        return copies.counts()

    return asyncio.run(run())


def copy(number: int, request: bytes, answer: bytes = b"") -> tuple[Copy, bytes, bytes]:
    return Copy(f"call_{number}", "help", "chat", WHO, len(request), len(answer), "refund"), request, answer


def taken(from_: socket.socket) -> list[Received]:
    """Everything that lies in the socket."""
    found: list[Received] = []
    buffer = bytearray(DATAGRAM_BYTES_MAX)
    while True:
        try:
            size = from_.recv_into(buffer)
        except BlockingIOError:
            return found
        of, copies = unpacked(memoryview(buffer)[:size])
        assert of == ID
        found += copies


def test_what_is_sent_arrives_whole_and_in_its_order(folder: Path) -> None:
    seed = secrets.randbelow(2**32)
    print("seed", seed)
    drawn = random.Random(seed)
    wanted = [
        copy(number, drawn.randbytes(drawn.randrange(3_000)), drawn.randbytes(drawn.choice([0, 1, 900])))
        for number in range(200)
    ]
    arrived: list[Received] = []
    with listening(socket_path(folder)) as shadow:

        async def send(copies: Copies) -> None:
            for one in wanted:
                copies.add(*one)
                if drawn.random() < 0.1:
                    await asyncio.sleep(0)
                    arrived.extend(taken(shadow))  # the kernel holds only a few datagrams
            await asyncio.sleep(0.1)

        counted = on_loop(folder, send)
        arrived += taken(shadow)
    assert arrived == [Received(*one) for one in wanted]
    assert counted == {"help\x00sent": 200}


def test_what_is_no_datagram_of_a_worker_is_refused() -> None:
    seed = secrets.randbelow(2**32)
    print("seed", seed)
    drawn = random.Random(seed)
    good = b"".join(packed(ID, [copy(1, b"request", b"answer")[0]], [b"request", b"answer"]))
    for _ in range(2_000):
        bad = bytearray(good)
        if drawn.random() < 0.5:
            bad = bad[: drawn.randrange(len(bad))]
        else:
            bad += drawn.randbytes(drawn.randrange(1, 20))
        with pytest.raises(Unreadable):
            list(unpacked(memoryview(bad))[1])


def test_a_sample_is_the_same_wherever_it_is_drawn(folder: Path, plans: Plans) -> None:
    plan = plans.workflows["help"]
    next_id = call_ids(iter(range(10**18, 10**19)).__next__)
    ids = [next_id() for _ in range(20_000)]

    async def draw(ppm: int, id_: str = ID, snapshot: str = "c" * 64) -> set[str]:
        copies = Copies(folder, asyncio.get_running_loop())
        copies.use(active(ppm=ppm, id_=id_, snapshot=snapshot))
        return {one for one in ids if copies.chosen(plan, one)}

    few, again, more, other = (
        asyncio.run(draw(*of)) for of in ((100_000,), (100_000,), (300_000,), (100_000, "another-rollout"))
    )
    assert few == again
    assert few < more, "a larger share does not hold the smaller one"
    assert abs(len(few) - 2_000) < 250  # 5 standard deviations
    assert abs(len(few & other) - 200) < 100, "two rollouts sample the same Calls"
    assert asyncio.run(draw(WHOLE)) == set(ids)
    own = plans.snapshot.hash
    assert not asyncio.run(draw(WHOLE, ID, own)), "what the candidate answered is copied to the candidate"


def test_nothing_is_copied_without_a_shadow(folder: Path) -> None:
    async def run() -> list[frozenset[str]]:
        copies = Copies(folder, asyncio.get_running_loop())
        seen = [copies.workflows]
        for now in (active(), active(paused=True), active(), active(ppm=0), active(), None):
            copies.use(now)
            seen.append(copies.workflows)
        return seen

    none, help_ = frozenset[str](), frozenset({"help"})
    assert asyncio.run(run()) == [none, help_, none, help_, none, help_, none]


def test_what_is_too_large_is_not_copied_and_large_answers_are_left_out(folder: Path, plans: Plans) -> None:
    from drivetrain.execution.call import CallResult

    class Client:
        def on_stream(self, data: bytes) -> None: ...

        def on_finished(self, result: CallResult) -> None:
            heard.append(result.call_id)

    heard: list[str] = []
    plan = plans.workflows["help"]

    def ended(call_id: str, answer: bytes, status: str = "answered") -> CallResult:
        return CallResult(call_id, status, 200, answer, None, "v0", 0, ())

    with listening(socket_path(folder)) as shadow:

        async def send(copies: Copies) -> None:
            for call_id, extra, answer, status in (
                ("fits", 100, b"a" * 100, "answered"),
                ("answer too large", 100, b"a" * COPY_BYTES_MAX, "answered"),
                ("request too large", COPY_BYTES_MAX, b"a", "answered"),
                ("just fits", COPY_BYTES_MAX - 1_000, b"", "failed"),
                ("refused", 100, b"no", "refused"),
                ("left", 100, b"", "aborted"),
            ):
                admitted = plan.admit("chat", _chat(extra))
                copies.of(Client(), plan, admitted, WHO, "chat").on_finished(ended(call_id, answer, status))
            await asyncio.sleep(0.1)

        counted = on_loop(folder, send)
        arrived = [(one.copy.call_id, len(one.answer)) for one in taken(shadow)]
    assert heard == ["fits", "answer too large", "request too large", "just fits", "refused", "left"]
    assert arrived == [("fits", 100), ("answer too large", 0), ("just fits", 0)]
    assert counted == {"help\x00sent": 3, "help\x00unsent": 1}


def _chat(more: int) -> bytes:
    return b'{"model":"help","messages":[{"role":"user","content":"%b"}]}' % (b"x" * more)


@pytest.mark.parametrize("there", ["nobody", "somebody who does not read"])
def test_where_nobody_takes_them_copies_are_dropped_counted_and_cost_next_to_nothing(folder: Path, there: str) -> None:
    """So it is with a shadow that is gone and with one that is stopped."""
    tries = 0

    class Counting(socket.socket):
        """Counts its system calls."""

        def sendmsg(self, *of: Any) -> int:
            nonlocal tries
            tries += 1
            return super().sendmsg(*of)

    def connect(path: Path) -> socket.socket:
        nonlocal tries
        tries += 1
        made = Counting(socket.AF_UNIX, socket.SOCK_DGRAM)
        made.setblocking(False)
        made.connect(str(path))
        return made

    async def send(copies: Copies) -> None:
        loop = asyncio.get_running_loop()
        until, number = loop.time() + 1.0, 0
        while loop.time() < until or number < 2_000:  # where the machine stood still meanwhile, many all the same
            for _ in range(100):
                copies.add(*copy(number, b"x" * 2_000))
                number += 1
            assert copies.held_bytes <= HELD_BYTES_MAX
            await asyncio.sleep(0.002)

    if there == "nobody":
        counts = on_loop(folder, send, connect)
        assert counts.keys() == {"help\x00unsent"}
        assert 0 < tries <= 8, f"{tries} tries in a second, though nobody listens"
    else:
        with listening(socket_path(folder)):
            counts = on_loop(folder, send, connect)
        assert counts["help\x00unsent"] > counts["help\x00sent"] > 0
        assert 0 < tries <= 60, f"{tries} tries in a second, though nobody reads"


def test_a_shadow_that_comes_back_gets_copies_again(folder: Path) -> None:
    got: list[Received] = []

    async def send(copies: Copies) -> None:
        for number in range(50):
            copies.add(*copy(number, b"lost"))
            await asyncio.sleep(0.005)
        for life in range(2):
            with listening(socket_path(folder)) as shadow:
                until = asyncio.get_running_loop().time() + PAUSE_S_MAX + PATIENCE_S
                before = len(got)
                while len(got) == before:
                    assert asyncio.get_running_loop().time() < until, f"life {life} gets nothing"
                    copies.add(*copy(100 + life, b"found"))
                    await asyncio.sleep(0.01)
                    got.extend(taken(shadow))

    counted = on_loop(folder, send)
    assert {one.copy.call_id for one in got} == {"call_100", "call_101"}
    assert counted["help\x00unsent"] >= 50


def test_what_waits_when_the_stage_ends_is_dropped(folder: Path) -> None:
    """Else another rollout's shadow would get it."""
    with listening(socket_path(folder)) as shadow:

        async def send(copies: Copies) -> None:
            copies.add(*copy(1, b"too late"))
            copies.use(active(id_="another-rollout"))
            await asyncio.sleep(0.1)
            assert copies.held_bytes == 0

        assert on_loop(folder, send) == {"help\x00unsent": 1}
        assert taken(shadow) == []


def test_a_path_too_long_for_a_socket_gets_one_elsewhere(folder: Path) -> None:
    deep = folder / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    path = socket_path(deep)
    assert len(bytes(path)) < 108
    assert path == socket_path(deep) != socket_path(folder)
    with listening(path):
        assert path.stat().st_mode & 0o077 == 0
    path.unlink()
    path.parent.rmdir()
