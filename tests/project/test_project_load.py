"""A right project loads: settings, environments, chat workflows from TOML, prompts and direct models."""

from __future__ import annotations

import pytest

from drivetrain import Cache, Conversation, DrivetrainError, Rule, Stale, Static, Variant, project
from drivetrain.core.errors import ProjectError

CHAT = r"""
[workflows.help]
owner = "a@b.example"
team = "support"
use_case = "chat"
retention = "hash"
durability = "audit"
attempts_max = 2
budget = { usd_per_call = "0.05", usd_per_month = 20, mode = "soft", alerts = [100, 50] }
max_input_tokens = 8000
context = "drop_oldest_turns"
cache = { ttl_s = 60, when = "always", tool_calls = true }
degrade = [{ stale_max_age_s = 3600 }, { static = "Later, please." }]
deadline_ms = 9000
priority = "high"
slo = { p99_ms = 900, availability = 0.99 }
parameters = { honour = ["temperature"], fix = { seed = 7 }, ignore = ["user"], refuse = ["n"], others = "refuse" }

[[workflows.help.route]]
rule = "greeting"
matches = '^(hi|hello)\W*$'
answer = "Hello!"

[[workflows.help.route]]
rule = "exact"
equals = "ping"
answer = "pong"

[[workflows.help.route]]
rule = "empty"
empty = true
answer = "Say something."

[[workflows.help.route]]
name = "main"
model = "openai/gpt-5-mini-2025-08-07"
system = "help.j2"
max_output_tokens = 100
timeout_ms = 5000
first_byte_timeout_ms = 900
parameters = { temperature = 0 }
accept = { matches = "[.!]$", not_matches = "sorry", chars_min = 3, chars_max = 20 }
"""


def chat(text: str, **more: object) -> Conversation:
    return Conversation(messages=({"role": "user", "content": text, **more},), text=text)


def test_a_small_project(make, small) -> None:
    root = make(small)
    snapshot = project.load(root)
    assert (snapshot.name, snapshot.environment, snapshot.root) == ("shop", "default", root)
    assert list(snapshot.workflows) == ["triage"]
    workflow = snapshot.workflows["triage"]
    assert workflow.project == str(root)
    assert workflow.place.file == str(root / "workflows/triage.py")
    variant = workflow.route[1]
    assert isinstance(variant, Variant)
    assert snapshot.templates == {"workflows/triage.j2": "Which queue? {{ text }}\n"}
    assert variant.prompt in snapshot.templates
    assert workflow.route[0].then.intent == "spam"
    assert snapshot.providers["openai"].endpoint.host == "api.openai.com"
    assert len(snapshot.hash) == 64
    assert repr(snapshot) == f"Snapshot('shop', 'default', {snapshot.short_hash}, 1 workflows)"


