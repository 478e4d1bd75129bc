"""A run of an eval is what a Release cites: of its workflow, compared with what is live, over the newest Dataset."""

from __future__ import annotations

import pytest
from shop import Shop

from drivetrain.embedded.releasing import live_of, state_of

RULES = """\
import drivetrain as dt


class Ticket(dt.Record):
    text: str


class Route(dt.Record):
    intent: str


def is_refund(ticket):
    return "refund" in ticket.text


triage = dt.Workflow(
    "triage", input=Ticket, output=Route, owner="a@b.example", team="support", use_case="x",
    route=[
        dt.Rule("refund", when=is_refund, then=Route(intent="refund")),
        dt.Rule("other", when=lambda t: True, then=Route(intent="other")),
    ],
)
"""
GOLDEN = """\
import drivetrain as dt

golden = dt.Eval("triage-golden", dataset="golden", gates=["accuracy >= 0.8", "overall not worse than -1 pp"])
"""
ROWS = "text,expected\n" + "".join(f"refund {one},refund\nhello {one},other\n" for one in range(20))


@pytest.mark.slow
def test_a_planted_regression_is_stopped_by_its_gate(shop: Shop) -> None:
    shop.write("workflows/triage.py", RULES)
    shop.write("evals/golden.py", GOLDEN)
    shop.write("golden.csv", ROWS)
    shop.ok("dataset", "create", "golden", "--from-file", "golden.csv")
    shop.edit("evals/golden.py", ', "overall not worse than -1 pp"', "")
    shop.ok("eval", "run", "triage-golden")
    shop.ok("propose")
    shop.ok("promote", "1")

    shop.edit("evals/golden.py", '"accuracy >= 0.8"', '"accuracy >= 0.8", "overall not worse than -1 pp"')
    shop.edit("workflows/triage.py", '"refund" in', '"refund" in ticket.text and "refund 1" not in')
    assert shop.run("eval", "run", "triage-golden").code == 3, "11 of 40 rows are worse"
    shop.ok("propose", "-m", "fewer refunds")
    assert shop.run("promote", "2").code == 1
    assert live_of(shop.root).release == 1

    shop.edit("workflows/triage.py", ' and "refund 1" not in ticket.text', " and True")
    shop.ok("eval", "run", "triage-golden")
    shop.ok("propose", "-m", "as many refunds")
    shop.write("golden.csv", ROWS + "hello again,other\n")
    shop.ok("dataset", "create", "golden", "--from-file", "golden.csv")
    assert shop.run("promote", "3").code == 1, "the Dataset has grown since the run"
    shop.ok("eval", "run", "triage-golden")
    shop.ok("promote", "3")
    state = state_of(shop.place)
    assert state.live.release == 2
    assert [one.report for one in state.releases[2].release.evidence] != [""]
