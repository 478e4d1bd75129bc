"""Whoever wants something live without its Reports and approvals: past the commands, at once, or by changed files."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from drivetrain.adapters.sqlite import SqliteControlLog
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.releases import PROMOTED, PROPOSED, EvidenceV1, ProposalV1, ReleaseV1, RulesV1
from drivetrain.embedded import promoting
from drivetrain.embedded.releasing import doubts_about, live_of, place_of, state_of, stored_snapshot
from drivetrain.project.load import unload
from drivetrain.promotion import releasing
from drivetrain.promotion.plan import Plan
from support.registered import register_words

pytestmark = pytest.mark.slow

TOML = """\
[project]
name = "shop"

[people.{me}]
roles = ["lead"]

[people.bob]
roles = ["risk"]

[[releases.approvals]]
aspect = "any"
roles = ["risk"]
"""
CODE = """\
import drivetrain as dt


class Note(dt.Record):
    text: str


class Intent(dt.Record):
    intent: str


words = dt.Workflow(
    "words", input=Note, output=Intent, owner="a@b.example", team="support", use_case="x",
    route=[dt.Variant("m", model="models:/words@champion")],
)
"""
GOLDEN = 'import drivetrain as dt\n\ngolden = dt.Eval("words-golden", dataset="golden@1", gates=["exact >= 0.9"])\n'


def me() -> str:
    from drivetrain.embedded.applying import person

    return person()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Release 1 is live, without rules; the folder proposes rules and an eval from now on."""
    root = tmp_path / "shop"
    (root / "workflows").mkdir(parents=True)
    (root / "evals").mkdir()
    (root / "drivetrain.toml").write_text('[project]\nname = "shop"\n', encoding="utf-8")
    (root / "workflows" / "words.py").write_text(CODE, encoding="utf-8")
    register_words(root, "words", {"refund": "refund", "parcel": "delivery"})
    promoting.propose(place_of(root), "first")
    promoting.promote(place_of(root), 1)
    return root


def with_rules(root: Path) -> None:
    (root / "drivetrain.toml").write_text(TOML.format(me=me()), encoding="utf-8")
    promoting.propose(place_of(root), "rules")
    promoting.promote(place_of(root), 2)


def edit(root: Path, text: str = "# edited") -> None:
    with (root / "workflows" / "words.py").open("a", encoding="utf-8") as file:
        file.write(f"\n{text}\n")


def log_of(root: Path) -> SqliteControlLog:
    return place_of(root).log()


def test_what_lacks_approvals_is_not_live_by_any_door(root: Path) -> None:
    with_rules(root)
    edit(root)
    proposal = promoting.propose(place_of(root), "quick").body
    with pytest.raises(DrivetrainError, match="0 of 1 approvals"):
        promoting.promote(place_of(root), 3)
    with pytest.raises(DrivetrainError, match="0 of 1 approvals"):
        releasing.promote(promoting.desk_of(place_of(root)), 3)
    with pytest.raises(DrivetrainError, match="nobody approves their own"):
        promoting.approve(place_of(root), 3)
    forged = ReleaseV1(
        number=3, environment="default", way="promote", snapshot=proposal.snapshot, previous=2, by=me(),
        proposal=3, proposal_hash=proposal.hash, workflows=tuple(sorted(proposal.keys)),
    )  # fmt: skip
    log_of(root).append(kind=PROMOTED, actor=me(), subject="default/3", body=msgspec.to_builtins(forged))
    live = live_of(root)
    assert live.release == 2
    assert "0 of 1 approvals" in live.refused[0]