def test_a_chat_workflow_from_toml(make, small) -> None:
    root = make({**small, "drivetrain.toml": small["drivetrain.toml"] + CHAT, "workflows/help.j2": "Help. {{ text }}"})
    workflow = project.load(root).workflows["help"]
    assert (workflow.input, workflow.output, workflow.retention, workflow.durability) == (None, None, "hash", "audit")
    assert (workflow.attempts_max, workflow.budget.usd_per_call, workflow.slo.p99_ms) == (2, "0.05", 900)
    assert (workflow.max_input_tokens, workflow.context) == (8000, "drop_oldest_turns")
    assert (workflow.deadline_ms, workflow.priority) == (9000, "high")
    assert workflow.cache == Cache(ttl_s=60, when="always", tool_calls=True)
    assert workflow.degrade == (Stale(max_age_s=3600), Static("Later, please."))
    assert workflow.parameters.fix == {"seed": 7}
    assert workflow.parameters.honour == ("temperature",)
    greeting, exact, empty, main = workflow.route
    assert isinstance(greeting, Rule)
    assert greeting.when(chat("hello!!"))
    assert not greeting.when(chat("hello, my order"))
    assert greeting.then == "Hello!"
    assert exact.when(chat(" ping\n"))
    assert not exact.when(chat("pinging"))
    assert empty.when(chat("  "))
    assert empty.when(Conversation(messages=(), text=""))
    assert not empty.when(chat("x"))
    image = [{"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}]
    assert not empty.when(Conversation(messages=({"role": "user", "content": image},), text=""))
    assert isinstance(main, Variant)
    assert (main.system, main.max_output_tokens, main.timeout_ms) == ("workflows/help.j2", 100, 5000)
    reasons = [[check.test(answer, None) for check in main.accept] for answer in ("Fine.", "no", "I am sorry. " * 3)]
    assert reasons[0] == [None, None, None, None]
    assert reasons[1] == ["does not match [.!]$", None, "2 characters, fewer than 3", None]
    assert reasons[2] == ["does not match [.!]$", "does match sorry", None, "36 characters, more than 20"]
    assert main.place.line == root.joinpath("drivetrain.toml").read_text().splitlines().index('name = "main"')


def test_environments_are_merged_deeply(make, small, monkeypatch) -> None:
    settings = small["drivetrain.toml"].replace('name = "shop"', 'name = "shop"\ndefault_env = "dev"') + (
        "[gateway]\nport = 1000\nmessages_max = 5\n"
        "[env.dev]\n[env.prod.gateway]\nport = 2000\n"
        '[env.prod.providers.openai]\nbase_url = "https://eu.api.openai.com/v1"\n'
    )
    root = make({**small, "drivetrain.toml": settings})
    dev, prod = project.load(root), project.load(root, "prod")
    assert (dev.environment, dev.gateway.port, dev.gateway.messages_max) == ("dev", 1000, 5)
    assert (prod.environment, prod.gateway.port, prod.gateway.messages_max) == ("prod", 2000, 5)
    assert prod.providers["openai"].endpoint.host == "eu.api.openai.com"
    assert prod.providers["openai"].key == dev.providers["openai"].key
    assert dev.hash != prod.hash
    monkeypatch.setenv("DRIVETRAIN_ENV", "prod")
    assert project.load(root).hash == prod.hash
    assert project.load(root, "dev").hash == dev.hash


def test_a_mistake_in_an_overlay_has_the_overlays_line(make, small) -> None:
    settings = small["drivetrain.toml"] + '[gateway]\nport = 1000\n[env.prod]\ngateway = { port = "x" }\n'
    root = make({**small, "drivetrain.toml": settings})
    for environment in (None, "prod"):
        with pytest.raises(ProjectError) as caught:
            project.load(root, environment)
        assert [(one.line, one.value) for one in caught.value.problems] == [(settings.count("\n"), '"x"')]


def test_direct_models(make, small) -> None:
    settings = small["drivetrain.toml"] + (
        '[teams.platform]\nowner = "p@b.example"\n[teams.support]\n'
        '[gateway]\ndirect_models = ["openai/gpt-5-mini"]\ndirect_team = "platform"\n'
    )
    snapshot = project.load(make({**small, "drivetrain.toml": settings}))
    assert snapshot.direct == {"openai/gpt-5-mini"}
    workflow = snapshot.workflows["openai/gpt-5-mini"]
    assert (workflow.owner, workflow.team, workflow.use_case) == ("p@b.example", "platform", "direct")
    assert [step.model for step in workflow.route] == ["openai/gpt-5-mini"]
    assert snapshot.teams == ("platform", "support")


def test_models_are_priced_in_integers(make, small) -> None:
    settings = small["drivetrain.toml"] + (
        '[models."openai/own"]\nusd_per_million_input = "0.0375"\nusd_per_million_output = 2\n'
        'usd_per_request = "0.001"\nupstream_name = "OWN-1"\ncapabilities = ["tools"]\n'
    )
    facts = project.load(make({**small, "drivetrain.toml": settings})).models["openai/own"]
    prices = (facts.input_nano_per_million, facts.output_nano_per_million, facts.nano_per_request)
    assert prices == (37_500_000, 2_000_000_000, 1_000_000)
    assert (facts.upstream_name, facts.capabilities, facts.price_as) == ("OWN-1", ("tools",), None)


def test_what_is_not_written_keeps_its_default(make, small) -> None:
    text = CHAT[: CHAT.index("budget =")] + "cache = { ttl_s = 60 }\nbudget = { usd_per_day = 1 }\n"
    text += 'route = [{ rule = "all", equals = "x", answer = "y" }]\n'
    workflow = project.load(make({**small, "drivetrain.toml": small["drivetrain.toml"] + text})).workflows["help"]
    assert workflow.cache == Cache(ttl_s=60)
    assert (workflow.budget.mode, workflow.budget.alerts, workflow.degrade) == ("hard", (), ())
    assert (workflow.max_input_tokens, workflow.context) == (None, "refuse")
    assert (workflow.deadline_ms, workflow.priority) == (None, "normal")


def test_a_machine_is_priced_by_the_hour(make, small) -> None:
    table = '[models."openai/own"]\nusd_per_hour = "2.50"\nparallel = 8\n'
    facts = project.load(make({**small, "drivetrain.toml": small["drivetrain.toml"] + table})).models["openai/own"]
    assert (facts.machine_nano_per_hour, facts.parallel, facts.input_nano_per_million) == (2_500_000_000, 8, None)


def test_prompts_are_found_beside_the_file_then_in_workflows_then_at_the_root(make, small) -> None:
    files = {
        **small,
        "workflows/deep/near.py": small["workflows/triage.py"]
        .replace('"triage",', '"near",')
        .replace("prompt=", 'system="prompts/tone.j2", prompt='),
        "workflows/deep/triage.j2": "near {{ text }}{% include 'prompts/tone.j2' %}",
        "prompts/tone.j2": "Be kind.",
        "workflows/deep/far.py": small["workflows/triage.py"]
        .replace('"triage",', '"far",')
        .replace("triage.j2", "far.j2"),
        "workflows/far.j2": "far {{ text }}",
    }
    snapshot = project.load(make(files))
    prompts = {name: workflow.route[1].prompt for name, workflow in snapshot.workflows.items()}
    assert prompts == {"triage": "workflows/triage.j2", "near": "workflows/deep/triage.j2", "far": "workflows/far.j2"}
    assert snapshot.workflows["near"].route[1].system == "prompts/tone.j2"
    assert set(snapshot.templates) == {*prompts.values(), "prompts/tone.j2"}


def test_workflows_are_found_in_lists_and_counted_once(make, small) -> None:
    module = (
        "import drivetrain as dt\nfrom workflows.triage import triage\n"
        "many = [dt.Workflow(f'chat-{n}', owner='a@b.example', team='t', use_case='u',\n"
        "    route=[dt.Variant('main', model='openai/m')]) for n in range(2)]\n"
    )
    snapshot = project.load(make({**small, "workflows/many.py": module}))
    assert sorted(snapshot.workflows) == ["chat-0", "chat-1", "triage"]


def test_find_root_looks_upwards(make, small, tmp_path) -> None:
    root = make(small)
    assert project.find_root(root / "workflows") == root
    assert project.find_root(root / "workflows" / "triage.py") == root
    with pytest.raises(DrivetrainError, match=r"No drivetrain\.toml") as caught:
        project.find_root(tmp_path)
    assert str(tmp_path) in caught.value.looked
    assert "drivetrain init" in str(caught.value)
