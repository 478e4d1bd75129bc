"""`[people]` and `[releases]` of drivetrain.toml: who may release what in an environment.

Notes what can never be met, such as a role that nobody has: found here it is a line to correct, found later it is a
change that nobody can release. How the rules are applied is for the room `promotion/`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection, Mapping

from drivetrain.core.errors import did_you_mean
from drivetrain.core.releases import ASPECTS, ApprovalRuleV1, PersonV1, RulesV1
from drivetrain.project.files import SETTINGS_FILE
from drivetrain.project.problems import Problems, shown
from drivetrain.project.tables import Table
from drivetrain.project.toml_lines import TomlPath

PERSON = re.compile(r"[A-Za-z_][A-Za-z0-9_.@-]{0,63}")
PERSON_HELP = "Write the name of their user on the machines where `drivetrain` is run, or any name and their `key`."
PERSON_KEYS = ("roles", "key")
RELEASES_KEYS = ("gates", "override", "approvals")
APPROVAL_KEYS = ("aspect", "number", "roles", "workflows")
ANY = "any"
PUBLIC_BYTES = 32
PEOPLE_MAX = 1_000
"""Every proposal carries the rules whole, so that they hold whatever becomes of the files."""
APPROVALS_MAX = 100


def read_rules(people: Table, releases: Table) -> RulesV1:
    """The rules that two tables declare. Every mistake is noted."""
    known = _people(people)
    releases.only(RELEASES_KEYS)
    roles = {role for one in known for role in one.roles}
    override = releases.texts("override") or ()
    for role in override:
        if role not in roles:
            releases.note(
                "override", f"names the role `{role}`, which nobody has.", do=_nobody(role, roles)
            )  # fmt: skip
    rules = tuple(_approval(table, known, roles) for table in releases.rows("approvals"))
    if len(rules) > APPROVALS_MAX:
        releases.note("approvals", f"has {len(rules)} rules; at most {APPROVALS_MAX} are kept.")
    return RulesV1(people=known, approvals=rules, override_roles=override, gates=releases.flag("gates", True))


def check_rules(rules: RulesV1, workflows: Collection[str], lines: Mapping[TomlPath, int], problems: Problems) -> None:
    """Notes rules of workflows that nobody declares: they would never ask for anything."""
    for index, rule in enumerate(rules.approvals):
        for place, name in enumerate(rule.workflows):
            if name not in workflows:
                path = ("releases", "approvals", index)
                line = lines.get((*path, "workflows", place)) or lines.get((*path, "workflows")) or lines.get(path, 0)
                problems.add(
                    f"`releases.approvals[{index}].workflows` names no workflow.", file=SETTINGS_FILE, line=line,
                    value=shown(name), do=did_you_mean(name, workflows),
                )  # fmt: skip


def _people(tables: Table) -> tuple[PersonV1, ...]:
    people: list[PersonV1] = []
    owners: dict[str, str] = {}
    for name, table in tables.tables():
        table.only(PERSON_KEYS)
        if PERSON.fullmatch(name) is None or name == "guards":
            table.note(None, "is not a person's name.", value=shown(name), do=PERSON_HELP)
        key = table.text("key")
        if key and not _is_public(key):
            table.note(
                "key", "is no Ed25519 public key in base64.", value=shown(key),
                do="`drivetrain approve --new-key FILE` makes a key and prints its public half.",
            )  # fmt: skip
        if key and owners.setdefault(key, name) != name:
            table.note("key", f"is the key of `{owners[key]}` too.", do="Give each person a key of their own.")
        people.append(PersonV1(name=name, roles=table.texts("roles") or (), key=key))
    if len(people) > PEOPLE_MAX:
        tables.note(None, f"has {len(people)} people; at most {PEOPLE_MAX} are kept.")
    return tuple(people)


def _approval(table: Table, people: tuple[PersonV1, ...], roles: Collection[str]) -> ApprovalRuleV1:
    table.only(APPROVAL_KEYS)
    rule = ApprovalRuleV1(
        aspect=table.choice("aspect", (ANY, *ASPECTS), ANY, needed=True),
        number=table.whole("number", 1, most=PEOPLE_MAX),
        roles=table.texts("roles") or (),
        workflows=table.texts("workflows") or (),
    )
    missing = [role for role in rule.roles if role not in roles]
    for role in missing:
        table.note("roles", f"names the role `{role}`, which nobody has.", do=_nobody(role, roles))
    if not missing and (people or rule.roles) and _most(rule, people) < rule.number:
        table.note(
            "number", "can never be met: nobody approves their own, and one person counts once.",
            value=str(rule.number), do=f"Give more people a role, or write {max(1, _most(rule, people))}.",
        )  # fmt: skip
    return rule


def _most(rule: ApprovalRuleV1, people: tuple[PersonV1, ...]) -> int:
    """The most approvals that a proposal can get, whoever makes it."""
    able = [one for one in people if not rule.roles or set(one.roles) & set(rule.roles)]
    return len(able) if len(able) < len(people) else len(able) - 1


def _nobody(role: str, roles: Collection[str]) -> str:
    if not roles:
        return f'Write `[people.NAME]` and `roles = ["{role}"]`.'
    return did_you_mean(role, roles)


def _is_public(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == PUBLIC_BYTES
    except (binascii.Error, ValueError):
        return False
