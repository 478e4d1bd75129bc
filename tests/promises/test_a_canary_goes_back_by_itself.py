"""A candidate that fails half of its users is rolled back by the gateway's own watcher, which survives being killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivetrain.core.releases import GuardV1, RolloutV1, StageV1
from drivetrain.embedded.releasing import place_of, state_of
from drivetrain.embedded.rollouts import told_by
from drivetrain.embedded.serving import served_by
from drivetrain.simulator import SimulatorProcess
from promises.promise_gateway import chat_project, eventually, gateway, simulated
from support import shadows, wire
from support.projects import workflow
from support.releases import Releases

USERS = 60


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess({"seed": 1, "models": {"m": simulated(output_tokens=5)}}) as running:
        yield running


def project(url: str, *, works: bool) -> dict[str, str]:
    """`said` answers by a rule, or nobody does: nothing listens where its model is."""
    rule = "{ rule = 'all', matches = '[?]', answer = 'yes' }"
    nobody = '[providers.gone]\ndialect = "openai"\nbase_url = "http://127.0.0.1:9/v1"\n'
    price = '[models."gone/m"]\nusd_per_million_input = "1"\nusd_per_million_output = "1"\n'
    route = (rule, '{ name = "v0", model = "sim/m" }') if works else ('{ name = "v0", model = "gone/m" }',)
    return chat_project(url, more=nobody + price + workflow("said", *route))


def canary() -> RolloutV1:
    """Half of the users, guarded by errors."""
    return RolloutV1(
        id="0" * 16, stages=(StageV1(share_ppm=500_000, minutes=60, units=20),), guards=(GuardV1(watch="errors"),)
    )


def asked(port: int, user: int) -> int:
    body = {"model": "said", "messages": [{"role": "user", "content": "?"}], "user": f"user-{user}"}
    status: int = wire.one(port, wire.request(body)).status
    return status


def watchers(root: Path) -> list[int]:
    """Processes that watch this project."""
    found = []
    for one in Path("/proc").iterdir():
        if one.name.isdigit():
            try:
                command = (one / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"drivetrain.embedded.watching" in command and str(root).encode() in command:
                found.append(int(one.name))
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_canary_goes_back_by_itself(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url, works=True)) as served:
        releases = Releases(served.root)
        releases.release(releases.store({}).hash)
        candidate = releases.store(project(simulator.url, works=False))
        shadows.release(served.root, candidate, "said", number=2, rolled=canary())
        run_folder = releases.run_folder
        assert eventually(lambda: any(one.share_ppm for one in served_by(run_folder))), served.stderr
        assert eventually(lambda: bool(watchers(served.root)))
        first = [asked(served.port, user) for user in range(8)]
        assert eventually(lambda: told_by(run_folder) is not None)
        (watcher,) = watchers(served.root)
        os.kill(watcher, signal.SIGSTOP)  # so that it cannot decide before all were asked
        statuses = first + [asked(served.port, user) for user in range(8, USERS)]
        os.kill(watcher, signal.SIGKILL)
        assert {200} < set(statuses)  # half of them are the candidate's
        assert eventually(lambda: state_of(place_of(served.root)).live.active is None), served.stderr
        _, event = state_of(place_of(served.root)).releases[2].events[-1]
        assert (event.event, event.by, event.guard) == ("aborted", "guards", "errors")
        assert event.evidence["calls_candidate"] + event.evidence["calls_live"] == USERS  # none was lost
        assert eventually(lambda: not any(one.candidate for one in served_by(run_folder)))
        assert {asked(served.port, user) for user in range(USERS)} == {200}
        assert eventually(lambda: not watchers(served.root), every_s=0.1)
