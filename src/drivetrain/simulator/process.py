"""A simulator in a process of its own, for tests, demos and benchmarks.

Owns the child's life: it ends with the `with` block, and by itself when the parent dies. Talks to the child over HTTP
only.
"""

import http.client
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from drivetrain.simulator.config import load_config
from drivetrain.simulator.errors import ProcessNotReady

READY_LINE = "simulator ready on http://"
READY_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 5.0
HTTP_TIMEOUT_S = 10.0


class SimulatorProcess:
    """`with SimulatorProcess("demo.toml") as simulator:` runs a simulator; `simulator.url` is its address.

    config: a TOML or JSON file, or a dict of the same form. A mistake in it is raised here, before anything starts.
    """

    def __init__(self, config: str | Path | Mapping[str, object], host: str = "127.0.0.1", port: int = 0) -> None:
        self._config = config
        self._host = host
        self._wanted_port = port
        self._child: subprocess.Popen[str] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._stderr: IO[str] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`; clients of the OpenAI dialect add `/v1`."""
        return f"http://{self._host}:{self.port}"

    @property
    def pid(self) -> int:
        """The child's process id."""
        if self._child is None:
            raise ProcessNotReady("The simulator has not been started. Use it in a `with` block, or call start().")
        return self._child.pid

    def start(self) -> "SimulatorProcess":
        """Starts the child and waits until it accepts connections. Raises: SimulatorConfigError, ProcessNotReady."""
        load_config(self._config)
        self._folder = tempfile.TemporaryDirectory(prefix="drivetrain-simulator-")
        self._stderr = (Path(self._folder.name) / "stderr").open("w+", encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "drivetrain.simulator",
            "--config",
            str(self._config_file()),
            "--end-with-stdin",
        ]
        command += ["--host", self._host, "--port", str(self._wanted_port)]
        packages = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(part for part in (packages, os.environ.get("PYTHONPATH")) if part)
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        try:
            self.port = self._read_port(self._child)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Ends the child, by force if it does not go."""
        child, self._child = self._child, None
        if child is not None:
            child.terminate()
            try:
                child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        if self._stderr is not None:
            self._stderr.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._stderr = self._folder = None

    def requests(self) -> dict[str, Any]:
        """What `GET /requests` shows: counters, charges and the last requests."""
        shown: dict[str, Any] = json.loads(self._http("GET", "/requests"))
        return shown

    def forget(self) -> None:
        """Starts the counters, the last requests and the count of identical bodies again."""
        self._http("DELETE", "/requests")

    def __enter__(self) -> "SimulatorProcess":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _config_file(self) -> Path:
        if not isinstance(self._config, Mapping):
            return Path(self._config).resolve()
        assert self._folder is not None
        content = json.loads(json.dumps(self._config))
        for model in content["models"].values():
            quality = model.get("quality", {})
            for name in ("examples_file", "labels_file", "file"):
                if name in quality:
                    quality[name] = str(Path(quality[name]).resolve())
        path = Path(self._folder.name) / "simulator.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    def _read_port(self, child: "subprocess.Popen[str]") -> int:
        assert child.stdout is not None
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while (left_s := deadline_s - time.monotonic()) > 0:
            readable, _, _ = select.select([child.stdout], [], [], left_s)
            line = child.stdout.readline() if readable else ""
            if line.startswith(READY_LINE):
                return int(line.rstrip().rpartition(":")[2])
            if readable and not line:
                break
        assert self._stderr is not None
        self._stderr.seek(0)
        said = self._stderr.read().strip() or "nothing"
        raise ProcessNotReady(
            f"The simulator process was not ready within {READY_TIMEOUT_S:g} s. On stderr it said: {said}"
        )

    def _http(self, method: str, path: str) -> bytes:
        connection = http.client.HTTPConnection(self._host, self.port, timeout=HTTP_TIMEOUT_S)
        try:
            connection.request(method, path)
            return connection.getresponse().read()
        finally:
            connection.close()
