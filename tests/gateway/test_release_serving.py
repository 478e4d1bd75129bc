"""What a gateway serves follows the Releases: at the start, while it runs, and in every worker."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator

import pytest

from drivetrain.embedded.serving import served_by
from drivetrain.simulator import SimulatorProcess
from promises.promise_gateway import Gateway, chat_project, eventually, gateway, simulated
from support import wire
from support.projects import workflow
from support.releases import Releases
from support.tries import measured

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess({"seed": 1, "models": {"m": simulated(output_tokens=5)}}) as running:
        yield running


def project(url: str, answer: str, more: str = "") -> dict[str, str]:
    """`said` answers by a rule, so that it tells which Snapshot is served."""
    rule = f"{{ rule = 'all', matches = '[?]', answer = '{answer}' }}"
    return chat_project(url, more=workflow("said", rule, '{ name = "v0", model = "sim/m" }') + more)


def said(port: int, user: str = "") -> str:
    body = {"model": "said", "messages": [{"role": "user", "content": "?"}], **({"user": user} if user else {})}
    answer = wire.one(port, wire.request(body))
    assert answer.status == 200, answer
    text: str = answer.json["choices"][0]["message"]["content"]
    return text


def metrics(served: Gateway) -> str:
    return wire.one(served.port, wire.request(method="GET", path="/metrics")).body.decode()


def all_serve(releases: Releases, release: int, workers: int = 1) -> bool:
    served = served_by(releases.run_folder)
    return len(served) == workers and all(one.release == release for one in served)


def test_a_gateway_serves_the_release_and_never_the_folder(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url, "released"), start=False) as served:
        releases = Releases(served.root)
        releases.release(releases.store({}).hash)
        served.write(project(simulator.url, "folder"))
        served.start()
        assert said(served.port) == "released"
        served.signal(signal.SIGHUP)
        assert eventually(lambda: "the project's folder is not loaded" in served.stderr), served.stderr
        assert said(served.port) == "released"
        served.write({"drivetrain.toml": "[project\n"})
        served.stop()
        served.start()
        assert said(served.port) == "released"
        assert [one.release for one in served_by(releases.run_folder)] == [1]
        served.stop()
        assert not served_by(releases.run_folder)


def test_workers_follow_releases_and_rollbacks(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url, "first"), workers=2) as served:
        releases = Releases(served.root)
        assert all_serve(releases, 0, 2)
        pids = served.worker_pids
        first = releases.store({}).hash
        second = releases.store(project(simulator.url, "second")).hash
        releases.release(first)
        assert eventually(lambda: all_serve(releases, 1, 2)), served.stderr
        assert {said(served.port) for _ in range(8)} == {"first"}
        releases.release(second)
        assert eventually(lambda: all_serve(releases, 2, 2)), served.stderr
        assert {said(served.port) for _ in range(8)} == {"second"}
        numbers = [2]

        def back() -> float:
            if len(numbers) > 1:  # another whole try
                numbers.append(releases.release(second))
                assert eventually(lambda: all_serve(releases, numbers[-1], 2)), served.stderr
            numbers.append(releases.roll_back(1, first))
            begun = time.monotonic()
            assert eventually(lambda: all_serve(releases, numbers[-1], 2)), served.stderr
            return time.monotonic() - begun

        measured(1.5, back)
        assert {said(served.port) for _ in range(8)} == {"first"}
        assert served.worker_pids == pids
        assert eventually(lambda: f"\ndrivetrain_release {numbers[-1]}\n" in metrics(served))
        snapshots = [call.snapshot for call in served.calls() if call.workflow == "said"]
        assert set(snapshots) == {first[:16], second[:16]}


def test_a_release_that_cannot_be_loaded_is_told_and_the_old_one_served(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url, "good")) as served:
        releases = Releases(served.root)
        good = releases.store({}).hash
        releases.release(good)
        assert eventually(lambda: all_serve(releases, 1))
        bad = releases.store(project(simulator.url, "tampered"))
        planned = releases.planned(bad.hash)
        changed = bad.snapshots_folder / bad.hash / "files" / "drivetrain.toml"
        changed.write_text(changed.read_text().replace("tampered", "worse"))
        releases.release(bad.hash, planned=planned)
        assert eventually(lambda: "is not served, the old one is served on" in served.stderr)
        assert "do not have the hash" in served.stderr
        assert said(served.port) == "good"
        (told,) = served_by(releases.run_folder)
        assert (told.release, told.snapshot) == (1, good)
        assert told.failed
        assert eventually(lambda: "\ndrivetrain_release_failures_total 1\n" in metrics(served))
        shutil.rmtree(bad.snapshots_folder / bad.hash)
        releases.roll_back(1, good)
        assert eventually(lambda: all_serve(releases, 3))
        assert said(served.port) == "good"


def test_a_gateway_does_not_start_with_a_damaged_release(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url, "good"), start=False) as served:
        releases = Releases(served.root)
        snapshot = releases.store({})
        releases.release(snapshot.hash)
        shutil.rmtree(snapshot.snapshots_folder / snapshot.hash)
        with pytest.raises(AssertionError):
            served.start()
        assert "Release 1 is live in `default`, and its Snapshot" in served.stderr
        assert "drivetrain rollback" in served.stderr
        assert "Traceback" not in served.stderr
