"""The project's code is imported from its Snapshot: old beside new, with the user's names left alone."""

from __future__ import annotations

import gc
import linecache
import subprocess
import sys
import traceback
import weakref

import pytest

from drivetrain import project
from drivetrain.core.errors import ProjectError

HELPED = """\
import drivetrain as dt
import features.customer
import helper.words as words
from features import customer as again
from workflows.kinds import Kind
from .kinds import Kind as Same

from workflows import *

def then(text):
    import helper.late
    from workflows import kinds
    assert kinds.Kind is Kind is Same
    assert again is features.customer
    return helper.late.answer() + words.MARK

def fails(text):
    raise ValueError("no")

flow = dt.Workflow("flow", owner="a@b.example", team="t", use_case="u",
    route=[dt.Rule("first", when=lambda _: False, then=fails), dt.Rule("rest", when=lambda c: True, then=then)])
"""


@pytest.fixture
def helped(small) -> dict[str, str]:
    return {
        **small,
        "workflows/helped.py": HELPED,
        "workflows/kinds.py": "class Kind:\n    pass\n",
        "workflows/__init__.py": "from . import kinds\n__all__ = ['kinds']\n",
        "features/customer.py": "import solo\nAGE = solo.ONE\n",
        "helper/words.py": "MARK = '!'\n",
        "helper/late.py": "def answer():\n    return 'one'\n",
        "solo.py": "ONE = 1\n",
        "unused.py": "raise RuntimeError('not imported')\n",
        "json/__init__.py": "raise RuntimeError('shadows the standard library')\n",
        "workflows/std.py": "import json\njson.dumps({})\n",
    }


def test_absolute_relative_and_late_imports_reach_the_same_snapshot(make, helped) -> None:
    before, path = set(sys.modules), list(sys.path)
    snapshot = project.load(make(helped))
    assert snapshot.workflows["flow"].route[1].then("x") == "one!"
    assert {"features/customer.py", "helper/words.py", "helper/late.py", "solo.py"} <= set(snapshot.files)
    assert "unused.py" not in snapshot.files
    added = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert {"workflows", "helper", "features", "solo"}.isdisjoint(added)
    assert snapshot.package in added
    assert sys.path == path


def test_old_and_new_stand_side_by_side(make, helped) -> None:
    old = project.load(make(helped))
    late = {"helper/late.py": "def answer():\n    return 'two'\n"}
    new = project.load(make({**helped, **late}))
    assert old.hash != new.hash
    assert old.workflows["flow"].route[1].then("x") == "one!"
    assert new.workflows["flow"].route[1].then("x") == "two!"
    assert old.workflows["triage"].input is not new.workflows["triage"].input
    project.unload(old)
    assert not [name for name in sys.modules if name.partition(".")[0] == old.package]
    assert new.workflows["flow"].route[1].then("x") == "two!"


def test_two_projects_with_the_same_content_are_apart(make, small) -> None:
    one, two = project.load(make(small, "one")), project.load(make(small, "two"))
    assert one.hash == two.hash
    assert one.package != two.package
    assert one.workflows["triage"].project != two.workflows["triage"].project


def test_an_unloaded_snapshot_is_freed(make, small) -> None:
    snapshot = project.load(make(small))
    freed = weakref.ref(snapshot.workflows["triage"].route[0].when)
    project.unload(snapshot)
    del snapshot
    gc.collect()
    assert freed() is None


def test_a_failed_load_leaves_no_module(make, small) -> None:
    before = set(sys.modules)
    with pytest.raises(ProjectError):
        project.load(make({**small, "workflows/bad.py": "1 / 0\n"}))
    assert set(sys.modules) == before


def test_tracebacks_show_the_lines_that_ran(make, helped) -> None:
    root = make(helped)
    snapshot = project.load(root)
    (root / "workflows/helped.py").write_text("# all lines moved\n" * 40)
    linecache.checkcache()
    with pytest.raises(ValueError, match="no") as caught:
        snapshot.workflows["flow"].route[0].then("x")
    shown = "".join(traceback.format_exception(caught.value))
    assert f'File "{root / "workflows/helped.py"}", line 18, in fails' in shown
    assert 'raise ValueError("no")' in shown


def test_nothing_is_printed(make, small, capfd) -> None:
    project.load(make(small))
    assert capfd.readouterr() == ("", "")


def test_ordinary_python_imports_the_same_files(make, helped) -> None:
    root = make(helped)
    script = "from workflows.triage import triage; print(triage.place.file)"
    ran = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert ran.stdout.strip().endswith("workflows/triage.py")


def test_importing_the_room_is_light() -> None:
    script = (
        "import sys, drivetrain.project; print([n for n in ('genai_prices', 'duckdb', 'typer') if n in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_warnings_about_code_are_given_once_and_name_the_file(make, small) -> None:
    code = "import re\npattern = '\\W'\n"
    with pytest.warns((DeprecationWarning, SyntaxWarning)) as warned:
        project.load(make({**small, "workflows/escape.py": code}))
    assert [one.filename.rpartition("/")[2] for one in warned] == ["escape.py"]


def test_a_file_that_nothing_imports_may_be_anything(make, small) -> None:
    root = make({**small, "policies/notes.py": ""})
    (root / "policies/notes.py").write_bytes(b"\xff\xfe not Python")
    assert project.load(root).files["policies/notes.py"].startswith(b"\xff")
