"""Names in templates and functions that a workflow's FeatureService does not give, as `check` finds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivetrain.cli.check import check_project
from drivetrain.core.errors import Problem

SETTINGS = """\
[project]
name = "shop"
[providers.openai]
dialect = "openai"
base_url = "http://127.0.0.1:9/v1"
[teams.support]
owner = "team@acme.example"
"""
CODE = """\
import drivetrain as dt

customer = dt.Entity("customer")
stats = dt.FeatureView(
    "stats", entities=[customer], source=dt.FileSource("data/x.csv"),
    schema=[dt.Field("orders", int), dt.Field("surprise", float)],
)
inputs = dt.FeatureService("inputs", features=[stats])


class Order(dt.Record):
    customer: str


{functions}

judge = dt.Workflow(
    "judge", input=Order, owner="team@acme.example", team="support", use_case="orders", features=inputs,
    route=[
        dt.Rule("usual", when={when}, then="pass"),
        dt.Variant("model", model="openai/gpt-5-nano-2025-08-07", prompt="ask.j2", accept={accept},
                   max_output_tokens=9),
    ],
)
"""


def found(
    folder: Path,
    *,
    prompt: str = "{{ customer }}",
    when: str = "lambda order: not order.customer",
    accept: str = "None",
    functions: str = "",
    more: dict[str, str] | None = None,
) -> list[Problem]:
    """What `check` says of a project with these in its one workflow."""
    files = {
        "drivetrain.toml": SETTINGS, "workflows/ask.j2": prompt,
        "workflows/judge.py": CODE.format(when=when, accept=accept, functions=functions), **(more or {}),
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return list(check_project(folder, None).problems)


@pytest.mark.parametrize(
    "prompt",
    ["{{ customer }}\n{{ features.suprise }}", "\n{% if features['suprise'] > 1 %}x{% endif %}",
     "{# features.other #}\n{{ features.suprise|round }}"],
)  # fmt: skip
def test_a_template_that_uses_what_is_not_there(tmp_path: Path, prompt: str) -> None:
    (one,) = found(tmp_path, prompt=prompt)
    assert (one.file, one.line, one.value, one.do) == ("workflows/ask.j2", 2, "suprise", "Did you mean `surprise`?")
    assert "the FeatureService of workflow `judge` does not give" in one.what


def test_an_included_template_is_read_too(tmp_path: Path) -> None:
    (one,) = found(
        tmp_path, prompt='{% include "workflows/inner.j2" %}', more={"workflows/inner.j2": "{{ features.order }}"}
    )
    assert (one.file, one.line, one.do) == ("workflows/inner.j2", 1, "Did you mean `orders`?")


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ features.orders }} {{ features['surprise'] }}",
        "{% if features.later is defined %}{{ features.later }}{% endif %}",
        "{{ features.later | default('-') }}",
        "{% for name in features %}{{ name }}: {{ features[name] }}{% endfor %}",
        "{% raw %}{{ features.later }}{% endraw %}",
        "{% set features = {'later': 1} %}{{ features.later }}",
        "features.later is text here",
    ],
)
def test_a_template_that_is_right(tmp_path: Path, prompt: str) -> None:
    assert found(tmp_path, prompt=prompt) == []


def test_functions_that_read_what_is_not_there(tmp_path: Path) -> None:
    functions = 'def enough(output, order, seen):\n    return len(output) > seen["order"]\n'
    made = found(tmp_path, functions=functions, accept="[enough]", when='lambda order, given: given["suprise"] < 0.8')
    assert [(one.file, one.value, one.do) for one in made] == [
        ("workflows/judge.py", "suprise", "Did you mean `surprise`?"),
        ("workflows/judge.py", "order", "Did you mean `orders`?"),
    ]
    lines = (tmp_path / "workflows" / "judge.py").read_text().splitlines()
    assert [one.value in lines[one.line - 1] for one in made] == [True, True]


@pytest.mark.parametrize(
    "when",
    [
        'lambda order, features: features["orders"] > 1',
        'lambda order, features: "later" in features and features["later"] > 1',
        'lambda order, features: any(features["x"] for features in [{"x": 1}])',
        "lambda order, features: features[order.customer]",
        'lambda order: {"later": 1}["later"]',
    ],
)
def test_functions_that_are_right(tmp_path: Path, when: str) -> None:
    assert found(tmp_path, when=when) == []
