"""A Snapshot's workflows compiled to what one call needs, so that nothing is looked up or parsed twice.

Secrets are resolved here, once, into the heads of upstream requests, and are kept nowhere else.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import minijinja
import msgspec

from drivetrain.core.codec import JSON, MalformedJson, parse_json
from drivetrain.core.declarations import PRIORITIES, Rule, Stale, Variant, Workflow
from drivetrain.core.endpoints import Endpoint, is_proxy_url, proxy_authorization, proxy_secrets
from drivetrain.core.errors import DrivetrainError, RequestError
from drivetrain.core.money import nano_usd
from drivetrain.execution.admission import Admitted, ChatAdmission, admit_input, as_chat, bad_request, parse_body
from drivetrain.execution.featured import FeaturePlan, business_key
from drivetrain.execution.trained import TrainedStep
from drivetrain.policies.compile import CompiledPolicy, as_policy, compile_policy
from drivetrain.project.snapshot import ModelFacts, Provider, SecretRef, Snapshot
from drivetrain.providers.answers import Dialect, Target
from drivetrain.providers.anthropic_messages import AnthropicMessages
from drivetrain.providers.facts import target
from drivetrain.providers.openai_chat import OpenAIChat
from drivetrain.providers.pricing import PriceBook, UnknownPrice, own_price, price_book
from drivetrain.routing.checks import CheckStep, Features, RuleStep, SlowCode, compiled_checks
from drivetrain.routing.outputs import OutputReader, output_schema
from drivetrain.version import VERSION

DIALECTS: Mapping[str, Dialect] = {"openai": OpenAIChat(), "anthropic": AnthropicMessages()}
_CAPITAL = re.compile("[A-Z]")
OWN = Endpoint(name="models", scheme="models", host="", port=0)
"""Where trained models run, as far as a provider's address goes."""

Resolve = Callable[[SecretRef], str]
Messages = Callable[[Any, list[Any] | None, Features], list[Any]]


class VariantStep:
    """A variant with a model, ready to be tried."""

    __slots__ = (
        "as_it_is",
        "buffered",
        "can",
        "checks",
        "dialect",
        "extra",
        "first_byte_timeout_ms",
        "head",
        "identity",
        "max_output_tokens",
        "messages",
        "name",
        "parameters",
        "prices",
        "secrets",
        "streams",
        "target",
        "timeout_ms",
        "trained",
        "unpriced",
        "watched",
    )

    def __init__(self, workflow: Workflow[Any, Any], variant: Variant, parts: _Parts) -> None:
        facts = parts.snapshot.models.get(variant.model)
        self.name = variant.name
        pinned = parts.snapshot.pinned.get(variant.model)
        self.trained = TrainedStep(pinned, workflow) if pinned is not None else None
        """Where it is a trained model: how it is asked."""
        upstream = _provider(variant, facts, parts) if self.trained is None else _own(self.trained, facts, workflow)
        self.watched = upstream.watched
        """Whether its model's health decides about attempts."""
        self.dialect = upstream.dialect
        self.target = upstream.target
        self.can = self.target.capabilities | self.dialect.makes_up_for(self.target.capabilities)
        """What a request may need: the model's capabilities, and what the dialect reaches by other means."""
        self.head, self.secrets = upstream.head, upstream.secrets
        self.identity = upstream.identity
        """Who is asked, for the cache's keys; what is asked is the request's body."""
        self.checks: tuple[CheckStep, ...] = compiled_checks(workflow, variant, parts.slow)
        self.buffered = bool(self.checks) or workflow.output is not None or workflow.policy is not None
        """Whether an answer is judged before any of it leaves."""
        self.streams = "streaming" in self.can
        self.max_output_tokens = variant.max_output_tokens
        self.timeout_ms = variant.timeout_ms
        self.first_byte_timeout_ms = variant.first_byte_timeout_ms
        self.messages: Messages | None = (
            _messages(workflow, variant, parts.templates, self.can) if self.trained is None else None
        )
        """Builds the messages; None: the conversation as it is."""
        self.parameters = dict(variant.parameters)
        self.extra: dict[str, Any] = _structured(workflow, self.can) if self.trained is None else {}
        """What makes the answer fit the output type; a variant's own parameters win over it."""
        capped = workflow.max_input_tokens is not None
        self.as_it_is = self.messages is None and not self.parameters and not self.extra and not capped
        """Whether the client's chat goes to the model as it was admitted."""
        self.prices, self.unpriced = upstream.prices, upstream.unpriced

    def without_secrets(self, said: bytes) -> bytes:
        """What a provider said, with our own secrets cut out: some repeat the key that they refuse."""
        with contextlib.suppress(MalformedJson):
            said = JSON.encode(parse_json(said))  # one spelling: JSON may write any character as an escape
        for secret in self.secrets:
            said = said.replace(secret, b"[secret]").replace(JSON.encode(secret.decode("latin-1"))[1:-1], b"[secret]")
        return said


