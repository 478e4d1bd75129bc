"""What differs between the settings of two Snapshots, and between the rules in force and the ones proposed.

Values are told only where they cannot be a secret; else the names of what changed. Called by the plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from drivetrain.core.releases import ChangeV1, PersonV1, RulesV1
from drivetrain.project.snapshot import Snapshot
from drivetrain.promotion.differences import became, change, field_changes

_NAMED = (("provider", "providers"), ("model", "models"), ("key", "keys"))
_TABLES = ("gateway", "ledger", "lake")
_FEATURES = ("entities", "views", "on_demand", "services", "sources", "outside")


def settings_changes(before: Snapshot, after: Snapshot) -> Iterator[ChangeV1]:
    """Every difference between two projects' settings, features and trained models."""
    for kind, name in _NAMED:
        yield from (
            change("", "settings", what) for what in _by_name(kind, getattr(before, name), getattr(after, name))
        )
    for what in _by_name("limit", before.limits, after.limits):
        yield change("", "budget", what)
    for table in _TABLES:
        old, new = getattr(before, table), getattr(after, table)
        for what in field_changes(old, new, old.__struct_fields__):
            yield change("", "settings", f"[{table}] {what}")
    if before.teams != after.teams:
        yield change("", "settings", f"teams {became(', '.join(before.teams), ', '.join(after.teams))}")
    for name in _FEATURES:
        was, now = set(getattr(before.features, name)), set(getattr(after.features, name))
        for one in sorted(was ^ now):
            yield change("", "settings", f"{name.replace('_', ' ')}: {one} is {'new' if one in now else 'removed'}")
    for one in sorted({*before.trained} ^ {*after.trained}):
        yield change("", "settings", f"trained model {one} is {'new' if one in after.trained else 'removed'}")
    if before.versions != after.versions:
        for what in field_changes(before.versions, after.versions, before.versions.__struct_fields__):
            yield change("", "settings", what)


def file_changes(before: Snapshot, after: Snapshot) -> Iterator[ChangeV1]:
    """Every file that differs, where nothing else tells what does."""
    for path in sorted({*before.files, *after.files}):
        was, now = before.files.get(path), after.files.get(path)
        if was != now:
            how = "is new" if was is None else "is removed" if now is None else "changed"
            yield change("", "settings", f"file {path} {how}")


def rules_changes(before: RulesV1, after: RulesV1) -> Iterator[ChangeV1]:
    """Every difference between the rules in force and others."""
    was, now = {one.name: one for one in before.people}, {one.name: one for one in after.people}
    for name in sorted({*was, *now}):
        old, new = was.get(name), now.get(name)
        if old is None or new is None:
            roles = ", ".join((old or new or PersonV1(name=name)).roles) or "no role"
            yield change("", "rules", f"person {name} is {'new' if old is None else 'removed'}, with {roles}")
        elif old.roles != new.roles:
            yield change("", "rules", f"person {name}: roles {', '.join(old.roles)} became {', '.join(new.roles)}")
        elif old.key != new.key:
            yield change("", "rules", f"person {name}: another key")
    for sign, here, there in (("removed", before, after), ("new", after, before)):
        for rule in here.approvals:
            if rule not in there.approvals:
                who = " or ".join(rule.roles) or "anybody else"
                where = f" of {', '.join(rule.workflows)}" if rule.workflows else ""
                yield change("", "rules", f"rule is {sign}: {rule.aspect}{where} takes {rule.number} by {who}")
    if before.override_roles != after.override_roles:
        yield change("", "rules", f"override: {_roles(before)} became {_roles(after)}")
    if before.gates != after.gates:
        yield change("", "rules", "gates hold now" if after.gates else "gates hold no more")


def _roles(rules: RulesV1) -> str:
    return ", ".join(rules.override_roles) or "nobody"


def _by_name(kind: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Structs by name: new, removed, and which fields changed, without their values."""
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            yield f"{kind} {name} is {'new' if old is None else 'removed'}"
            continue
        fields = [one for one in old.__struct_fields__ if one != "line" and getattr(old, one) != getattr(new, one)]
        if fields:
            yield f"{kind} {name}: {_amounts(old, new, fields)}"


def _amounts(old: msgspec.Struct, new: msgspec.Struct, fields: list[str]) -> str:
    """Which fields changed; numbers, which are no secrets, are shown."""
    parts = []
    for name in fields:
        was, now = getattr(old, name), getattr(new, name)
        number = isinstance(was, int) and isinstance(now, int)
        parts.append(f"{name} {became(was, now)}" if number else f"{name} changed")
    return ", ".join(parts)
