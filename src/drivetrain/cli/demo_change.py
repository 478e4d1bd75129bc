"""A change, proved and undone: what the demo does with Releases, each step by a command that anybody could run.

Owns the order of the steps, the two edits of the project, and what is told of them. Every figure is read from what the
commands say, from the ledger, and from what the clients counted. Called by `demo`, after its traffic; printed by
`demo_change_print`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from drivetrain.cli.demo_canary import KEY as CANARY_KEY
from drivetrain.cli.demo_canary import CanaryTraffic, send_canary
from drivetrain.cli.demo_commands import Command, EndedOtherwise, Ran, run_commands
from drivetrain.cli.demo_folder import ROUTE_FILE, DemoFolder
from drivetrain.cli.demo_report import MESSAGES_MIN
from drivetrain.cli.demo_texts import Texts
from drivetrain.cli.demo_traffic import BASELINE_EFFICIENT, CHAT, LABEL, ROUTE
from drivetrain.cli.demo_training import TrainedModelOfDemo

GOLDEN, EVAL = "golden", "intent-golden"
GOLDEN_ROWS = 300
"""Of the recorded messages; the Dataset is frozen before anything is changed."""
UPGRADE_ROWS = 400
"""Calls that are replayed at most. It ends as soon as the verdict is settled."""
SMALL, UPGRADE_TO = "sim/gpt-5-mini-2025-08-07", "sim-anthropic/claude-haiku-4-5-20251001"
CHAT_MODEL, CANARY_MODEL = "sim/gpt-4o-mini-2024-07-18", "sim/gpt-4.1-nano-2025-04-14"
"""Of `assistant`: what it asks, and what it is to ask; the simulator lets the second fail three times in ten."""
ROUTE_END = "        sure,\n        frontier,\n    ],\n    budget"
WORSE_END = "        efficient,\n    ],\n    budget"
"""The route of `intent` with one small model for all that no rule answers."""
FIRST = (
    Command((
        "dataset", "create", GOLDEN, "--from-calls", f"workflow = '{ROUTE}' and door = 'workflow'",
        "--with-outcomes", LABEL, "--sample", str(GOLDEN_ROWS), "--json",
    )),
    Command(("eval", "run", EVAL, "--json")),
    Command(("propose", "-m", "as it stands", "--json")),
    Command(("promote", "1", "--json")),
    Command(("live", "--json")),
    Command((
        "upgrade", BASELINE_EFFICIENT, "--candidate", UPGRADE_TO, "--expected", f"intent={LABEL}",
        "--rows", str(UPGRADE_ROWS), "--json",
    )),
)  # fmt: skip
GATE_EXIT, REFUSED_EXIT = 3, 1
WORSE = (
    Command(("propose", "-m", "one small model for all", "--json")),
    Command(("eval", "run", EVAL, "--json"), GATE_EXIT),
    Command(("promote", "2", "--json"), REFUSED_EXIT),
    Command(("withdraw", "2", "-m", "its gate did not pass")),
)
CANARY = (
    Command(("propose", "-m", "a cheaper model for the chat", "--json")),
    Command(("promote", "3", "--canary", "--json")),
)
AFTER = (
    Command(("rollout", "status", "--json")),
    Command(("live", "--json")),
    Command(("audit", "verify", "--json")),
)
TOO_FEW = f"it takes {MESSAGES_MIN} different messages"


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """What the control log says is live."""

    release: int
    snapshot: str
    since: str


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """The first Release, and the eval that it rests on."""

    eval: str
    dataset: str
    rows: int
    accuracy: float
    low: float
    high: float


class UpgradeVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What `drivetrain upgrade` found."""

    workflow: str
    before: str
    after: str
    verdict: str
    """`upgrade`, `stay`, `route only these` or `not enough evidence`."""
    why: str
    pairs: int
    better: int
    worse: int
    planned: int
    saved_calls: int
    """That were not made, because the verdict was settled."""
    cost_before_nano_usd: float
    cost_after_nano_usd: float
    """Per Call."""
    report: str


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """A proposal whose gates did not pass."""

    proposal: int
    gates: tuple[str, ...]
    """Those that failed, as they are declared."""
    accuracy: float
    accuracy_live: float
    eval_exit: int
    promote_exit: int
    told: str
    """Why it was not promoted, in the command's words."""


