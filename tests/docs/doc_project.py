"""A project made by `drivetrain init` for one page of the documentation, with a gateway once something calls it.

Pages are written for a project on its usual ports. Here the addresses `http://127.0.0.1:8080` (gateway) and
`http://127.0.0.1:8090` (simulator) are replaced by those that run, and every Call id by that of the newest Call.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

from drivetrain.cli.main import main
from drivetrain.ledger.reader import LedgerReader

GATEWAY = "http://127.0.0.1:8080"
SIMULATOR = "http://127.0.0.1:8090"
CALL_ID = re.compile(r"call_[0-9a-f]{30}")
READY = re.compile(r"drivetrain serving .* on (http://127\.0\.0\.1:\d+)/v1")
RUN_TIMEOUT_S = 120
"""Ends what hangs; the longest command of a page takes some seconds."""
START = "from drivetrain.cli.main import main; main()"


class DocProject:
    """The folder, its gateway and how a page's code is run in it."""

    def __init__(self, root: Path, simulator_url: str) -> None:
        self.root = root
        self._simulator_url = simulator_url
        self._gateway: subprocess.Popen[str] | None = None
        self._gateway_url = ""
        with contextlib.suppress(SystemExit):
            main(["init", str(root)])
        settings = root / "drivetrain.toml"
        text = settings.read_text()
        assert SIMULATOR in text, "the template's simulator has another port than the pages say"
        settings.write_text(text.replace(SIMULATOR, simulator_url))

    def python(self, code: str) -> subprocess.CompletedProcess[str]:
        """`code` as a program of its own, in the project's folder."""
        return self._run([sys.executable, "-W", "error", "-c", self._placed(code)])

    def bash(self, command: str, folder: Path) -> tuple[subprocess.CompletedProcess[str], Path]:
        """One command of a block, in `folder`; stderr is part of stdout. The second is where a `cd` has led."""
        now = self.root.parent / "folder-now"
        script = f"exec 2>&1\ncd '{folder}'\n{self._placed(command)}\npwd > '{now}'"
        ran = self._run(["bash", "-e", "-o", "pipefail", "-c", script])
        return ran, Path(now.read_text().strip()) if ran.returncode == 0 else folder

    def close(self) -> None:
        """Ends the gateway."""
        if self._gateway is not None:
            self._gateway.terminate()
            self._gateway.communicate(timeout=RUN_TIMEOUT_S)

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        environ = {**os.environ, "PATH": path, "PYTHONPATH": str(self.root), "NO_COLOR": "1"}
        return subprocess.run(
            command, cwd=self.root, env=environ, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
        )

    def _placed(self, code: str) -> str:
        if GATEWAY in code:
            code = code.replace(GATEWAY, self._served())
        code = code.replace(SIMULATOR, self._simulator_url)
        if CALL_ID.search(code):
            calls = list(LedgerReader(self.root / ".drivetrain" / "data").calls())
            assert calls, "the page names a Call before it made one"
            newest = max(calls, key=lambda call: (call.opened_ns, call.call_id))
            code = CALL_ID.sub(newest.call_id, code)
        return code

    def _served(self) -> str:
        if self._gateway is None:
            self._gateway = subprocess.Popen(
                [sys.executable, "-c", START, "serve", "--project", str(self.root), "--port", "0"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            assert self._gateway.stdout is not None
            line = self._gateway.stdout.readline()
            found = READY.search(line)
            assert found, f"the gateway did not start: {line}{self._gateway.stdout.read()}"
            self._gateway_url = found[1]
        return self._gateway_url
