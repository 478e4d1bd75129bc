"""A workflow as a plain Python call, in a user's own program: no server, the same records."""

from __future__ import annotations

import json

import pytest
from embedded_project import Project

pytestmark = pytest.mark.slow

TRIAGE = "import sys; sys.path.insert(0, 'workflows')\nfrom triage import triage, Ticket, Route\n"


def test_a_workflow_is_called_as_a_function(project: Project) -> None:
    ran = project.python(
        TRIAGE
        + """
route = triage(Ticket(text="My invoice is wrong"))
assert type(route) is Route, type(route)  # the caller's own type
print(route.intent)
assert triage(Ticket(text="  ")) == Route(intent="spam")
"""
    )
    assert ran.code == 0, ran.err
    assert ran.out.strip() in ("billing", "technical", "cancellation", "spam")
    assert ran.err == ""
    model, rule = project.calls()
    assert (model.door, model.status, model.workflow) == ("python", "answered", "triage")
    assert model.cost_nano_usd == sum(one.cost_nano_usd for one in model.attempts) > 0
    assert (model.attribution.team, model.attribution.use_case) == ("support", "ticket-routing")
    assert (rule.variant, rule.cost_nano_usd, rule.status) == ("empty", 0, "answered")


def test_its_cost_stands_in_the_ledger_under_its_door(project: Project) -> None:
    assert project.python(TRIAGE + "triage(Ticket(text='My invoice is wrong'))").code == 0
    shown = project.drivetrain("cost", "--by", "door,workflow", "--json")
    (row,) = json.loads(shown.out)["rows"]
    assert (row["door"], row["workflow"], row["calls"]) == ("python", "triage", 1)
    assert row["cost_nano_usd"] == project.calls()[0].cost_nano_usd > 0


def test_it_works_from_any_folder(project: Project) -> None:
    code = f"import sys; sys.path.insert(0, {str(project.root / 'workflows')!r})\n"
    code += "from triage import triage, Ticket\ntriage(Ticket(text='x y z'))"
    ran = project.python(code, folder=project.root.parent)
    assert ran.code == 0, ran.err
    assert len(project.calls()) == 1


def test_several_threads_call_at_once(project: Project) -> None:
    ran = project.python(
        TRIAGE
        + """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(16) as pool:
    routes = list(pool.map(lambda number: triage(Ticket(text=f"ticket {number}")), range(120)))
assert len(routes) == 120 and all(type(route) is Route for route in routes)
"""
    )
    assert ran.code == 0, ran.err
    calls = project.calls()
    assert len(calls) == len({call.call_id for call in calls}) == 120
    assert {call.status for call in calls} == {"answered"}


def test_a_program_that_ends_in_a_thread_has_written_everything(project: Project) -> None:
    ran = project.python(
        TRIAGE
        + """
import threading
triage(Ticket(text="warm"))
for number in range(8):
    threading.Thread(target=lambda number=number: triage(Ticket(text=f"[[simulate latency_ms=200]] {number}"))).start()
"""
    )
    assert ran.code == 0, ran.err
    assert [call.status for call in project.calls()] == ["answered"] * 9


def test_it_works_inside_a_running_event_loop(project: Project) -> None:
    ran = project.python(
        TRIAGE
        + """
import asyncio
async def main():
    first = triage(Ticket(text="one"))  # blocks the loop, and answers
    others = await asyncio.gather(*(asyncio.to_thread(triage, Ticket(text=f"t {n}")) for n in range(10)))
    assert len([first, *others]) == 11
asyncio.run(main())
"""
    )
    assert ran.code == 0, ran.err
    assert len(project.calls()) == 11


def test_a_forked_child_calls_on_its_own(project: Project) -> None:
    ran = project.python(
        TRIAGE
        + """
import os
triage(Ticket(text="parent"))
child = os.fork()
if child == 0:
    code = 1
    try:
        triage(Ticket(text="child"))
        from drivetrain.embedded.calls import close
        close()
        code = 0
    finally:
        os._exit(code)
assert os.waitpid(child, 0)[1] == 0
triage(Ticket(text="parent again"))
"""
    )
    assert ran.code == 0, ran.err
    assert [call.status for call in project.calls()] == ["answered"] * 3


def test_a_failure_raises_with_a_clear_text(project: Project) -> None:
    ran = project.python(
        TRIAGE
        + """
from drivetrain.core.errors import RequestError
for fate in ("status:400", "status:401", "malformed"):
    try:
        triage(Ticket(text=f"[[simulate failure={fate}]]"))
    except RequestError as error:
        print(error.status, error.code, str(error).splitlines()[0], sep="|")
"""
    )
    assert ran.code == 0, ran.err
    told = [line.split("|", 2) for line in ran.out.splitlines() if line.count("|") == 2]
    assert [status for status, _, _ in told] == ["400", "502", "502"]
    assert [code for _, code, _ in told][1:] == ["upstream_auth", "unusable_answer"]
    assert all(len(text) > 20 for _, _, text in told)
    assert [call.error for call in project.calls()] == [code for _, code, _ in told]
    assert [call.status for call in project.calls()] == ["refused", "failed", "failed"]


