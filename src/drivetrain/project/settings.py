"""drivetrain.toml -> settings, for one environment. Every mistake is kept with its line.

Owns which sections there are; each is read by a module of its own, `[workflows]` by `chat_workflows`. Whether names fit
together with workflows is for `checks`.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from drivetrain.core.errors import did_you_mean
from drivetrain.core.limits import Limit
from drivetrain.core.releases import RulesV1
from drivetrain.project.caller_settings import Team, read_keys, read_teams
from drivetrain.project.document import Document
from drivetrain.project.gateway_settings import read_gateway
from drivetrain.project.limits import declared_limits
from drivetrain.project.model_settings import read_models
from drivetrain.project.names import NAME, NAME_HELP
from drivetrain.project.problems import Problems, shown
from drivetrain.project.provider_settings import read_providers
from drivetrain.project.record_settings import read_lake, read_ledger
from drivetrain.project.release_rules import read_rules
from drivetrain.project.snapshot import (
    GatewaySettings,
    Key,
    LakeSettings,
    LedgerSettings,
    ModelFacts,
    Provider,
)
from drivetrain.project.tables import Table

DEFAULT_DIRECT_TEAM = "direct"
TOP_KEYS = (
    "project",
    "env",
    "providers",
    "models",
    "teams",
    "keys",
    "limits",
    "gateway",
    "ledger",
    "lake",
    "people",
    "releases",
    "workflows",
)
PROJECT_KEYS = ("name", "default_env")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What drivetrain.toml says, without its workflows."""

    name: str = ""
    providers: dict[str, Provider] = {}
    provider_names: frozenset[str] = frozenset()
    """Declared ones, wrong ones included, so that a mistake in a provider is not reported again at every model."""
    models: dict[str, ModelFacts] = {}
    keys: dict[str, Key] = {}
    limits: dict[str, Limit] = {}
    """Of `[limits]`, without the workflows' budgets."""
    teams: dict[str, Team] = {}
    gateway: GatewaySettings = GatewaySettings()
    direct_team: str = DEFAULT_DIRECT_TEAM
    ledger: LedgerSettings = LedgerSettings()
    lake: LakeSettings = LakeSettings()
    rules: RulesV1 = RulesV1()
    """Of `[people]` and `[releases]`."""


def read(document: Document, root: Path, problems: Problems) -> Settings:
    """The settings of a document. Every mistake is kept in `problems`."""
    top = Table(document.values, (), document.lines, problems)
    top.only(TOP_KEYS)
    project = top.table("project")
    project.only(PROJECT_KEYS)
    name = project.text("name", needed='Write `[project]` and `name = "my-ai"`.')
    if name and not NAME.fullmatch(name):
        project.note("name", "is not a name.", value=shown(name), do=NAME_HELP)
    project.text("default_env")
    teams = read_teams(top.table("teams"))
    provider_tables = top.table("providers")
    providers = read_providers(provider_tables, root)
    provider_names = frozenset(provider_tables.values)
    gateway_table = top.table("gateway")
    direct_team = gateway_table.text("direct_team", DEFAULT_DIRECT_TEAM)
    if teams and "direct_team" in gateway_table and direct_team not in teams:
        gateway_table.note(
            "direct_team", "names no team.", value=shown(direct_team), do=did_you_mean(direct_team, teams)
        )
    return Settings(
        name=name,
        providers=providers,
        provider_names=provider_names,
        models=read_models(top.table("models"), provider_names),
        keys=read_keys(top.table("keys"), teams),
        limits=declared_limits(top.table("limits").values, problems, document.lines),
        teams=teams,
        gateway=read_gateway(gateway_table, provider_names),
        direct_team=direct_team,
        ledger=read_ledger(top.table("ledger")),
        lake=read_lake(top.table("lake")),
        rules=read_rules(top.table("people"), top.table("releases")),
    )