class _Upstream(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a variant asks."""

    watched: bool
    dialect: Dialect
    target: Target
    head: bytes = b""
    secrets: tuple[bytes, ...] = ()
    identity: bytes
    prices: PriceBook | None = None
    unpriced: str = ""


def _provider(variant: Variant, facts: ModelFacts | None, parts: _Parts) -> _Upstream:
    """A provider's model."""
    provider = parts.provider(variant)
    dialect = DIALECTS[provider.dialect]
    asked = target(variant.model, provider.dialect, provider.endpoint, facts)
    head, secrets = parts.head(provider, dialect)
    endpoint = provider.endpoint
    url = f"{endpoint.scheme}://{endpoint.authority}{endpoint.path}"
    prices, unpriced = None, ""
    try:
        prices = price_book(variant.model, url, facts)
    except UnknownPrice as problem:
        unpriced = str(problem)
    return _Upstream(
        watched=provider.breaker, dialect=dialect, target=asked, head=head, secrets=secrets,
        identity=f"{variant.model}\n{asked.upstream_name}\n{provider.dialect}\n{url}".encode(),
        prices=prices, unpriced=unpriced,
    )  # fmt: skip


def _own(trained: TrainedStep, facts: ModelFacts | None, workflow: Workflow[Any, Any]) -> _Upstream:
    """A trained model: its errors have OpenAI's shape, and it costs nothing unless the project says what."""
    pinned = trained.pinned
    asked = Target(
        reference=trained.reference, upstream_name=pinned.id, endpoint=OWN,
        capabilities=frozenset({"json_schema"}) if workflow.output is not None else frozenset(),
        max_tokens_field="max_tokens",
    )  # fmt: skip
    return _Upstream(
        watched=False, dialect=DIALECTS["openai"], target=asked, identity=f"{pinned.id}\n{pinned.digest}".encode(),
        prices=own_price(facts),
    )  # fmt: skip


class WorkflowPlan:
    """A workflow, compiled."""

    __slots__ = (
        "attempts_max",
        "business_key",
        "cache",
        "cache_hold_s",
        "chat",
        "context",
        "cost_max_nano_usd",
        "deadline_ms",
        "direct",
        "features",
        "input_decoder",
        "max_input_tokens",
        "name",
        "output_reader",
        "policy",
        "priority",
        "retention",
        "snapshot",
        "steps",
        "sync",
        "workflow",
    )

    def __init__(self, workflow: Workflow[Any, Any], parts: _Parts) -> None:
        snapshot = parts.snapshot
        self.workflow = workflow
        self.name = workflow.name
        self.snapshot = snapshot.short_hash
        self.direct = workflow.name in snapshot.direct
        self.steps: tuple[RuleStep | VariantStep, ...] = tuple(
            RuleStep(workflow.name, step, parts.slow) if isinstance(step, Rule) else parts.step(workflow, step)
            for step in workflow.route
        )
        self.output_reader = OutputReader(workflow.output) if workflow.output is not None else None
        self.input_decoder: msgspec.json.Decoder[Any] | None = (
            msgspec.json.Decoder(workflow.input) if workflow.input is not None else None
        )
        self.policy: CompiledPolicy | None = (
            compile_policy(as_policy(workflow.policy, workflow.name), snapshot.files)
            if workflow.policy is not None else None
        )  # fmt: skip
        """What is done with its answers."""
        needs_value = self.policy is not None or any(
            isinstance(step, RuleStep) or bool(step.checks) or step.messages is not None or step.trained is not None
            for step in self.steps
        )
        self.chat = parts.admission(workflow, needs_value=needs_value)
        self.attempts_max = workflow.attempts_max
        self.retention = workflow.retention or snapshot.ledger.retention
        self.sync = workflow.durability == "audit"
        self.priority = PRIORITIES.index(workflow.priority)
        """0 is the highest."""
        self.deadline_ms = workflow.deadline_ms
        self.max_input_tokens = workflow.max_input_tokens
        self.context = workflow.context
        self.cache = workflow.cache
        stale_s = max((rung.max_age_s for rung in workflow.degrade if isinstance(rung, Stale)), default=0)
        self.cache_hold_s = max(workflow.cache.ttl_s, stale_s) if workflow.cache is not None else 0
        """How long a kept answer is of use."""
        self.features = FeaturePlan(workflow) if workflow.features is not None else None
        self.business_key = business_key(workflow.outcome_key) if workflow.outcome_key is not None else None
        budget = workflow.budget
        self.cost_max_nano_usd = (
            nano_usd(budget.usd_per_call) if budget is not None and budget.usd_per_call is not None else None
        )

    def admit_input(self, raw: bytes) -> Admitted:
        """An input as JSON: of the input type, or `{"text": ...}` or `{"messages": [...]}` of a chat workflow.

        Raises: RequestError.
        """
        if self.input_decoder is not None:
            return admit_input(self.workflow, self.input_decoder, raw)
        admitted = self.chat.admit(as_chat(parse_body(raw)), raw)
        if admitted.stream:
            raise bad_request("streams are answered by POST /v1/chat/completions", param="stream")
        return admitted

    def admit(self, door: str, raw: bytes) -> Admitted:
        """What came through `door`. Raises: RequestError."""
        if door in ("chat", "direct"):
            return self.chat.admit(parse_body(raw), raw)
        return self.admit_input(raw)


class Plans(msgspec.Struct, frozen=True):
    """Every workflow of a Snapshot, compiled."""

    snapshot: Snapshot
    workflows: dict[str, WorkflowPlan]
    slow_code: SlowCode
    """The user's functions that overran, by name."""


def compile_plans(snapshot: Snapshot, resolve: Resolve) -> Plans:
    """resolve: gives the secret behind a reference; called once per provider that a route uses.

    Raises: DrivetrainError where a secret is missing or malformed.
    """
    parts = _Parts(snapshot, resolve)
    workflows = {name: WorkflowPlan(workflow, parts) for name, workflow in snapshot.workflows.items()}
    return Plans(snapshot, workflows, parts.slow)


class _Parts:
    """What the plans of one Snapshot share."""

    def __init__(self, snapshot: Snapshot, resolve: Resolve) -> None:
        self.snapshot = snapshot
        self.slow: SlowCode = {}
        self.templates = minijinja.Environment(templates=dict(snapshot.templates))
        # Prompts are text, not HTML: nothing in them is escaped, and user text is only ever a value.
        self.templates.auto_escape_callback = lambda _name: False
        self._resolve = resolve
        self._heads: dict[str, tuple[bytes, tuple[bytes, ...]]] = {}
        self._steps: dict[bytes, VariantStep] = {}
        self._admissions: dict[bytes, ChatAdmission] = {}

    def step(self, workflow: Workflow[Any, Any], variant: Variant) -> VariantStep:
        """The variant's step; workflows whose plain variants are the same share it.

        With thousands of workflows, what every Call of every one of them looks at stays in the processor's cache.
        """
        own = variant.accept is not None or workflow.validators or workflow.input is not None
        own = own or variant.model in self.snapshot.pinned or workflow.policy is not None
        if own or workflow.output is not None or workflow.max_input_tokens is not None:
            return VariantStep(workflow, variant, self)
        key = _same(
            variant.name, variant.model, variant.prompt, variant.system, variant.parameters,
            variant.max_output_tokens, variant.timeout_ms, variant.first_byte_timeout_ms,
        )  # fmt: skip
        known = self._steps.get(key) or VariantStep(workflow, variant, self)
        if key:
            self._steps[key] = known
        return known

    def admission(self, workflow: Workflow[Any, Any], *, needs_value: bool) -> ChatAdmission:
        """The workflow's admission of chats; plain workflows that treat parameters alike share it."""
        messages_max = self.snapshot.gateway.messages_max
        if workflow.input is not None or workflow.output is not None:
            return ChatAdmission(workflow, needs_value=needs_value, messages_max=messages_max)
        key = _same(workflow.parameters, needs_value)
        known = self._admissions.get(key)
        if known is None:
            known = ChatAdmission(workflow, needs_value=needs_value, messages_max=messages_max)
            if key:
                self._admissions[key] = known
        return known

    def provider(self, variant: Variant) -> Provider:
        provider = self.snapshot.providers[variant.model.partition("/")[0]]
        proxy = provider.endpoint.proxy
        if proxy is not None and proxy.startswith(("env:", "file:")):
            url = self._resolve(SecretRef(proxy))
            if not is_proxy_url(url):
                raise DrivetrainError(
                    f"Provider `{provider.name}` refers to a proxy in {proxy} that is no http:// URL with a host.",
                    do="Write http://HOST:PORT, with USER:PASSWORD@ before the host where the proxy asks for them.",
                )
            resolved = msgspec.structs.replace(provider.endpoint, proxy=url)
            return msgspec.structs.replace(provider, endpoint=resolved)
        return provider

    def head(self, provider: Provider, dialect: Dialect) -> tuple[bytes, tuple[bytes, ...]]:
        """(the head of every request, the secrets in it)."""
        known = self._heads.get(provider.name)
        if known is None:
            secrets: list[bytes] = []

            def resolve(reference: SecretRef) -> str:
                secret = self._resolve(reference)
                secrets.append(secret.encode("latin-1"))
                return secret

            head = request_head(provider, dialect, resolve)
            if provider.endpoint.proxy is not None:
                secrets += [one.encode() for one in proxy_secrets(provider.endpoint.proxy)]
            known = self._heads[provider.name] = (head, tuple(secrets))
        return known


def _same(*parts: Any) -> bytes:
    """Bytes that are the same for the same declarations; empty where they hold what cannot be compared."""
    try:
        return msgspec.msgpack.encode(parts, order="deterministic")
    except (TypeError, ValueError, OverflowError):
        return b""


def request_head(provider: Provider, dialect: Dialect, resolve: Resolve) -> bytes:
    """Request line and headers of every attempt at `provider`, up to `content-length: `."""
    endpoint = provider.endpoint
    key = resolve(provider.key) if provider.key is not None else None
    headers = {
        "host": endpoint.authority,
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        "accept-encoding": "identity",
        "user-agent": f"drivetrain/{VERSION}",
    }
    headers.update({name.lower(): value for name, value in dialect.headers(key, provider.key_header).items()})
    for name, value in provider.headers.items():
        secret = value.startswith(("env:", "file:"))
        headers[name.lower()] = resolve(SecretRef(value)) if secret else value
    if endpoint.proxy is not None and endpoint.scheme == "http":
        authorization = proxy_authorization(endpoint.proxy)
        if authorization is not None:
            headers["proxy-authorization"] = authorization
    lines = [f"POST {_request_target(endpoint, dialect.path)} HTTP/1.1"]
    for name, value in headers.items():
        if any(ord(character) < 32 or ord(character) > 255 for character in name + value):
            raise DrivetrainError(
                f"Provider `{provider.name}` has a header `{name}` with characters that no header may hold.",
                do="Look for a line feed at the end of the secret's file or variable.",
            )
        lines.append(f"{name}: {value}")
    return ("\r\n".join(lines) + "\r\ncontent-length: ").encode("latin-1")


def _request_target(endpoint: Endpoint, dialect_path: str) -> str:
    base, _, query = endpoint.path.partition("?")
    # A base URL may name the version of the dialect already.
    version = dialect_path.split("/", 2)[1] if dialect_path.count("/") > 1 else ""
    if version and base.endswith("/" + version) and dialect_path.startswith(f"/{version}/"):
        dialect_path = dialect_path[len(version) + 1 :]
    path = base + dialect_path + (f"?{query}" if query else "")
    if endpoint.proxy is not None and endpoint.scheme == "http":
        return f"http://{endpoint.authority}{path}"
    return path


def _structured(workflow: Workflow[Any, Any], can: frozenset[str]) -> dict[str, Any]:
    if workflow.output is None or "json_schema" not in can:
        return {}
    schema, strict = output_schema(workflow.output)
    name = workflow.output.__name__
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": strict}}
    }