class Canary(msgspec.Struct, frozen=True, kw_only=True):
    """A Release that went back by itself."""

    release: int
    share: float
    guard: str
    at: str
    verdict: str
    """In the watcher's words."""
    evidence: dict[str, float]
    took_s: float
    """From the first request until the gateway served it no more."""
    calls: int
    failed: int
    """Of these, by the clients: answers that were no 200."""
    failed_by_candidate: int
    """Calls of the ledger that the candidate was asked and did not answer."""
    failed_by_live: int
    dropped: int
    afterwards: int
    afterwards_well: int

    @property
    def is_undone(self) -> bool:
        """Whether guards ended it, with nobody's request lost, and all is well since."""
        unharmed = self.dropped == self.failed_by_live == 0 and self.failed == self.failed_by_candidate
        return bool(self.guard) and unharmed and self.afterwards_well == self.afterwards > 0


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What became of two proposals and a question."""

    proof: Proof
    upgrade: UpgradeVerdict
    stopped: Stopped
    canary: Canary
    before: Live
    """After the first Release."""
    after: Live
    """At the end."""
    log_records: int
    log_whole: bool
    calls: int
    """By its evals, its upgrade and the canary's clients, as each counted by itself."""
    cost_nano_usd: int

    @property
    def holds(self) -> bool:
        """Whether what was worse was stopped, what failed was undone, and the first Release is live throughout."""
        return bool(self.stopped.gates) and self.canary.is_undone and self.log_whole and self.before == self.after


class NoChange(msgspec.Struct, frozen=True):
    """Why it was left out, or where it ended."""

    why: str
    holds: bool
    """Whether that is as it should be."""


def prove_and_undo(
    project: DemoFolder,
    texts: Texts,
    model: TrainedModelOfDemo | None,
    port: int,
    say: Callable[[str], None],
) -> Change | NoChange:
    """All of it; some ten seconds. Raises: DrivetrainError where the canary does not begin or end."""
    if len({one.text for one in texts.examples}) < MESSAGES_MIN:
        return NoChange(TOO_FEW, holds=True)
    try:
        return _all_steps(project, texts, model.variant if model is not None else "", port, say)
    except EndedOtherwise as ended:
        return NoChange(ended.what, holds=False)


def _all_steps(project: DemoFolder, texts: Texts, trained: str, port: int, say: Callable[[str], None]) -> Change:
    """trained: the trained model's lines in the route. Raises: EndedOtherwise; DrivetrainError."""
    say("releasing the project as it stands, and asking for an upgrade")
    _, proved, _, _, live, upgraded = run_commands(project.path, FIRST)
    say("proposing what is worse")
    with _edited(project, ROUTE_FILE, trained + ROUTE_END, WORSE_END):
        _, failed, refused, _ = run_commands(project.path, WORSE)
    say("rolling out what fails, to some users")
    with _edited(project, "drivetrain.toml", f'model = "{CHAT_MODEL}"', f'model = "{CANARY_MODEL}"'):
        _, promoted = run_commands(project.path, CANARY)
    traffic = send_canary(port, project.key(CANARY_KEY), texts, lambda: _share(project))
    status, live_after, audited = run_commands(project.path, AFTER)
    evals = [_asked(proved.json), _asked(failed.json)]
    spent = upgraded.json["upgrade"]["spent"]
    return Change(
        proof=_proof(proved.json),
        upgrade=_upgrade(upgraded.json),
        stopped=_stopped(failed, refused, proved),
        canary=_canary(project, promoted.json, status.json, traffic),
        before=_live(live.json),
        after=_live(live_after.json),
        log_records=audited.json["records"],
        log_whole=audited.json["whole"],
        calls=sum(calls for calls, _ in evals) + spent["asked"] + traffic.calls,
        cost_nano_usd=sum(cost for _, cost in evals) + spent["nano_usd"] + traffic.cost_nano_usd,
    )


