"""Every mistake of a project is reported at once, with its file, its line and what to do.

A mistaken line carries `# n:` and the numbers of the rows of MISTAKES that expect it there.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from drivetrain import project
from drivetrain.core.errors import Problem, ProjectError

SECRET = "sk-live-0123456789abcdef"

SETTINGS = f"""\
[project]
name = "Shop!" # n: name
nmae = "x" # n: project-key

[provders.openai] # n: top-key
x = 1

[providers.openai]
dialect = "opnai" # n: dialect
base_url = "ftp://api.openai.com" # n: base-url
key = "{SECRET}" # n: literal-key
api_key = "{SECRET}" # n: api-key
proxy = "http://me:{SECRET}@proxy:3128" # n: proxy
connections_max = 0 # n: connections

[providers.openai.headers]
authorization = "Bearer {SECRET}" # n: header
host = "other" # n: our-header

[providers.groq] # n: no-dialect,no-base-url
key = "env:1BAD" # n: bad-reference

[models."opnai/gpt-5-mini"] # n: model-provider
price_as = "gpt-5-mini" # n: price-as

[models."openai/gpt-5-mini"] # n: no-output-price
usd_per_million_input = 0.25 # n: float-price
usd_per_request = "free" # n: amount
capabilities = ["tols"] # n: capability
max_tokens_field = "max_token" # n: max-tokens-field

[models."openai/both"]
price_as = "openai/gpt-5-mini"
usd_per_million_input = "1" # n: two-prices
usd_per_million_output = "1"

[models."openai/own"]
usd_per_hour = "2.50"
usd_per_request = "0.1" # n: machine-and-tokens
parallel = 0 # n: parallel

[models."openai/shared"]
parallel = 4 # n: parallel-alone
retires = "next year" # n: retires
replacement = "openai/shared" # n: replacement

[limits.month] # n: two-amounts
scope = "project"
usd = "1"
requests = 5
per = "month"

[limits.team]
scope = "team:suport" # n: limit-team
concurrent = 3

[teams.support]
owner = "nobody" # n: team-owner

[keys.web] # n: no-secret
team = "suport" # n: key-team

[keys.app]
secret = "file:workflows/leaked.txt" # n: secret-in-snapshot
workflows = [
  "triage",
  "triag", # n: key-workflow
]
may_override = ["teams"] # n: override

[keys.twin]
secret = "file:workflows/leaked.txt" # n: twin,secret-in-snapshot-twin

[gateway]
port = "8080" # n: port
direct_models = ["gpt-5-mini"] # n: direct
body_max = 3 # n: gateway-key

[ledger]
retention = "everything" # n: ledger-retention
keys_folder = ".drivetrain/data/keys" # n: keys-folder

[env.prod.ledger]
retention = "ful" # n: other-environment

[workflows.Chat] # n: workflow-name,no-owner
team = "suport" # n: workflow-team
use_case = "chat"
output = "text" # n: typed-key
budget = {{ usd_per_call = 0.02, usd_per_week = 1 }} # n: budget-float,budget-key
max_input_tokens = 0 # n: input-tokens
context = "drop_oldest" # n: context
cache = {{ ttl_s = 3_000_000, when = "determined", tool_cals = true }} # n: ttl,cache-when,cache-key
degrade = [
  {{ static = "later" }},
  {{ stale_max_age_s = 60 }},
  {{ static = "a", stale_max_age_s = 60 }}, # n: two-rungs
]
deadline_ms = 3_600_001 # n: deadline
priority = "hihg" # n: priority
slo = {{ availability = 99.9 }} # n: availability
retention = "fll" # n: retention
attempts_max = 0 # n: attempts
parameters = {{ honour = ["temprature"], refuse = ["max_tokens"], others = "drop" }} # n: honour,managed,others
route = [
  {{ rule = "hi", matches = "(", answer = "x" }}, # n: regex
  {{ rule = "two", equals = "a", empty = true, answer = "x" }}, # n: two-conditions
  {{ rule = "mute", empty = true }}, # n: no-answer
  {{ name = "main", model = "opnai/gpt-5-mini", sytem = "x.j2" }}, # n: chat-model,variant-key
  {{ name = "main", model = "openai/gpt-5-mini", accept = {{ min_chars = 3 }} }}, # n: duplicate-variant,accept-key
  {{ name = "long", model = "openai/gpt-5-mini", max_output_tokens = -1, timeout_ms = 0 }}, # n: tokens,timeout
  {{ model = "openai/gpt-5-mini" }}, # n: nameless
  {{ name = "told", model = "openai/gpt-5-mini", system = "Be nice." }}, # n: system-text
]
"""

TRIAGE = """\
import drivetrain as dt


