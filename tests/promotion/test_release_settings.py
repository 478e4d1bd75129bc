"""`[people]` and `[releases]`: read as they are meant, and refused where they could never be met."""

from __future__ import annotations

import pytest
from shop import Shop

from drivetrain.core.errors import ProjectError
from drivetrain.core.releases import ApprovalRuleV1, PersonV1, RulesV1
from drivetrain.project.load import load, unload

PEOPLE = """
[people.ann]
roles = ["lead", "risk"]

[people.bob]
roles = ["risk"]
"""


def rules(shop: Shop, text: str, environment: str | None = None) -> RulesV1:
    shop.edit("drivetrain.toml", "[providers.openai]", f"{text}\n[providers.openai]")
    snapshot = load(shop.root, environment)
    unload(snapshot)
    return snapshot.rules


def mistake(shop: Shop, text: str) -> str:
    with pytest.raises(ProjectError) as raised:
        rules(shop, text)
    return str(raised.value)


def test_without_any_declaration_gates_hold_and_nobody_is_asked(shop: Shop) -> None:
    assert rules(shop, "") == RulesV1(gates=True)


def test_rules_are_part_of_the_snapshot(shop: Shop) -> None:
    found = rules(
        shop,
        PEOPLE + '[releases]\ngates = false\noverride = ["lead"]\n'
        '[[releases.approvals]]\naspect = "policy"\nnumber = 1\nroles = ["risk"]\nworkflows = ["triage"]\n',
    )
    assert found == RulesV1(
        people=(PersonV1(name="ann", roles=("lead", "risk")), PersonV1(name="bob", roles=("risk",))),
        approvals=(ApprovalRuleV1(aspect="policy", number=1, roles=("risk",), workflows=("triage",)),),
        override_roles=("lead",), gates=False,
    )  # fmt: skip


def test_an_environment_has_rules_of_its_own(shop: Shop) -> None:
    text = PEOPLE + '[[env.prod.releases.approvals]]\naspect = "any"\nroles = ["risk"]\n'
    assert rules(shop, text).approvals == ()
    assert rules(shop, "", "prod").approvals == (ApprovalRuleV1(aspect="any", roles=("risk",)),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[releases.approvals]]\naspect = "polcy"\n', '"policy"'),
        ('[[releases.approvals]]\naspect = "any"\nroles = ["risk"]\n', "which nobody has"),
        (PEOPLE + '[[releases.approvals]]\naspect = "any"\nroles = ["rsik"]\n', "Did you mean `risk`?"),
        (PEOPLE + '[[releases.approvals]]\naspect = "any"\nnumber = 2\n', "can never be met"),
        (PEOPLE + '[[releases.approvals]]\naspect = "any"\nnumber = 2\nroles = ["risk"]\n', "can never be met"),
        ('[[releases.approvals]]\naspect = "any"\nworkflows = ["triag"]\n', "Did you mean `triage`?"),
        ("[releases]\noverride = ['oncall']\n", "which nobody has"),
        ("[releases]\ngate = true\n", "Did you mean `gates`?"),
        ('[people.ann]\nkey = "AAAA"\n', "no Ed25519 public key"),
        ("[people.guards]\n", "is not a person's name"),
        (f'[people.ann]\nkey = "{"A" * 43}="\n[people.bob]\nkey = "{"A" * 43}="\n', "is the key of `ann` too"),
    ],
)
def test_what_could_never_be_met_is_a_mistake(shop: Shop, text: str, said: str) -> None:
    assert said in mistake(shop, text)