def _messages(
    workflow: Workflow[Any, Any], variant: Variant, templates: minijinja.Environment, can: frozenset[str]
) -> Messages | None:
    typed = workflow.input is not None
    hint = ""
    if workflow.output is not None and "json_schema" not in can:
        schema = msgspec.json.encode(output_schema(workflow.output)[0]).decode()
        hint = f"Answer with one JSON object that fits this JSON schema, and with nothing else:\n{schema}"
    if not typed and variant.prompt is None and variant.system is None and not hint:
        return None

    def build(value: Any, messages: list[Any] | None, features: Features) -> list[Any]:
        fields = msgspec.to_builtins(value) if value is not None else {}
        variables = fields if features is None else {**fields, "features": features}
        system = _rendered(templates, variant.system, variables) if variant.system is not None else ""
        if hint:
            system = f"{system}\n\n{hint}" if system else hint
        head = [{"role": "system", "content": system}] if system else []
        if variant.prompt is not None:
            return [*head, {"role": "user", "content": _rendered(templates, variant.prompt, variables)}]
        if typed:
            return [*head, {"role": "user", "content": _plain(fields)}]
        return [*head, *(messages or [])]

    return build


def _rendered(templates: minijinja.Environment, name: str, variables: dict[str, Any]) -> str:
    """Raises: RequestError where the template fails on this input; its reason may quote the input."""
    try:
        return templates.render_template(name, **variables)
    except minijinja.TemplateError as error:
        where = f"{error.name or name}, line {error.line}" if error.line else name
        # The kind alone quotes nothing; what else the engine says is for whoever may know the input: the cause has it.
        kind = _CAPITAL.sub(lambda capital: f" {capital[0].lower()}", error.kind)
        message = f"a template fails on this input: {where}:{kind}"
        raise RequestError(500, message, code="template_failed", kind="server_error") from error


def _plain(variables: dict[str, Any]) -> str:
    """An input without a template: its text where it is one text, else its JSON."""
    if len(variables) == 1:
        (only,) = variables.values()
        if isinstance(only, str):
            return only
    return msgspec.json.encode(variables).decode()