def test_a_provider_that_is_down_is_told(project: Project) -> None:
    project.edit("drivetrain.toml", project.simulator.url, "http://127.0.0.1:9")
    ran = project.python(TRIAGE + "triage(Ticket(text='x'))")
    assert ran.code == 1
    assert "drivetrain.core.errors.RequestError: the provider of `frontier` did not answer" in ran.err
    assert "`drivetrain calls show call_" in ran.err.splitlines()[-1]
    assert "did not answer: no connection could be made" in ran.err
    (call,) = project.calls()
    assert (call.status, call.cost_nano_usd) == ("failed", 0)
    assert len(call.attempts) <= 4


def test_a_broken_project_is_told(project: Project) -> None:
    project.edit("drivetrain.toml", "price_as", "price_sa")
    ran = project.python(TRIAGE + "triage(Ticket(text='x'))")
    assert ran.code == 1
    assert "price_sa" in ran.err
    assert "drivetrain.toml" in ran.err


def test_an_input_of_another_type_is_told_or_fits(project: Project) -> None:
    ran = project.python(
        TRIAGE
        + """
from drivetrain.core.errors import DrivetrainError
for given in (Ticket, "a text", None, object(), Route(intent="spam")):
    try:
        triage(given)
    except DrivetrainError as error:
        print(str(error).splitlines()[0])
triage({"text": "a dict"})
"""
    )
    assert ran.code == 0, ran.err
    told = ran.out.strip().splitlines()
    assert len(told) == 5
    assert all("Ticket" in line for line in told), told
    assert [call.status for call in project.calls()] == ["answered"]


def test_a_chat_workflow_is_called_with_a_text(project: Project) -> None:
    ran = project.python(
        """
from pathlib import Path
from drivetrain.embedded import calls
result = calls.call(Path.cwd(), "assistant", b'{"text": "How do I pay?"}')
assert result.status == "answered", result
assert calls.call(Path.cwd(), "assistant", b'{"text": "hello!"}').variant == "greeting"
"""
    )
    assert ran.code == 0, ran.err
    assert [call.door for call in project.calls()] == ["python", "python"]


def test_an_unknown_workflow_names_the_nearest(project: Project) -> None:
    ran = project.python(
        "from pathlib import Path\nfrom drivetrain.embedded import calls\ncalls.call(Path.cwd(), 'triagee', b'{}')"
    )
    assert ran.code == 1
    assert "has no workflow `triagee`" in ran.err
    assert "triage" in ran.err


def test_closing_ends_running_calls_with_an_error_and_hangs_nobody(project: Project) -> None:
    ran = project.python(
        TRIAGE
        + """
import threading, time
from pathlib import Path
from drivetrain.embedded import calls
from drivetrain.ledger.reader import LedgerReader
triage(Ticket(text="warm"))
ended = []
def slow():
    try:
        triage(Ticket(text="[[simulate latency_ms=300000]]"))
        ended.append("answered")
    except Exception as error:
        ended.append(type(error).__name__)
thread = threading.Thread(target=slow, daemon=True)
thread.start()
while not [one for one in LedgerReader(Path(".drivetrain/data")).calls() if one.status == "running"]:
    time.sleep(0.02)
calls.close()
thread.join(60)
assert ended == ["RequestError"], ended
""",
    )
    assert ran.code == 0, ran.err
    assert {call.status for call in project.calls()} <= {"answered", "failed"}


def test_a_workflow_that_calls_another_from_its_rule_does_not_hang(project: Project) -> None:
    """A rule runs on the thread that serves the calls; waiting there for another call could never end."""
    project.edit("workflows/triage.py", "when=lambda ticket: not ticket.text.strip()", "when=asks_another")
    project.edit(
        "workflows/triage.py",
        "triage = dt.Workflow(",
        """
def asks_another(ticket):
    from pathlib import Path

    from drivetrain.embedded import calls

    calls.call(Path.cwd(), "assistant", b'{"text": "hi"}')
    return False


triage = dt.Workflow(""",
    )
    ran = project.python(TRIAGE + "print(triage(Ticket(text='x')).intent)")
    assert ran.code == 0, ran.err
    assert project.calls()[0].attempts[0].reason.startswith("rule raised")


def test_a_recorded_python_call_can_be_replayed_once_the_project_has_changed(project: Project) -> None:
    assert project.python(TRIAGE + "triage(Ticket(text='My invoice is wrong'))").code == 0
    project.edit("workflows/triage.j2", "billing", "invoices")
    ran = project.drivetrain("replay", "--json")
    assert json.loads(ran.out) == {"same": 1, "different": [], "skipped": 0}, ran.err


def test_where_something_was_released_calls_take_that_whatever_the_folder_says(project: Project) -> None:
    assert project.drivetrain("propose", "-m", "first").code == 0
    assert project.drivetrain("promote", "1").code == 0
    file = project.root / "workflows" / "triage.py"
    assert 'intent="spam"' in file.read_text()
    file.write_text(file.read_text().replace('intent="spam"', 'intent="billing"'))
    asked = project.python(TRIAGE + "print(triage(Ticket(text='  ')).intent)")
    assert (asked.code, asked.out.strip()) == (0, "spam"), asked.err
    assert project.drivetrain("run", "triage", "--input", '{"text": " "}').out.startswith('{"intent":"spam"')
