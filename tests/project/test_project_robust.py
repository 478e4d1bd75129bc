"""Whatever stands in a project, loading it gives a Snapshot or a list of mistakes. The reference names every key."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import drivetrain as dt
from drivetrain import project
from drivetrain.core.errors import ProjectError
from drivetrain.project import (
    caller_settings,
    chat_workflows,
    gateway_settings,
    limits,
    model_settings,
    provider_settings,
    record_settings,
    settings,
)
from drivetrain.project.document import parse
from drivetrain.project.files import SETTINGS_FILE
from drivetrain.project.load import Source, build
from drivetrain.project.problems import Problems
from drivetrain.project.snapshot import GatewaySettings, LedgerSettings, Provider

pytestmark = pytest.mark.slow

FULL: dict[str, Any] = {
    "project": {"name": "shop", "default_env": "prod"},
    "env": {"prod": {"gateway": {"port": 9}, "workflows": {"chat": {"slo": {"p99_ms": 5}}}}},
    "providers": {
        "openai": {
            "dialect": "openai",
            "base_url": "https://h/v1",
            "key": "env:A",
            "key_header": "api-key",
            "headers": {"x": "y"},
            "proxy": "http://p:1",
            "ca_file": "x.pem",
            "connections_max": 5,
        }
    },
    "models": {
        "openai/m": {"usd_per_million_input": "1", "usd_per_million_output": 2, "capabilities": ["tools"]},
        "openai/own": {"usd_per_hour": "2.5", "parallel": 8, "retires": "2026-12-31", "replacement": "openai/m"},
    },
    "teams": {"support": {"owner": "a@b.example"}},
    "keys": {"web": {"secret": "env:B", "team": "support", "workflows": ["chat"], "may_override": ["user"]}},
    "limits": {
        "month": {"scope": "team:support", "usd": "5", "per": "month", "zone": "UTC", "mode": "soft", "alerts": [50]},
        "rate": {"scope": "each tag:env", "tokens": 5, "per": "10s", "burst": 9},
        "busy": {"scope": "workflow:chat", "concurrent": 5},
    },
    "gateway": {"direct_models": ["openai/m"], "direct_team": "support"},
    "ledger": {"retention": "full", "folder": "a", "keys_folder": "b"},
    "workflows": {
        "chat": {
            "owner": "a@b.example",
            "team": "support",
            "use_case": "x",
            "budget": {"usd_per_call": "1", "usd_per_day": 2, "mode": "downgrade", "alerts": [50, 100]},
            "max_input_tokens": 9,
            "context": "keep_ends",
            "cache": {"ttl_s": 60, "when": "always", "tool_calls": True},
            "degrade": [{"stale_max_age_s": 3600}, {"static": "later"}],
            "deadline_ms": 900,
            "priority": "low",
            "slo": {"availability": 0.5},
            "parameters": {"honour": ["stop"], "fix": {"seed": 1}, "others": "refuse"},
            "route": [
                {"rule": "hi", "matches": "x", "answer": "y"},
                {"name": "m", "model": "openai/m", "accept": {"chars_min": 1}, "parameters": {"top_p": 1}},
            ],
        }
    },
}
ODD = st.one_of(
    st.integers(-3, 3),
    st.booleans(),
    st.floats(allow_nan=False),
    st.sampled_from(
        ["", "x", "env:", "file:..", "a/b", "http://", "http://[", "(", "a@b", "é\x85\u2028", "models:/a@b"]
    ),
    st.lists(st.one_of(st.integers(), st.just("x"), st.just({}), st.just([])), max_size=2),
    st.dictionaries(
        st.sampled_from(["x", "name", "rule", "", "é.b"]), st.one_of(st.integers(), st.just({})), max_size=2
    ),
)


def _paths(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, one in inner for path in [(*above, key), *_paths(one, (*above, key))]]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{json.dumps(key, ensure_ascii=False)} = {_toml(one)}" for key, one in value.items()) + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return {"Infinity": "inf", "-Infinity": "-inf"}.get(json.dumps(value), repr(value))
    return json.dumps(value, ensure_ascii=False)


def _replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = _replaced(value[path[0]], path[1:], new)
    return copy


def _load(document: dict[str, Any]) -> None:
    content = "\n".join(f"{key} = {_toml(value)}" for key, value in document.items()).encode()
    problems = Problems()
    source = Source(files={SETTINGS_FILE: content}, root=Path("/p"), code_root=Path("/p"), environment="prod")
    project.unload(build(source, parse(content, problems), problems))


@contextlib.contextmanager
def _placed(file: str) -> Iterator[None]:
    """Every mistake has its line in one file."""
    try:
        yield
    except ProjectError as error:
        lost = [one for one in error.problems if one.file != file or not one.line]
        if lost or not error.problems:
            raise AssertionError(str(error)) from error
        raise


def test_the_full_document_is_right() -> None:
    _load(FULL)


@given(path=st.sampled_from(_paths(FULL)), value=ODD)
@hypothesis_settings(max_examples=300, deadline=None)
def test_any_value_anywhere_in_the_settings(path: tuple[Any, ...], value: object) -> None:
    with contextlib.suppress(ProjectError), _placed(SETTINGS_FILE):
        _load(_replaced(FULL, path, value))


ARGUMENTS = {
    "Workflow": [name for name in inspect.signature(dt.Workflow).parameters if name not in ("place", "unknown")],
    "Variant": [name for name in inspect.signature(dt.Variant).parameters if name not in ("place", "unknown")],
    "Rule": [name for name in inspect.signature(dt.Rule).parameters if name not in ("place", "unknown")],
}
RIGHT = {
    "Workflow": {
        "name": "'w'",
        "owner": "'a@b.example'",
        "team": "'t'",
        "use_case": "'u'",
        "route": "[dt.Rule(**rule), dt.Variant(**variant)]",
    },
    "Variant": {"name": "'v'", "model": "'openai/m'"},
    "Rule": {"name": "'r'", "when": "lambda c: not c.text", "then": "'x'"},
}
ODD_CODE = """\
None
0
-1
1.5
True
''
'x'
'é\\n'
b'x'
[]
[[]]
{}
{'x': 1}
{1: 2}
(None,)
object
object()
float('nan')
lambda *a: None
dt.Record
dt.Conversation
dt.SLO()
dt.Budget()
dt.Parameters(fix=3, honour=7, ignore='x', refuse=[[]], others=[])
dt.Budget(usd_per_call=[], usd_per_day=1e400)
dt.Budget(usd_per_day=1, mode=[], alerts='x')
dt.Budget(usd_per_day=1, alerts=[[]])
dt.Cache(ttl_s='x', when=[], tool_calls=3)
[dt.Stale(max_age_s=None), dt.Static(dt.Record)]
[dt.Static(None)]
dt.SLO(p99_ms='x', availability='y')
dt.confidence(1)
[dt.Variant('v', model='openai/m')] * 3
type('T', (dt.Record,), {'__annotations__': {'a': 'Nope'}})
""".splitlines()


@given(
    kind=st.sampled_from(sorted(ARGUMENTS)),
    data=st.data(),
)
@hypothesis_settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_argument_of_any_declaration(kind: str, data: st.DataObject) -> None:
    argument, odd = data.draw(st.sampled_from(ARGUMENTS[kind])), data.draw(st.sampled_from(ODD_CODE))
    written = {one: {**right, argument: odd} if one == kind else right for one, right in RIGHT.items()}
    code = "import drivetrain as dt\n"
    for name in ("Rule", "Variant", "Workflow"):
        code += f"{name.lower()} = dict({', '.join(f'{key}={value}' for key, value in written[name].items())})\n"
    code += "w = dt.Workflow(**workflow)\n"
    content = b"[project]\nname = 'x'\n[providers.openai]\ndialect = 'openai'\nbase_url = 'http://h'\n[env.prod]\n"
    problems = Problems()
    source = Source(
        files={SETTINGS_FILE: content, "workflows/w.py": code.encode()},
        root=Path("/p"),
        code_root=Path("/p"),
        environment="prod",
    )
    with contextlib.suppress(ProjectError), _placed("workflows/w.py"):
        project.unload(build(source, parse(content, problems), problems))


REFERENCE = Path(__file__).parents[2] / "docs/reference/project.md"
NAMES = {
    *settings.TOP_KEYS, *settings.PROJECT_KEYS, *provider_settings.PROVIDER_KEYS, *model_settings.MODEL_KEYS,
    *model_settings.CAPABILITIES, *caller_settings.TEAM_KEYS, *caller_settings.KEY_KEYS, *caller_settings.OVERRIDES,
    *gateway_settings.GATEWAY_KEYS, *record_settings.LEDGER_KEYS,
    *chat_workflows.WORKFLOW_KEYS, *chat_workflows.TYPED_KEYS, *chat_workflows.VARIANT_KEYS, *chat_workflows.RULE_KEYS,
    *chat_workflows.ACCEPT_KEYS, *chat_workflows.BUDGET_KEYS, *chat_workflows.SLO_KEYS, *chat_workflows.PARAMETERS_KEYS,
    *limits.LIMIT_KEYS, *chat_workflows.CACHE_KEYS, *chat_workflows.DEGRADE_KEYS, *dt.Stale.__struct_fields__,
    *(name for names in ARGUMENTS.values() for name in names),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_reference_names_every_key_and_argument(name: str) -> None:
    assert re.search(rf"[`\[( ]{name}\b", REFERENCE.read_text())


def test_the_reference_gives_the_defaults_that_hold() -> None:
    text = REFERENCE.read_text()
    defaults = {
        name: getattr(record, name)
        for record in (GatewaySettings(), LedgerSettings())
        for name in record.__struct_fields__
        if isinstance(getattr(record, name), int) and name != "port"
    }
    assert defaults
    for name, value in defaults.items():
        assert re.search(rf"\| `{name}` \| {value} \|", text), name
    assert Provider.__struct_fields__[:2] == ("name", "dialect")
