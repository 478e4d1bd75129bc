"""A real gateway with a rollout under way, callers who never stop, and a provider that does as it is told."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.calls import Call
from drivetrain.core.releases import GuardV1, RolloutV1, StageV1
from drivetrain.embedded.releasing import live_of
from drivetrain.embedded.serving import Served, served_by
from drivetrain.embedded.shadow_counts import copies_of
from promises.promise_gateway import Gateway, eventually, gateway
from support import shadows
from support.projects import model, provider, settings, workflow
from support.upstream import Asked, Upstream, Wire, completion
from support.upstream import http as answered

USD = 1_000_000_000
ID = "5566778899aabbcc"
GUARDS = (GuardV1(watch="errors"),)
SHADOW = StageV1(share_ppm=0, minutes=60.0, shadow_ppm=1_000_000, shadow_nano_usd_per_day=100 * USD)
CANARIES = tuple(StageV1(share_ppm=share, minutes=60.0, units=1_000_000) for share in (200_000, 500_000))
WORKFLOW = "help"


class Provider:
    """What the models `live` and `candidate` do."""

    def __init__(self) -> None:
        self.takes_s = {"live": 0.01, "candidate": 0.01}
        self.hung = threading.Event()
        """Cleared: the candidate answers nobody."""
        self.hung.set()

    def __call__(self, asked: Asked, wire: Wire) -> None:
        name = "candidate" if b'"candidate"' in asked.body else "live"
        wire.wait(self.takes_s[name])
        if name == "candidate":
            self.hung.wait(120)
        wire.send(answered(completion(name)))


class Rolled:
    """Release 1 is live, Release 2 stored; `roll` begins its rollout."""

    def __init__(self, served: Gateway, doing: Provider, files: dict[str, str]) -> None:
        self.served, self.doing = served, doing
        self.live = shadows.stored(served.root)
        served.write({"drivetrain.toml": files["candidate"]})
        self.candidate = shadows.stored(served.root)
        served.write({"drivetrain.toml": files["live"]})
        shadows.release(served.root, self.live, number=1)
        self.number = 1

    @property
    def run_folder(self) -> Path:
        return self.served.data_folder / "run"

    def roll(self, *stages: StageV1, guards: tuple[GuardV1, ...] = GUARDS) -> None:
        self.number += 1
        rolled = RolloutV1(id=ID, stages=stages, guards=guards)
        shadows.release(self.served.root, self.candidate, WORKFLOW, number=self.number, rolled=rolled)

    def told(self) -> list[Served]:
        """By workers that serve."""
        return served_by(self.run_folder)

    def serves(self, share_ppm: int, *, workers: int = 2, wait_s: float = 30.0) -> bool:
        """Whether every worker comes to have the candidate at this share."""

        def now() -> bool:
            told = self.told()
            return len(told) == workers and {(one.candidate, one.share_ppm) for one in told} == {
                (self.number, share_ppm)
            }

        return bool(eventually(now, wait_s))

    def calls(self, *, shadow: bool) -> list[Call]:
        return [one for one in self.served.calls() if (one.door == "shadow") == shadow]

    def status(self) -> dict[str, Any]:
        """`drivetrain rollout status --json`."""
        found: dict[str, Any] = json.loads(self.served.command("rollout", "status", "--json"))
        return found

    def copies(self) -> dict[str, int]:
        """What `status` tells of copies, as it is counted now."""
        active = live_of(self.served.root).active
        assert active is not None
        found = copies_of(self.run_folder, active)
        assert found is not None
        return found.facts()

    def beside(self, module: str) -> list[int]:
        """Processes of the watcher (`watching`) or of the shadow (`shadowing`)."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                line = path.read_bytes()
                if f"drivetrain.embedded.{module}".encode() in line and str(self.served.root).encode() in line:
                    found.append(int(path.parent.name))
        return found

    def stage(self) -> int:
        """-1: no rollout is under way."""
        active = live_of(self.served.root).active
        return -1 if active is None else active.stage


class Heard(msgspec.Struct):
    """What one caller heard."""

    user: str
    status: int
    """0: the connection ended without an answer."""
    text: str
    call_id: str
    seconds: float


class Callers:
    """Each asks again as soon as it has its answer, for other users in turn."""

    def __init__(
        self, port: int, *, at_once: int = 4, users: int = 60, pause_s: float = 0.02, prompt: str = "?"
    ) -> None:
        self.heard: list[Heard] = []
        self._port, self._users, self._pause_s, self._prompt = port, users, pause_s, prompt
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number, at_once)) for number in range(at_once)]

    def __enter__(self) -> Callers:
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for one in self._threads:
            one.join()

    def _ask(self, first: int, step: int) -> None:
        turn, connection = first, None
        while not self._stop.is_set():
            user = f"user-{turn % self._users}"
            turn += step
            begun = time.monotonic()
            try:
                connection = connection or http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
                self.heard.append(heard(connection, user, self._prompt, begun))
            except (OSError, http.client.HTTPException):
                self.heard.append(Heard(user, 0, "", "", time.monotonic() - begun))
                connection = None
                self._stop.wait(0.1)
            self._stop.wait(self._pause_s)
        if connection is not None:
            connection.close()


def heard(connection: http.client.HTTPConnection, user: str, prompt: str = "?", begun: float = 0.0) -> Heard:
    """The answer to one request. Raises: OSError, http.client.HTTPException."""
    body = json.dumps({"model": WORKFLOW, "user": user, "messages": [{"role": "user", "content": prompt}]})
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    raw = answer.read()
    text = json.loads(raw)["choices"][0]["message"]["content"] if answer.status == 200 else ""
    call_id = answer.headers.get("x-drivetrain-call-id", "")
    return Heard(user, answer.status, text, call_id, time.monotonic() - (begun or time.monotonic()))


@contextlib.contextmanager
def rolled(*, workers: int = 2, gateway_settings: str = "", ledger: str = "") -> Iterator[Rolled]:
    """A gateway that serves Release 1."""
    doing = Provider()
    with Upstream() as upstream:
        upstream.on("/v1", doing)
        files = {
            name: settings(
                gateway=gateway_settings,
                ledger=ledger,
                tables=provider("raw", f"{upstream.url}/v1") + model("raw/live") + model("raw/candidate")
                + workflow(WORKFLOW, f'{{ name = "only", model = "raw/{name}", max_output_tokens = 64 }}'),
            )
            for name in ("live", "candidate")
        }  # fmt: skip
        with gateway({"drivetrain.toml": files["live"]}, workers=workers) as served:
            made = Rolled(served, doing, files)
            try:
                yield made
            finally:
                doing.hung.set()
