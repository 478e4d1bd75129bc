"""`drivetrain keys`: what the commands print and where, and what they refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from keys_world import DECLARED, KEYS, Keys, project_files, written

from drivetrain.core.keys import is_well_formed
from drivetrain.core.times import parse_iso

pytestmark = pytest.mark.slow

DAY_NS = 86_400_000_000_000


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    more = '[env.prod.keys.only-prod]\nsecret = "env:PROD_KEY"\n'
    return Keys(written(tmp_path / "project", project_files(DECLARED + more)))


def test_the_key_is_on_standard_output_alone(keys: Keys) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", KEYS, "issue", "app", "--team", "support", "--project", str(keys.root)],
        capture_output=True, text=True, env=os.environ, timeout=50, check=True,
    )  # fmt: skip
    key = ended.stdout.removesuffix("\n")
    assert is_well_formed(key.encode())
    assert "shown this once" in ended.stderr
    assert "never expires" in ended.stderr
    assert key not in ended.stderr


def test_a_key_is_issued_as_asked(keys: Keys) -> None:
    asked = ["--team", "support", "--use-case", "chat", "--tenant", "acme", "--workflows", "help, other"]
    said = keys.run("issue", "app", *asked, "--may-override", "user,tags", "--expires", "90d", "--json").json
    assert is_well_formed(said["key"].encode())
    assert said["last4"] == said["key"][-4:]
    assert said["workflows"] == ["help", "other"]
    assert said["may_override"] == ["user", "tags"]
    assert (said["team"], said["use_case"], said["tenant"]) == ("support", "chat", "acme")
    assert abs(parse_iso(said["expires"]) - time.time_ns() - 90 * DAY_NS) < DAY_NS / 24
    (record,) = keys.logged("app")
    assert json.loads(record.body)["workflows"] == ["help", "other"]


def test_list_and_show_hide_the_key(keys: Keys) -> None:
    made = [keys.issue("app", "--team", "support"), keys.rotate("app", "--overlap", "7d"), keys.issue("other")]
    keys.revoke("other")
    listed = [json.loads(line) for line in keys.run("list", "--json").stdout.splitlines()]
    assert [(one["name"], one["generation"], one["state"]) for one in listed] == [
        ("app", 1, "ending"), ("app", 2, "active"), ("other", 1, "revoked"),
    ]  # fmt: skip
    table = keys.run("list").stdout
    for key in made:
        assert key[-4:] in table
    shown = keys.run("show", "app").stdout
    assert "team support" in shown
    assert "all workflows" in shown
    assert [one["generation"] for one in keys.run("show", "app", "--json").json["generations"]] == [1, 2]
    everything = "".join(said.stdout + said.stderr for said in keys.said[3:])
    assert not any(key[3:-6] in everything for key in made)
    assert "digest" not in everything


def test_looking_needs_no_key_and_makes_nothing(keys: Keys) -> None:
    assert "No key was issued" in keys.run("list").stderr
    assert keys.run("list", "--json").stdout == ""
    assert not (keys.root / ".drivetrain").exists()


def test_a_rotation_gives_the_same_lifetime_unless_told(keys: Keys) -> None:
    keys.issue("app", "--expires", "30d")
    said = keys.run("rotate", "app", "--overlap", "2h", "--json").json
    assert said["generation"] == 2
    assert abs(parse_iso(said["expires"]) - time.time_ns() - 30 * DAY_NS) < DAY_NS / 24
    assert keys.run("rotate", "app", "--expires", "never", "--json").json["expires"] is None
    old = keys.run("show", "app", "--json").json["generations"]
    for one in old[:2]:
        assert parse_iso(one["expires"]) < time.time_ns() + DAY_NS / 8
    keys.issue("open")
    assert keys.run("rotate", "open", "--json").json["expires"] is None


def test_near_names_are_suggested(keys: Keys) -> None:
    keys.issue("billing-app")
    for command in (["show", "biling-app"], ["rotate", "billing_app"], ["revoke", "billingapp", "--now"]):
        assert "Did you mean `billing-app`?" in keys.run(*command, code=1).stderr
    assert "Did you mean `help`?" in keys.run("issue", "x", "--workflows", "hepl", code=1).stderr
    assert "Did you mean `support`?" in keys.run("issue", "x", "--team", "suport", code=1).stderr
    assert "Did you mean `tags`?" in keys.run("issue", "x", "--may-override", "user,tag", code=1).stderr


REFUSED = [
    (["issue", "Big Name"], "is no name for a key"),
    (["issue", "x", "--expires", "soon"], "is no time to expire"),
    (["issue", "x", "--expires", "2020-01-01"], "is over"),
    (["issue", "x", "--expires", "0d"], "is over"),
    (["issue", "x", "--expires", "999999d"], "days away"),
    (["issue", "x", "--workflows", ","], "names nothing"),
    (["issue", "x", "--tenant", "a\nb"], "--tenant is no name"),
    (["issue", "x", "--use-case", "y" * 257], "--use-case is no name"),
    (["issue", "declared"], "is declared in drivetrain.toml"),
    (["issue", "only-prod"], "is declared in drivetrain.toml"),
    (["rotate", "declared"], "is declared in drivetrain.toml"),
    (["revoke", "declared", "--now"], "is declared in drivetrain.toml"),
    (["rotate", "app", "--overlap", "soon"], "is no duration"),
    (["rotate", "app", "--overlap", "91d"], "longer than 90 days"),
    (["issue", "app"], "was issued before"),
    (["revoke", "app"], "--now"),
]


def test_what_is_refused_changes_nothing(keys: Keys) -> None:
    keys.issue("app")
    for arguments, said in REFUSED:
        refused = keys.run(*arguments, code=1)
        assert said in refused.stderr, arguments
        assert refused.stdout == ""
    assert keys.actions() == ["issue"]


def test_revoking_twice_is_no_error_and_one_record(keys: Keys) -> None:
    keys.issue("app")
    assert keys.run("revoke", "app", "--now", "--json").json == {"name": "app", "revoked": [1]}
    assert "had been revoked before" in keys.run("revoke", "app", "--now").stderr
    assert "cannot come back" in keys.run("rotate", "app", code=1).stderr
    assert keys.actions("app") == ["issue", "revoke"]


def test_revoking_and_rotating_need_no_project_without_mistakes(keys: Keys) -> None:
    keys.issue("app")
    keys.issue("other")
    (keys.root / "workflows").mkdir()
    (keys.root / "workflows" / "broken.py").write_text("def (:")
    assert "mistake" in keys.run("issue", "third", code=1).stderr
    keys.rotate("other")
    keys.revoke("app")
    assert keys.actions() == ["issue", "issue", "rotate", "revoke"]
    assert keys.log.verify().whole
