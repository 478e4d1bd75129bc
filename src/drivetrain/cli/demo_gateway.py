"""The demo's gateway: `drivetrain serve` in a process of its own that ends with the demo, however the demo ends.

Owns the child's life and its port. As a program (`python -m drivetrain.cli.demo_gateway PROJECT PORT`) it is that
child: it serves until it is told to end or its standard input closes.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from drivetrain.core.errors import DrivetrainError

HOST = "127.0.0.1"
READY = re.compile(r"^drivetrain serving .* on http://127\.0\.0\.1:(\d+)/v1 ", re.MULTILINE)
READY_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0
"""Then the gateway is killed: nobody waits for the last call of a demo."""
POLL_S = 0.02
SAID_CHARACTERS_MAX = 2_000


def is_free(port: int) -> bool:
    """Whether a gateway could listen on `port` of this machine."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except (OSError, OverflowError):
            return False
        return True


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as tried:
        tried.bind((HOST, 0))
        port: int = tried.getsockname()[1]
        return port


def end_with_stdin() -> None:
    """Lets this process, a child of the demo, end as soon as the demo is gone."""

    def wait() -> None:
        # Not through sys.stdin: a thread that waits in its buffer hinders the interpreter's end.
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


class GatewayProcess:
    """`with GatewayProcess(project, port) as gateway:` serves a project; `gateway.port` is where.

    Raises: DrivetrainError with what the gateway said, where it does not come up.
    """

    def __init__(self, project: Path, port: int) -> None:
        self.port = port
        self._project = project
        self._log = project / "gateway.log"
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`; clients of the OpenAI dialect add `/v1`."""
        return f"http://{HOST}:{self.port}"

    @property
    def ended(self) -> bool:
        """Whether it is not running (any more)."""
        return self._child is None or self._child.poll() is not None

    def said(self) -> str:
        """The end of what it has written."""
        try:
            return self._log.read_text(encoding="utf-8", errors="replace").strip()[-SAID_CHARACTERS_MAX:]
        except OSError:
            return ""

    def __enter__(self) -> GatewayProcess:
        # A session of its own: Ctrl-C reaches the demo only, which then ends its children in order.
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "drivetrain.cli.demo_gateway", str(self._project), str(self.port)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if name != "DRIVETRAIN_ENV"},
            )
        try:
            self.port = self._ready_port(self._child)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the child after its calls, by force if it does not go."""
        child, self._child = self._child, None
        if child is None:
            return
        child.terminate()
        try:
            child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdin is not None:
            child.stdin.close()

    def _ready_port(self, child: subprocess.Popen[bytes]) -> int:
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline_s:
            ready = READY.search(self.said())
            if ready:
                return int(ready[1])
            if child.poll() is not None:
                break
            time.sleep(POLL_S)
        raise DrivetrainError(
            f"The gateway did not come up on port {self.port}. It said: {self.said() or 'nothing'}",
            looked=[str(self._log)],
            do="Try another port with `--port`, or look at the project with `drivetrain check --project DIR`.",
        )


def main(arguments: list[str]) -> None:
    """The child: serves until told to end, or until the demo is gone."""
    from drivetrain.cli.main import main as drivetrain

    end_with_stdin()
    project, port = arguments
    drivetrain(["serve", "--project", project, "--port", port])


if __name__ == "__main__":
    main(sys.argv[1:])