@contextmanager
def _edited(project: DemoFolder, name: str, before: str, after: str) -> Iterator[None]:
    """The folder is a draft: what stands there is proposed, and then it stands there as it was."""
    project.edit(name, before, after)
    try:
        yield
    finally:
        project.edit(name, after, before)


def _share(project: DemoFolder) -> int:
    """Of the users that the candidate answers, as the gateway's worker tells it; in parts per million."""
    from drivetrain.embedded.serving import served_by

    return max((one.share_ppm for one in served_by(project.data_folder / "run")), default=0)


def _asked(report: Mapping[str, Any]) -> tuple[int, int]:
    """(Calls, nano-USD) that an eval's run asked for now, its baseline's aside: those were kept."""
    spent = report["body"]["spent"]
    return report["facts"]["answers"] - spent["reused"], spent["now_nano_usd"]


def _proof(report: Mapping[str, Any]) -> Proof:
    figure = report["body"]["gates"][0]
    return Proof(
        eval=report["facts"]["eval"], dataset=report["facts"]["dataset"], rows=report["facts"]["rows"],
        accuracy=figure["value"], low=figure["low"], high=figure["high"],
    )  # fmt: skip


def _upgrade(found: Mapping[str, Any]) -> UpgradeVerdict:
    body = found["upgrade"]
    whole, spent = body["verdict"]["whole"], body["spent"]
    cost = next(one for one in body["changes"] if one["name"] == "cost")
    return UpgradeVerdict(
        workflow=BASELINE_EFFICIENT, before=SMALL, after=UPGRADE_TO, verdict=body["verdict"]["word"],
        why=body["verdict"]["why"], pairs=whole["pairs"], better=whole["wins"], worse=whole["losses"],
        planned=spent["planned"], saved_calls=spent["saved_calls"], cost_before_nano_usd=cost["before"],
        cost_after_nano_usd=cost["after"], report=found["report"],
    )  # fmt: skip


def _stopped(failed: Ran, refused: Ran, proved: Ran) -> Stopped:
    report = failed.json
    return Stopped(
        proposal=2,
        gates=tuple(one["gate"] for one in report["body"]["gates"] if one["state"] == "failed"),
        accuracy=report["facts"]["accuracy"],
        accuracy_live=proved.json["facts"]["accuracy"],
        eval_exit=failed.code,
        promote_exit=refused.code,
        told=refused.complained.strip().partition("\n")[0],
    )


def _canary(
    project: DemoFolder, promoted: Mapping[str, Any], status: Mapping[str, Any], traffic: CanaryTraffic
) -> Canary:
    from drivetrain.embedded.asking import open_lake
    from drivetrain.lake.costs import LedgerQueries

    last = status["last"]
    rows = LedgerQueries(open_lake(project.path)).cost(("snapshot", "status"), where={"workflow": CHAT}).rows
    failed = {True: 0, False: 0}
    for row in rows:
        snapshot, ended = row.keys
        failed[promoted["snapshot"].startswith(snapshot)] += row.calls if ended != "answered" else 0
    return Canary(
        release=last["release"],
        share=promoted["rollout"]["stages"][0]["share_ppm"] / 1_000_000,
        guard=last["guard"],
        at=last["at"],
        verdict=last["verdict"],
        evidence=last["evidence"],
        took_s=traffic.took_s,
        calls=traffic.calls,
        failed=traffic.calls - traffic.well,
        failed_by_candidate=failed[True],
        failed_by_live=failed[False],
        dropped=traffic.dropped,
        afterwards=traffic.afterwards,
        afterwards_well=traffic.afterwards_well,
    )


def _live(found: Mapping[str, Any]) -> Live:
    return Live(release=found["release"], snapshot=found["snapshot"], since=found["since"])
