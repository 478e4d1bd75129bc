"""Where a request goes: the doors and their models, the list of models, the probes and the invoice.

Owns routing, keys and refusals. `server` hands it complete requests and gets replies; the clock is an argument.
"""

from collections.abc import Callable
from hashlib import blake2b
from hmac import compare_digest
from itertools import count

import msgspec

from drivetrain.simulator.anthropic_door import AnthropicDoor
from drivetrain.simulator.dice import DiceBox
from drivetrain.simulator.door import Asked, Door, Refusal, status_line
from drivetrain.simulator.failures import TokenBucket
from drivetrain.simulator.invoice import Invoice
from drivetrain.simulator.openai_door import OpenAiDoor
from drivetrain.simulator.overrides import BadOverride, Override, overrides_in, without_overrides
from drivetrain.simulator.playback import Reply
from drivetrain.simulator.served import ServedModel
from drivetrain.simulator.settings import SimulatorConfig

_JSON_HEAD = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"


class HttpRequest:
    """One complete request."""

    __slots__ = ("body", "headers", "keep_alive", "method", "path")

    def __init__(
        self, method: bytes, path: bytes, headers: list[tuple[bytes, bytes]], body: bytes, keep_alive: bool
    ) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body
        self.keep_alive = keep_alive

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header; `name` in lower case."""
        for each, value in self.headers:
            if each == name or each.lower() == name:
                return value
        return None


class DoorDesk:
    """One dialect's endpoint with its models."""

    def __init__(self, door: Door, models: dict[str, ServedModel], desk: "Desk") -> None:
        self._door = door
        self._models = models
        self._desk = desk
        self.names = list(models)

    def reply(self, request: HttpRequest) -> Reply:
        """The reply to a call of this endpoint, errors included."""
        desk, name = self._desk, ""
        try:
            self.check_key(request)
            if request.method != b"POST":
                raise Refusal(405, "Only POST is answered here.")
            asked = self._door.read(request.body, request.header)
            name = asked.model
            model = self._models.get(name)
            if model is None:
                raise Refusal(404, self._unknown(name), code="model_not_found")
            overrides = desk.overrides(asked, request) if desk.allow_overrides else []
            return model.reply(asked, request.body, overrides, desk.monotonic_s(), desk.unix_s())
        except Refusal as refusal:
            return self.refused(refusal, name)

    def check_key(self, request: HttpRequest) -> None:
        """Raises: Refusal (401) when keys are set and the request has none of them."""
        keys = self._desk.keys
        if not keys:
            return
        sent = self._door.key(request.header) or b""
        if not any(compare_digest(sent, key) for key in keys):
            raise Refusal(
                401, "The API key is missing, or is not one of the simulator's `keys`.", code="invalid_api_key"
            )

    def refused(self, refusal: Refusal, name: str) -> Reply:
        """The refusal as this dialect's error, counted."""
        invoice = self._desk.invoice
        known = name in self._models
        counters = invoice.models[name] if known else invoice.refused
        counters.requests += not known
        counters.count_status(refusal.status)
        return Reply(pieces=[self._door.refusal(refusal, next(self._desk.serials))])

    def listed(self, request: HttpRequest) -> Reply:
        """The models of this dialect."""
        try:
            self.check_key(request)
        except Refusal as refusal:
            return self.refused(refusal, "")
        return _json(200, self._door.models(self.names))

    def _unknown(self, name: str) -> str:
        known = ", ".join(self.names[:10]) or "none"
        return f"The model `{name}` does not exist or you do not have access to it. Models here: {known}."


class Desk:
    """A whole simulated provider without its sockets."""

    def __init__(self, config: SimulatorConfig, monotonic_s: Callable[[], float], unix_s: Callable[[], float]) -> None:
        self.monotonic_s = monotonic_s
        self.unix_s = unix_s
        self.keys = tuple(key.encode() for key in config.server.keys)
        self.allow_overrides = config.server.allow_overrides
        self.invoice = Invoice(list(config.models), config.server.record_requests)
        self.serials = count(_first_serial(config.seed))
        self._box = DiceBox(config.seed)
        self._records = config.server.record_requests > 0
        limits = {name: model.failures.rate_limit for name, model in config.models.items()}
        self._buckets = {name: TokenBucket(limit) for name, limit in limits.items() if limit is not None}
        self._openai = self._door_desk(config, OpenAiDoor(), "openai")
        self._anthropic = self._door_desk(config, AnthropicDoor(), "anthropic")
        self._routes = {b"/v1/chat/completions": self._openai.reply, b"/v1/messages": self._anthropic.reply}

    def reply(self, request: HttpRequest) -> Reply:
        """The reply to any request."""
        path = request.path
        route = self._routes.get(path)
        if route is None:
            path = path.partition(b"?")[0]
            route = self._routes.get(path)
            if route is None:
                return self._elsewhere(request, path)
        if self._records:
            self.invoice.log.keep(path.decode("latin-1"), request.headers, request.body)
        return route(request)

    def overrides(self, asked: Asked, request: HttpRequest) -> list[Override]:
        """The request's overrides, removed from its text. Raises: Refusal (400)."""
        try:
            overrides = overrides_in(request.header(b"x-simulate"), asked.text)
        except BadOverride as error:
            raise Refusal(400, str(error)) from error
        asked.text = without_overrides(asked.text)
        return overrides

    def unreadable(self, status: int, message: str) -> Reply:
        """The reply to something that is not a request."""
        return self._openai.refused(Refusal(status, message), "")

    def _door_desk(self, config: SimulatorConfig, door: Door, dialect: str) -> DoorDesk:
        served = {
            name: ServedModel(
                model,
                door,
                seed=config.seed,
                invoice=self.invoice,
                box=self._box,
                serials=self.serials,
                bucket=self._buckets.get(name),
            )
            for name, model in config.models.items()
            if model.dialect in (dialect, "both")
        }
        return DoorDesk(door, served, self)

    def _elsewhere(self, request: HttpRequest, path: bytes) -> Reply:
        """Everything but the two doors."""
        method = request.method
        if path == b"/livez" and method == b"GET":
            return _json(200, b'{"status":"ok"}')
        if path == b"/v1/models" and method == b"GET":
            anthropic = request.header(b"anthropic-version") is not None
            return (self._anthropic if anthropic else self._openai).listed(request)
        if path == b"/requests" and method == b"GET":
            return _json(200, self.invoice.as_json())
        if path == b"/requests" and method == b"DELETE":
            self.invoice.forget()
            self._box.forget()
            return _json(200, b'{"status":"forgotten"}')
        where = f"{method.decode('latin-1')} {path.decode('latin-1')}"
        return self.unreadable(
            404,
            f"Invalid URL ({where}). Here are POST /v1/chat/completions, POST /v1/messages and GET /v1/models.",
        )


def _json(status: int, body: bytes) -> Reply:
    return Reply(pieces=[status_line(status) + _JSON_HEAD % len(body) + body])


def _first_serial(seed: int) -> int:
    """Ids count up from a number of the seed's own, so that two simulators never give the same id."""
    return int.from_bytes(blake2b(msgspec.json.encode(seed), digest_size=6).digest(), "big") << 40