def test_a_proposal_that_tells_less_than_it_changes_is_found_before_it_is_served(root: Path) -> None:
    (root / "evals" / "golden.py").write_text(GOLDEN, encoding="utf-8")
    planned = promoting.plan(place_of(root)).plan
    assert planned.lacks
    proposal = promoting.propose(place_of(root), "stores the Snapshot").body
    forged = ProposalV1(
        number=3, environment="default", snapshot=planned.snapshot, base=1, base_snapshot=planned.base_snapshot,
        by=me(), changes=planned.changes[:1], keys={}, rules=RulesV1(gates=False),
    )  # fmt: skip
    log_of(root).append(kind=PROPOSED, actor=me(), subject="default/3", body=msgspec.to_builtins(forged))
    with pytest.raises(DrivetrainError, match="no Report that it passed"):
        promoting.promote(place_of(root), 2)
    with pytest.raises(DrivetrainError, match="no record of a run"):
        releasing.promote(promoting.desk_of(place_of(root)), 2, evidence=[_invented(planned)])
    release = ReleaseV1(
        number=2, environment="default", way="promote", snapshot=proposal.snapshot, previous=1, by=me(),
        proposal=2, proposal_hash=proposal.hash, workflows=tuple(sorted(proposal.keys)),
        evidence=(_invented(planned),),
    )  # fmt: skip
    log_of(root).append(kind=PROMOTED, actor=me(), subject="default/2", body=msgspec.to_builtins(release))
    assert live_of(root).release == 2
    after = stored_snapshot(place_of(root), planned.snapshot)
    found = doubts_about(place_of(root), 2, after)
    unload(after)
    assert any("does not prove it" in one for one in found), "an invented Report is found by whoever is to serve it"


def _invented(planned: Plan) -> EvidenceV1:
    return msgspec.structs.replace(planned.evidence[0], report="0123456789abcdef")


def test_forged_rules_are_found(root: Path) -> None:
    edit(root)
    planned = promoting.plan(place_of(root)).plan
    promoting.propose(place_of(root), "stores the Snapshot")
    forged = ProposalV1(
        number=3, environment="default", snapshot=planned.snapshot, base=1, base_snapshot=planned.base_snapshot,
        by=me(), changes=planned.changes, keys=planned.keys, rules=RulesV1(override_roles=("x",)),
    )  # fmt: skip
    log = log_of(root)
    log.append(kind=PROPOSED, actor=me(), subject="default/3", body=msgspec.to_builtins(forged))
    for override in (False, True):
        with pytest.raises(DrivetrainError, match="rules are not its Snapshot's"):
            promoting.promote(place_of(root), 3, override=override, reason="fire")


def test_a_damaged_model_does_not_stand_in_the_way_of_what_replaces_it(root: Path) -> None:
    register_words(root, "words", {"refund": "refund", "parcel": "delivery", "late": "delivery"})
    damage_model(root)
    promoting.propose(place_of(root), "version 2")
    promoting.promote(place_of(root), 2)
    assert live_of(root).release == 2


def test_a_changed_artifact_after_approval_is_not_released(root: Path) -> None:
    edit(root)
    promoting.propose(place_of(root), "second")
    damage_model(root)
    with pytest.raises(DrivetrainError, match=r"words.1"):
        promoting.promote(place_of(root), 2)
    assert live_of(root).release == 1


@pytest.mark.parametrize("act", [promoting.approve, promoting.promote])
def test_a_stored_file_that_was_changed_is_not_released(root: Path, act: Callable[..., object]) -> None:
    edit(root)
    change_stored(root, promoting.propose(place_of(root), "second").body.snapshot)
    with pytest.raises(DrivetrainError, match="is damaged: its files do not have the hash"):
        act(place_of(root), 2)
    assert live_of(root).release == 1


def test_a_stored_file_that_was_changed_is_not_gone_back_to(root: Path) -> None:
    edit(root)
    first = live_of(root).snapshot
    promoting.propose(place_of(root), "second")
    promoting.promote(place_of(root), 2)
    change_stored(root, first)
    with pytest.raises(DrivetrainError, match="is damaged: its files do not have the hash"):
        promoting.roll_back(place_of(root), None, "worse")
    assert live_of(root).release == 2


