"""`[teams.NAME]` and `[keys.NAME]` of drivetrain.toml: who calls, and who pays for it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from drivetrain.core.errors import did_you_mean
from drivetrain.project.names import E_MAIL, named
from drivetrain.project.problems import shown
from drivetrain.project.secrets import read_reference
from drivetrain.project.snapshot import Key
from drivetrain.project.tables import Table

OVERRIDES = ("team", "use_case", "user", "tags")
TEAM_KEYS = ("owner", "description")
KEY_KEYS = ("secret", "tenant", "team", "use_case", "workflows", "may_override")


class Team(msgspec.Struct, frozen=True, kw_only=True):
    """Who pays and who answers."""

    name: str
    owner: str = ""


def read_teams(tables: Table) -> dict[str, Team]:
    """Every team; mistakes are noted."""
    teams = {}
    for name, table in tables.tables():
        named(table, name)
        table.only(TEAM_KEYS)
        owner = table.text("owner")
        table.text("description")
        if owner and not E_MAIL.fullmatch(owner):
            table.note(
                "owner", "is not an e-mail address.", value=shown(owner), do='Write for example "team@acme.example".'
            )
        teams[name] = Team(name=name, owner=owner)
    return teams


def read_keys(tables: Table, teams: Mapping[str, Team]) -> dict[str, Key]:
    """The keys that say where their secret is; every mistake is noted."""
    keys: dict[str, Key] = {}
    used: dict[str, str] = {}
    for name, table in tables.tables():
        named(table, name)
        table.only(KEY_KEYS, hints={"key": "Did you mean `secret`?"})
        secret = read_reference(table, "secret", needed=True)
        team = table.text("team")
        if team and teams and team not in teams:
            table.note("team", "names no team.", value=shown(team), do=did_you_mean(team, teams))
        if secret is None:
            continue
        if secret.reference in used:
            table.note(
                "secret",
                f"is the secret of key `{used[secret.reference]}` too; a key must belong to one.",
                value=secret.reference,
            )
        used.setdefault(secret.reference, name)
        keys[name] = Key(
            name=name, secret=secret, tenant=table.text("tenant"), team=team, use_case=table.text("use_case"),
            workflows=table.texts("workflows"),
            may_override=table.texts("may_override", choices=OVERRIDES) or (),
            line=table.line(),
        )  # fmt: skip
    return keys
