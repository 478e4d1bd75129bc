"""`drivetrain` commands that the demo runs in its own project, each as anybody would run it, and what they said.

Owns the child process that they share: one start for several, which ends with the demo, however that ends. As a program
(`python -m drivetrain.cli.demo_commands COMMANDS`, in the project's folder) it is that child. `demo_change` calls it.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.errors import DrivetrainError

COMMANDS_S_MAX = 120.0
"""An eval and an upgrade take some seconds each; what takes longer than this hangs."""
LOG_FILE = "change.log"
"""In the project: every command with its exit code, and what went to standard error."""
SAID_CHARACTERS_MAX = 2_000


class EndedOtherwise(DrivetrainError):
    """A command ended with another exit code than it is to."""


class Command(msgspec.Struct, frozen=True):
    """One command, without `drivetrain`, and the exit code that it is to end with."""

    arguments: tuple[str, ...]
    code: int = 0

    @property
    def words(self) -> str:
        """As it is typed."""
        return " ".join(["drivetrain", *(f'"{one}"' if " " in one else one for one in self.arguments)])


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """How one ended."""

    code: int
    said: str
    """On standard output."""
    complained: str
    """On standard error."""

    @property
    def json(self) -> dict[str, Any]:
        """What it said with `--json`."""
        found: dict[str, Any] = msgspec.json.decode(self.said)
        return found


def run_commands(project: Path, commands: Sequence[Command]) -> list[Ran]:
    """Runs them one after the other. Raises: EndedOtherwise at the first that does not end as it is to."""
    # A session of its own: Ctrl-C reaches the demo only, which then ends its children in order.
    child = subprocess.Popen(
        [sys.executable, "-m", "drivetrain.cli.demo_commands", msgspec.json.encode(commands).decode()],
        cwd=project,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if name != "DRIVETRAIN_ENV"},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        # Not `communicate`: it would close the child's standard input, which tells it that the demo is gone.
        said = _all(child, COMMANDS_S_MAX)
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()
    ran = []
    for line in said.splitlines():
        with contextlib.suppress(msgspec.MsgspecError):
            ran.append(msgspec.json.decode(line, type=Ran))
    _log(project / LOG_FILE, commands, ran)
    for place, command in enumerate(commands):
        if place >= len(ran):
            raise EndedOtherwise(
                f"`{command.words}` did not end. It said: {_end(said.decode(errors='replace')) or 'nothing'}",
                do="Run the demo again.",
            )
        one = ran[place]
        if one.code != command.code:
            raise EndedOtherwise(
                f"`{command.words}` ended with {one.code}, not {command.code}. It said: "
                f"{_end(one.complained or one.said) or 'nothing'}",
                looked=[str(project / LOG_FILE)],
                do="Run the demo again.",
            )
    return ran


def _all(child: subprocess.Popen[bytes], seconds: float) -> bytes:
    """Everything that it writes until it ends, by force where that takes longer."""
    stop = threading.Timer(seconds, child.kill)
    stop.daemon = True
    stop.start()
    try:
        assert child.stdout is not None
        return child.stdout.read()
    finally:
        stop.cancel()


def _log(path: Path, commands: Sequence[Command], ran: Sequence[Ran]) -> None:
    with path.open("a", encoding="utf-8") as file:
        for command, one in zip(commands, ran, strict=False):
            file.write(f"$ {command.words}\n{one.complained}exit code {one.code}\n")


def _end(text: str) -> str:
    return text.strip()[-SAID_CHARACTERS_MAX:]


def main(arguments: list[str]) -> None:
    """The child: one JSON line for each command, and an end at the first with another exit code."""
    from drivetrain.cli.demo_gateway import end_with_stdin
    from drivetrain.cli.main import main as drivetrain

    end_with_stdin()
    out = sys.stdout
    for command in msgspec.json.decode(arguments[0], type=list[Command]):
        said, complained = io.StringIO(), io.StringIO()
        code = 0
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
            try:
                drivetrain(list(command.arguments))
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        ran = Ran(code=code, said=said.getvalue(), complained=complained.getvalue())
        print(msgspec.json.encode(ran).decode(), file=out, flush=True)
        if code != command.code:
            return


if __name__ == "__main__":
    main(sys.argv[1:])