class Ticket(dt.Record):
    text: str
    size: int = 0


class Route(dt.Record):
    intent: str


class Odd(dt.Record):
    what: object


class Plain:
    text: str


bounded = dt.Workflow(
    "bounded", input=Ticket, output=Route,
    owner="a@b.example", team="support", use_case="x",
    route=[dt.Variant("main", model="openai/gpt-5-mini", prompt="triage.j2")],
    context="drop_oldest_turns", # n: strategy-alone,no-turns
    budget=dt.Budget(
        usd_per_call="1",
        mode="sotf", # n: budget-mode
        alerts=(0, 50), # n: alerts
    ),
    cache=dt.Cache(
        ttl_s=60,
        tool_calls="yes", # n: tool-calls
    ),
    degrade=[dt.Stale(max_age_s=60), dt.Static(Route), dt.Static("x")], # n: stale-fresh,static-class,statics
)

ladder = dt.Workflow(
    "ladder", input=Ticket, output=Route,
    owner="a@b.example", team="support", use_case="x",
    route=[dt.Variant("main", model="openai/gpt-5-mini", prompt="triage.j2")],
    budget=dt.Budget(usd_per_call="1", alerts=(50,)), # n: alerts-alone
    degrade=[dt.Stale(max_age_s=0), dt.Stale(max_age_s=60), "sorry"], # n: stale-age,no-cache,no-rung,stales
)

fitting = dt.Workflow(
    "fitting", input=Ticket, output=Route,
    owner="a@b.example", team="support", use_case="x",
    route=[dt.Variant("main", model="openai/gpt-5-mini", prompt="triage.j2")],
    cache=60, # n: no-cache-type
    degrade=[dt.Static(Route(intent=3))], # n: static-refused
)

triage = dt.Workflow( # n: no-use-case
    "triage", input=Ticket, output=Route,
    owner="support", # n: owner
    team="support",
    route=[
        dt.Rule("empty", when="no text", then="spam"), # n: when,then
        dt.Rule("all", when=lambda _: True, then=Route), # n: then-class
        dt.Variant( # n: unreachable
            "small",
            model="models:/triage@champion", # n: trained
            prompt="triag.j2", # n: prompt
            accept=0.9, # n: accept
            temprature=0, # n: unknown-argument
            parameters={
                "temprature": 0, # n: parameter
                "max_tokens": 3, # n: managed-parameter
            },
        ),
        dt.Variant("broken", model="gpt-5-mini", prompt="broken.j2"), # n: bare-model
        dt.Variant("vars", model="openai/gpt-5-mini", prompt="vars.j2", system="empty.j2"),
        "frontier", # n: -
    ], # n: -
    budget=dt.Budget(
        usd_per_call="two cents", # n: budget-text
        usd_per_month=0.5, # n: budget-python-float
    ),
    slo=dt.SLO(p99_ms=0), # n: p99
    durability="sync", # n: durability
    chat_input="messages", # n: chat-input
    chat_field="size", # n: chat-field
    validators=["short"], # n: validator
    retension="full", # n: workflow-argument
)

typed = dt.Workflow(
    "typed", owner="a@b.example", team="support", use_case="x",
    input=Plain, # n: not-record
    output=Odd, # n: schema
    route=[], # n: empty-route
    parameters=dt.Parameters(honour="temperature"), # n: honour-text
)

