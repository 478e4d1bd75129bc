"""While a canary runs, two plans answer: by unit, sticky, growing with the share, and told by each Call's snapshot."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivetrain.core.calls import Attribution
from drivetrain.embedded.serving import served_by
from drivetrain.gateway.arms import is_candidates
from drivetrain.simulator import SimulatorProcess
from promises.promise_gateway import Gateway, chat_project, eventually, gateway, simulated
from support import wire
from support.projects import workflow
from support.releases import ID, Releases

pytestmark = pytest.mark.slow

USERS = [f"user-{number}" for number in range(60)]
TYPED = """
import drivetrain as dt


class Ticket(dt.Record):
    text: str
{more}

triage = dt.Workflow(
    "triage", input=Ticket, owner="a@b.c", team="support", use_case="tests",
    route=[dt.Rule("all", when=lambda ticket: True, then="{answer}")],
)
"""


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess({"seed": 1, "models": {"m": simulated(output_tokens=5)}}) as running:
        yield running


def project(url: str, answer: str, more: str = "") -> dict[str, str]:
    """`said` answers by a rule that tells which Snapshot is served, `other` is the same in all; `triage` takes a typed
    input."""
    rules = {name: f"{{ rule = 'all', matches = '[?]', answer = '{told}' }}" for name, told in
             (("said", answer), ("other", "same"))}  # fmt: skip
    both = "".join(workflow(name, rule, '{ name = "v0", model = "sim/m" }') for name, rule in rules.items())
    field = "    urgent: bool\n" if answer == "new" else ""
    typed = TYPED.replace("{answer}", answer).replace("{more}", field)
    return {**chat_project(url, more=both + more), "workflows/typed.py": typed}


def ask(port: int, user: str = "", name: str = "said", headers: str = "") -> wire.Answered:
    body = {"model": name, "messages": [{"role": "user", "content": "?"}], **({"user": user} if user else {})}
    return wire.one(port, wire.request(body, headers=headers))


def said(port: int, user: str = "", name: str = "said", headers: str = "") -> str:
    answer = ask(port, user, name, headers)
    assert answer.status == 200, answer
    text: str = answer.json["choices"][0]["message"]["content"]
    return text


class Canary:
    """A gateway with a Release of `old`, and one of `new` under way."""

    def __init__(
        self, served: Gateway, url: str, *shares: float, workers: int = 1, more: str = "", ago_s: int = 0
    ) -> None:
        self.served = served
        self.releases = Releases(served.root, ago_s=ago_s)
        self.workers = workers
        self.old = self.releases.store({}).hash
        self.new = self.releases.store(project(url, "new", more)).hash
        self.releases.release(self.old)
        assert self.follows(1, -1), served.stderr
        self.releases.release(self.new, ("said", "triage"), *shares)
        self.releases.beat()
        assert self.follows(1, int(shares[0] * 1e6)), served.stderr

    def follows(self, release: int, share_ppm: int) -> bool:
        """Whether every worker comes to serve so; share_ppm: -1: there is no candidate."""

        def now() -> bool:
            told = served_by(self.releases.run_folder)
            shares = {one.share_ppm if one.candidate else -1 for one in told}
            return len(told) == self.workers and {one.release for one in told} == {release} and shares == {share_ppm}

        return bool(eventually(now))


def test_arms_are_sticky_and_grow_with_the_share(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url, "old"), workers=2) as served:
        canary = Canary(served, simulator.url, 0.2, 0.5, workers=2)
        port = served.port

        def candidates() -> set[str]:
            first = {user: said(port, user) for user in USERS}
            assert {user: said(port, user) for user in USERS} == first, "a user saw both arms"
            by_header = {user: said(port, headers=f"x-drivetrain-user: {user}\r\n") for user in USERS}
            assert by_header == first
            return {user for user, answer in first.items() if answer == "new"}

        at_20 = candidates()
        assert at_20 == {user for user in USERS if is_candidates(ID, user, 200_000)}
        assert 2 <= len(at_20) <= 24
        assert {said(port, user, "other") for user in USERS} == {"same"}
        found = {one.snapshot for one in served.calls() if one.workflow == "other"}
        assert found == {canary.old[:16]}, "the rollout does not change `other`"
        canary.releases.event("stage", 1)
        canary.releases.beat()
        assert canary.follows(1, 500_000), served.stderr
        at_50 = candidates()
        assert at_20 < at_50
        for call in served.calls():
            arm = canary.new if call.workflow == "said" and call.attribution.user in at_20 else None
            assert arm is None or call.snapshot == arm[:16]
            if call.workflow == "said" and call.attribution.user not in at_50:
                assert call.snapshot == canary.old[:16]
        canary.releases.event("completed", 1)
        assert canary.follows(2, -1), served.stderr
        assert {said(port, user) for user in USERS} == {"new"}


def test_every_door_chooses_alike_and_a_refused_input_is_answered_by_live(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url, "old")) as served:
        canary = Canary(served, simulator.url, 0.5, more=workflow("only-new", "sim/m"))
        port = served.port
        user = next(one for one in USERS if is_candidates(ID, one, 500_000))
        header = f"x-drivetrain-user: {user}\r\n"

        def typed(body: dict[str, object]) -> wire.Answered:
            return wire.one(port, wire.request(body, path="/v1/workflows/triage", headers=header))

        def inferred(names: dict[str, list[object]]) -> wire.Answered:
            kinds = {"text": "BYTES", "urgent": "BOOL"}
            inputs = [
                {"name": name, "shape": [len(data)], "datatype": kinds[name], "data": data}
                for name, data in names.items()
            ]
            return wire.one(port, wire.request({"inputs": inputs}, path="/v2/models/triage/infer", headers=header))

        # The new input type has one more field, so the candidate refuses what live admits.
        answer = typed({"text": "late"})
        assert answer.json.get("output") == "old", answer
        call = served.call(answer.json["call_id"])
        assert call.notes == ("canary refused: invalid_type",)
        assert call.snapshot == canary.old[:16]
        answer = inferred({"text": ["late"]})
        assert answer.status == 200, answer
        call = served.call(answer.json["parameters"]["call_ids"])
        assert call.notes[0].startswith("canary refused: ")
        assert call.snapshot == canary.old[:16]
        # What live refuses is refused, whoever else would take it.
        assert typed({"text": "late", "urgent": True}).status == 400
        # What only the candidate has is not served yet.
        assert ask(port, user, "only-new").status == 404
        assert said(port, user) == "new"


def test_an_idempotency_key_gives_one_answer_across_stages(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url, "old")) as served:
        canary = Canary(served, simulator.url, 0.2, 1.0)
        user = next(one for one in USERS if not is_candidates(ID, one, 200_000))
        header = "idempotency-key: once\r\n"
        first = ask(served.port, user, headers=header)
        canary.releases.event("stage", 1)
        canary.releases.beat()
        assert canary.follows(1, 1_000_000)
        assert said(served.port, user) == "new"
        again = ask(served.port, user, headers=header)
        assert again.body == first.body


def test_without_its_watcher_a_canary_goes_back_to_live(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url, "old")) as served:
        canary = Canary(served, simulator.url, 1.0, ago_s=3600)
        beat = canary.releases.run_folder / "rollout.beat"
        assert said(served.port, "anna") == "new"

        def unwatched() -> bool:
            tell(served, signal.SIGSTOP)
            os.utime(beat, (time.time() - 31, time.time() - 31))
            told = served_by(canary.releases.run_folder)
            return bool(told) and all(not one.watched and not one.share_ppm for one in told)

        assert eventually(unwatched, every_s=0.1), served.stderr
        assert said(served.port, "anna") == "old"
        assert eventually(lambda: "\ndrivetrain_rollout_unwatched 1\n" in metrics(served.port))
        assert eventually(lambda: "watcher has shown no life" in served.stderr)
        canary.releases.beat()
        assert canary.follows(1, 1_000_000), served.stderr
        assert said(served.port, "anna") == "new"
        assert eventually(lambda: "\ndrivetrain_rollout_unwatched 0\n" in metrics(served.port))
        assert eventually(lambda: "is watched again" in served.stderr)
        assert served.stderr.count("watcher has shown no life") == 1
        tell(served, signal.SIGCONT)


def tell(served: Gateway, what: signal.Signals) -> None:
    """To whoever watches its canary; one that ended meanwhile hears nothing."""
    for pid in watchers(served):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, what)


def watchers(served: Gateway) -> list[int]:
    """Processes that watch its canary."""
    return [
        int(one.name)
        for one in Path("/proc").glob("[0-9]*")
        if str(served.root).encode() in command_line(one) and b"drivetrain.embedded.watching" in command_line(one)
    ]


def command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def metrics(port: int) -> str:
    return wire.one(port, wire.request(method="GET", path="/metrics")).body.decode()


def test_a_restart_comes_back_into_the_same_stage(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url, "old"), workers=2) as served:
        canary = Canary(served, simulator.url, 0.2, 0.5, workers=2)
        canary.releases.event("stage", 1)
        canary.releases.beat()
        assert canary.follows(1, 500_000)
        before = {user: said(served.port, user) for user in USERS}
        served.kill()
        served.start()
        canary.releases.beat()
        assert canary.follows(1, 500_000), served.stderr
        assert {user: said(served.port, user) for user in USERS} == before
        assert {one.stage for one in served_by(canary.releases.run_folder)} == {1}


def test_units_are_shared_out_evenly_and_alike_everywhere() -> None:
    """1,000 random rollouts and units: monotone in the share, and as many as the share says."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    for _ in range(1_000):
        rollout, unit = f"{dice.getrandbits(64):016x}", f"u{dice.getrandbits(40)}"
        shares = sorted(dice.randrange(1_000_001) for _ in range(4))
        arms = [is_candidates(rollout, unit, share) for share in (0, *shares, 1_000_000)]
        assert arms == sorted(arms)
        assert (arms[0], arms[-1]) == (False, True)
    have = sum(is_candidates(ID, f"unit {number}", 50_000) for number in range(20_000))
    assert 850 < have < 1_150, "5 % of 20,000, five standard deviations"
    assert Attribution("t", "", "", "k", "u").unit == "u"
    assert Attribution("t", "", "", "k", "").unit == "k"
    assert Attribution("t", "", "", "", "").unit == "t"