def damage_model(root: Path) -> None:
    """A byte more in a file of version 1."""
    files = [one for one in sorted((root / ".drivetrain/data/models/words/1").rglob("*")) if one.is_file()]
    file = next(one for one in files if one.name != "model.json")
    file.chmod(0o600)
    file.write_bytes(file.read_bytes() + b"x")


def change_stored(root: Path, snapshot: str) -> None:
    stored = root / ".drivetrain" / "snapshots" / snapshot / "files" / "workflows" / "words.py"
    stored.write_text(stored.read_text(encoding="utf-8") + "# mine now\n", encoding="utf-8")


def test_moving_an_alias_changes_nothing_that_is_live(root: Path) -> None:
    before = live_of(root)
    register_words(root, "words", {"refund": "delivery", "parcel": "refund"})
    assert live_of(root) == before
    stored = stored_snapshot(place_of(root), before.snapshot)
    assert stored.pinned["models:/words@champion"].number == 1
    unload(stored)
    changes = promoting.plan(place_of(root)).plan.changes
    assert any(one.aspect == "variants" and "trained model words/1" in one.what for one in changes)


def cut(root: Path) -> None:
    with sqlite3.connect(root / ".drivetrain/data/control.db") as database:
        database.execute("DELETE FROM control WHERE seq = (SELECT max(seq) FROM control)")


def edited(root: Path) -> None:
    with sqlite3.connect(root / ".drivetrain/data/control.db") as database:
        database.execute(
            "UPDATE control SET body = replace(body, '\"by\":', '\"By\":') WHERE kind = 'release.proposed'"
        )


def removed(root: Path) -> None:
    for file in (root / ".drivetrain/data").glob("control.db*"):
        file.unlink()


@pytest.mark.parametrize("change", [cut, edited, removed])
def test_upon_a_log_that_was_changed_nothing_is_decided(root: Path, change: Callable[[Path], None]) -> None:
    edit(root)
    promoting.propose(place_of(root), "second")
    change(root)
    for act in (
        lambda: live_of(root),
        lambda: promoting.propose(place_of(root), "more"),
        lambda: promoting.promote(place_of(root), 2),
        lambda: promoting.roll_back(place_of(root), 1, "back"),
    ):
        with pytest.raises(DrivetrainError, match="changed from outside"):
            act()


def test_of_two_who_promote_at_once_one_is_first(root: Path) -> None:
    edit(root, "# one")
    promoting.propose(place_of(root), "one")
    edit(root, "# two")
    promoting.propose(place_of(root), "two")
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "drivetrain.cli.main", "promote", str(number), "--project", str(root)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (2, 3, 2)
    ]
    ended = [(one.communicate(timeout=200), one.returncode) for one in started]
    assert sorted(code for _, code in ended) == [0, 1, 1], ended
    state = state_of(place_of(root))
    assert [one.state for one in state.releases.values()] == ["retired", "live"]
    assert state.live.refused == (), "the losers wrote nothing"
    for (_, err), code in ended:
        if code:
            assert "Release 2" in err, "the loser is told what happened"


def test_who_decides_upon_what_another_has_just_done_decides_anew(root: Path) -> None:
    edit(root)
    promoting.propose(place_of(root), "second")

    class Busy(SqliteControlLog):
        """Somebody else writes between our reading and our writing, twice."""

        others = 2

        def append_after(self, seq: int, **record: object) -> object:  # type: ignore[override]
            if self.others:
                self.others -= 1
                self.append(kind="key", actor="else", subject="x", body={})
            return super().append_after(seq, **record)  # type: ignore[arg-type]

    place = place_of(root)
    busy = Busy(place.data_folder / "control.db", place.keys_folder)
    desk = msgspec.structs.replace(promoting.desk_of(place), log=busy)
    assert releasing.promote(desk, 2).body.number == 2
    assert busy.others == 0
    assert live_of(root).release == 2