again = dt.Workflow( # n: twice
    "typed", owner="a@b.example", team="support", use_case="x",
    route=[dt.Variant("main", model="openai/gpt-5-mini", prompt="triage.j2")], # n: chat-prompt
)
"""

FILES = {
    "drivetrain.toml": SETTINGS,
    "workflows/triage.py": TRIAGE,
    "workflows/triage.j2": "{{ text }}",
    "workflows/empty.j2": "",
    "workflows/leaked.txt": "x",
    "workflows/broken.j2": "Hello\n{{ text text }} {# n: template-syntax #}\n",
    "workflows/vars.j2": (
        "{{ text }}\n{{ texte }} {# n: variable #}\n{{ text|uper }} {# n: filter #}\n"
        '{% include "workflows/triga.j2" %} {# n: include #}\n'
    ),
    "workflows/syntax.py": "import drivetrain as dt\ndef f(: # n: python-syntax\n",
    "workflows/keyword.py": "import drivetrain as dt\nx = dt.Budget(usd_per_cal=3) # n: budget-keyword\n",
    "workflows/cached.py": "import drivetrain as dt\nx = dt.Cache(ttl_s=3, tool_call=True) # n: cache-keyword\n",
    "workflows/absent.py": "from workflows.triag import triage # n: module\n",
    "workflows/name.py": "from workflows.triage import triag # n: import-name\n",
    "workflows/fails.py": "def f():\n    return 1 / 0 # n: raises\nf()\n",
    "workflows/exits.py": "import sys\nsys.exit(3) # n: exits\n",
    "workflows/late.v2.py": "",
}

MISTAKES: list[tuple[str, str, str]] = [
    ("name", "`project.name` is not a name", "small letter"),
    ("project-key", "`project.nmae` is not a key here", "`name`"),
    ("top-key", "`provders` is not a key here", "`providers`"),
    ("dialect", "`providers.openai.dialect` must be one of", "`openai`"),
    ("base-url", "is not a base URL: it must start with http", "https://"),
    ("literal-key", "`providers.openai.key` must say where the secret is kept", "env:NAME"),
    ("api-key", "`providers.openai.api_key` is not a key here", "`key`"),
    ("proxy", "carries a user or password", "env:NAME"),
    ("connections", "must be a whole number from 1", ""),
    ("header", "`providers.openai.headers.authorization` looks like a secret", "env:NAME"),
    ("our-header", "Drivetrain sets itself", "Remove"),
    ("no-dialect", "`providers.groq.dialect` is missing", '"openai"'),
    ("no-base-url", "`providers.groq.base_url` is missing", "https://"),
    ("bad-reference", "`providers.groq.key` must say where", "env:NAME"),
    ("model-provider", "names the provider `opnai`", "`openai`"),
    ("price-as", "is not `provider/model`", "openai/gpt-5-mini"),
    ("no-output-price", "usd_per_million_output` is missing", "or 0 where it is free"),
    ("float-price", "must not be a float", '"0.25" in quotes'),
    ("amount", "is no amount of USD", '"0.25"'),
    ("capability", "must be one of", "`tools`"),
    ("max-tokens-field", "must be one of", "`max_tokens`"),
    ("two-prices", "beside `price_as`", "either"),
    ("machine-and-tokens", "usd_per_request` stands beside `usd_per_hour`", "either"),
    ("parallel", "parallel` must be a whole number from 1", ""),
    ("parallel-alone", "parallel` belongs to a machine", "usd_per_hour"),
    ("retires", "retires` is no day", "2026-12-31"),
    ("replacement", "replacement` is not another `provider/model`", "openai/"),
    ("two-amounts", "`limits.month` must have exactly one of", ""),
    ("limit-team", "`limits.team.scope` names the team `suport`", "`support`"),
    ("team-owner", "is not an e-mail address", "@acme"),
    ("no-secret", "`keys.web.secret` is missing", "env:NAME"),
    ("key-team", "names no team", "`support`"),
    ("secret-in-snapshot", "part of the project's Snapshot", "secrets/"),
    ("key-workflow", "names `triag`, which is not declared", "`triage`"),
    ("override", "must be one of", "`team`"),
    ("twin", "is the secret of key `app` too", ""),
    ("secret-in-snapshot-twin", "part of the project's Snapshot", "secrets/"),
    ("port", "`gateway.port` must be a whole number", ""),
    ("direct", "`gateway.direct_models[0]` names no provider", '"openai/gpt-5-mini"'),
    ("gateway-key", "`gateway.body_max` is not a key here", "`body_bytes_max`"),
    ("ledger-retention", "`ledger.retention` must be one of", ""),
    ("keys-folder", "lies in the data folder", ""),
    ("other-environment", "`ledger.retention` must be one of", "`full`"),
    ("workflow-name", "Workflow `Chat` has a wrong name", "small letter"),
    ("no-owner", "Workflow `Chat` has no owner", "@acme"),
    ("workflow-team", "names the team `suport`", "`support`"),
    ("typed-key", "`workflows.Chat.output` is not a key here", "Python"),
    ("budget-float", "must not be a float", '"0.02" in quotes'),
    ("budget-key", "`workflows.Chat.budget.usd_per_week` is not a key here", "`usd_per_"),
    ("input-tokens", "wrong `max_input_tokens`; it is a whole number from 1", ""),
    ("context", "wrong `context`", "`drop_oldest_turns`"),
    ("ttl", "a `cache` whose `ttl_s` is no whole number of seconds from 1 to 2592000", ""),
    ("cache-when", "a cache whose `when` is not", "`deterministic`"),
    ("cache-key", "`workflows.Chat.cache.tool_cals` is not a key here", "`tool_calls`"),
    ("two-rungs", "must have exactly one of `stale_max_age_s` and `static`", ""),
    ("deadline", "wrong `deadline_ms`; it is a whole number from 1 to 3600000", ""),
    ("priority", "wrong `priority`", "`high`"),
    ("strategy-alone", "no input is too long for it", "`max_input_tokens`"),
    ("no-turns", "its input is no conversation", "keep_ends"),
    ("budget-mode", "a budget with a wrong `mode`", "`soft`"),
    ("alerts", "`alerts` are no whole percents", "(50, 80, 100)"),
    ("alerts-alone", "`mode` or `alerts`, but no amount per day or month", "`usd_per_month`"),
    ("tool-calls", "`tool_calls` is neither true nor false", ""),
    ("stale-fresh", "no answer that is not fresh still", "above the cache's `ttl_s`"),
    ("static-class", "a Static in `degrade` whose answer is no Route", "Route(...)"),
    ("statics", "more than one Static", "Keep one"),
    ("stale-age", "a `degrade` whose `max_age_s` is no whole number", ""),
    ("stales", "more than one Stale", "Keep one"),
    ("no-cache", "a Stale in `degrade`, but no cache", "`ttl_s`"),
    ("no-rung", "a step in `degrade` that is no Stale and no Static", "dt.Static"),
    ("no-cache-type", "a `cache` that is no Cache", "dt.Cache"),
    ("static-refused", "whose answer its own type refuses", "fits Route"),
    ("cache-keyword", "Unexpected keyword argument 'tool_call'", "`tool_calls`"),
    ("availability", "`availability` is no share", "0.999"),
    ("retention", "wrong `retention`", "`full`"),
    ("attempts", "wrong `attempts_max`", ""),
    ("honour", "`temprature` in `honour`", "`temperature`"),
    ("managed", "`max_tokens` in `refuse`, which Drivetrain sets itself", "max_output_tokens"),
    ("others", "wrong `others`", '"refuse" or "honour"'),
    ("regex", "is no regular expression", ""),
    ("two-conditions", "needs exactly one condition", "`matches`"),
    ("no-answer", "`workflows.Chat.route[2].answer` is missing", ""),
    ("chat-model", "names the provider `opnai`", "`openai`"),
    ("variant-key", "`workflows.Chat.route[3].sytem` is not a key here", "`system`"),
    ("duplicate-variant", "has the name of an earlier step", ""),
    ("accept-key", "min_chars` is not a key here", "`chars_m"),
    ("tokens", "wrong `max_output_tokens`", ""),
    ("timeout", "wrong `timeout_ms`", ""),
    ("nameless", "neither a variant nor a rule", "`name` and `model`"),
    ("system-text", 'names the file "Be nice.", which does not exist', "name of a file"),
    ("no-use-case", "has no use case", "use_case="),
    ("owner", "no e-mail address", "@acme"),
    ("when", "Rule `empty` of workflow `triage` has a `when` that is no function", "lambda"),
    ("then", "has a `then` that is no Route", "output type"),
    ("then-class", "has a class as its `then`", "Route(...)"),
    ("unreachable", "Variant `small` of workflow `triage` can never answer", "last"),
    ("trained", "names a model `triage` that the registry does not hold", "drivetrain train"),
    (
        "prompt",
        'names the file "triag.j2", which does not exist. Looked in: workflows/triag.j2, triag.j2',
        "`triage.j2`",
    ),
    ("accept", "has an `accept` that is no Check", "dt.confidence"),
    ("unknown-argument", "has no argument `temprature`", ""),
    ("parameter", "sets the parameter `temprature`", "`temperature`"),
    ("managed-parameter", "sets the parameter `max_tokens`", "max_output_tokens"),
    ("bare-model", "names no provider", '"openai/gpt-5-mini"'),
    ("budget-text", "`usd_per_call` is no amount of USD", '"0.25"'),
    ("budget-python-float", "`usd_per_month` must not be a float", '"0.5" in quotes'),
    ("p99", "`p99_ms` is no whole number", ""),
    ("durability", "wrong `durability`", ""),
    ("chat-input", "wrong `chat_input`", "last_user_message"),
    ("chat-field", "is no `str` field of Ticket", "`text`"),
    ("validator", "a validator that is no function", ""),
    ("workflow-argument", "has no argument `retension`", "`retention`"),
    ("not-record", "an input that is no Record", "dt.Record"),
    ("schema", "an output type without a JSON schema", "Records"),
    ("empty-route", "has an empty route", "dt.Variant"),
    ("honour-text", "`honour` parameters that are no list", ""),
    ("twice", "is declared twice; first in workflows/triage.py:", "another name"),
    ("chat-prompt", "a `prompt`, but a chat workflow", "`system`"),
    ("template-syntax", "The template cannot be parsed", "minijinja"),
    ("variable", "uses `texte`, which is no field", "`text`"),
    ("filter", "the filter `uper`, which does not exist", ""),
    ("include", 'includes "workflows/triga.j2"', "`workflows/triage.j2`"),
    ("python-syntax", "SyntaxError", ""),
    ("budget-keyword", "TypeError: Unexpected keyword argument 'usd_per_cal'", "`usd_per_call`"),
    ("module", "No module named 'workflows.triag'", "`workflows.triage`"),
    ("import-name", "cannot import name 'triag' from 'workflows.triage'", "`triage`"),
    ("raises", "ZeroDivisionError: division by zero", ""),
    ("exits", "SystemExit: 3", "must not end the process"),
]

WITHOUT_MARK = [
    ("drivetrain.toml", "`workflows.Chat.route[4].accept` checks nothing"),
    ("drivetrain.toml", "Workflow `Chat` has a Stale behind its Static"),
    ("workflows/triage.py", "has a step in its route that is no Rule and no Variant"),
    ("workflows/late.v2.py", "its name has a dot"),
]


def _marks() -> dict[str, tuple[str, int]]:
    marks: dict[str, tuple[str, int]] = {}
    for file, text in FILES.items():
        for number, line in enumerate(text.splitlines(), 1):
            found = re.search(r"# n: ([\w,-]+)", line)
            for mark in found[1].split(",") if found else ():
                marks[mark] = (file, number)
    return marks


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> tuple[Problem, ...]:
    root = tmp_path_factory.mktemp("mistakes")
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    with pytest.raises(ProjectError) as caught:
        project.load(root)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value)
    assert str(root) not in str(caught.value)
    return caught.value.problems


@pytest.mark.parametrize(("mark", "what", "do"), MISTAKES, ids=[row[0] for row in MISTAKES])
def test_mistake_is_reported_where_it_stands(problems: tuple[Problem, ...], mark: str, what: str, do: str) -> None:
    file, line = _marks()[mark]
    there = [one for one in problems if (one.file, one.line) == (file, line)]
    assert any(what in one.what and do in one.do for one in there), [str(one) for one in there or problems]


def test_nothing_else_is_reported(problems: tuple[Problem, ...]) -> None:
    marks = _marks()
    expected = [(*marks[mark], what) for mark, what, _ in MISTAKES]
    for one in problems:
        known = any((one.file, one.line) == (file, line) and what in one.what for file, line, what in expected)
        assert known or any(one.file == file and what in one.what for file, what in WITHOUT_MARK), str(one)


def test_every_mark_is_expected() -> None:
    assert set(_marks()) - {"-"} == {mark for mark, _, _ in MISTAKES}


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ('[project]\nname = "x\n', 2, "The file is not TOML"),
        ("[project]\nname = 'x'\n[project]\n", 3, "The file is not TOML"),
        ("[project]\nname = 'x'\n[workflows", 3, "The file is not TOML"),
    ],
)
def test_broken_toml_still_reports_the_code(make, small, text, line, what) -> None:
    root = make({**small, "drivetrain.toml": text, "workflows/bad.py": "x = 1 / 0\n"})
    with pytest.raises(ProjectError) as caught:
        project.load(root)
    first, second = caught.value.problems
    assert (first.file, first.line) == ("drivetrain.toml", line)
    assert what in first.what
    assert (second.file, second.line) == ("workflows/bad.py", 1)


def test_toml_that_is_not_utf8(make, small) -> None:
    root = make(small)
    (root / "drivetrain.toml").write_bytes(b"[project]\nname = '\xff'\n")
    with pytest.raises(ProjectError) as caught:
        project.load(root)
    assert str(caught.value.problems[0]).startswith("drivetrain.toml:2: The file is not UTF-8.")


def test_one_broken_module_is_reported_once_however_many_import_it(make, small) -> None:
    root = make({**small, "workflows/a.py": "import workflows.z\n", "workflows/z.py": "\nx = undefined\n"})
    with pytest.raises(ProjectError) as caught:
        project.load(root)
    assert [(one.file, one.line) for one in caught.value.problems] == [("workflows/z.py", 2)]


def test_an_unknown_environment_suggests_the_nearest(make, small) -> None:
    root = make({**small, "drivetrain.toml": small["drivetrain.toml"] + "[env.prod.gateway]\nport = 1\n"})
    with pytest.raises(ProjectError, match="Did you mean `prod`"):
        project.load(root, "prd")


def test_a_file_that_is_too_large(make, small) -> None:
    root = make({**small, "workflows/blob.txt": "x" * (4 * 1024 * 1024 + 1)})
    with pytest.raises(ProjectError, match=r"workflows/blob\.txt: The file is larger than 4194304 bytes"):
        project.load(root)


def test_too_many_files(make, small) -> None:
    root = make(small)
    for number in range(2_001):
        (root / "workflows" / f"{number}.txt").touch()
    with pytest.raises(ProjectError, match="more than 2000 files"):
        project.load(root)


def test_a_folder_without_settings(tmp_path) -> None:
    with pytest.raises(ProjectError, match="drivetrain init"):
        project.load(tmp_path)


def test_a_route_that_would_answer_wrongly_or_escalate_always_is_told(tmp_path: Path) -> None:
    """What runs without a complaint and costs money: each is a mistake with its line."""
    (tmp_path / "workflows").mkdir()
    (tmp_path / "drivetrain.toml").write_text(
        '[project]\nname = "p"\n[providers.sim]\ndialect = "openai"\nbase_url = "http://127.0.0.1:9/v1"\n'
    )
    (tmp_path / "workflows" / "w.py").write_text(
        "from typing import Literal\n"
        "import drivetrain as dt\n"
        "class In(dt.Record):\n    text: str\n"
        'class Out(dt.Record):\n    intent: Literal["a", "b"]\n    certainty: float | None = None\n'
        'w = dt.Workflow("w", input=In, output=Out, owner="o@x.example", team="t", use_case="u", route=[\n'
        '    dt.Rule("empty", when=lambda one: not one.text, then=Out(intent="c")),\n'
        '    dt.Variant("high", model="sim/m", accept=dt.confidence(7, field="certainty")),\n'
        '    dt.Variant("gone", model="sim/m", accept=dt.confidence(0.7)),\n'
        "])\n"
    )
    with pytest.raises(ProjectError) as caught:
        project.load(tmp_path)
    told = {problem.line: problem.what for problem in caught.value.problems}
    assert "its own type refuses" in told[9]
    assert "no answer can have" in told[10]
    assert "`confidence`, which the output does not have" in told[11]
