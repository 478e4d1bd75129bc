"""The demo's project folder: made anew for each run, from demo_project/, with fresh keys.

Owns what is in the folder, and that only one demo uses it at a time. It starts nothing.
"""

from __future__ import annotations

import csv
import fcntl
import io
import os
import secrets
import shutil
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from types import TracebackType

from drivetrain.cli.demo_texts import Example, Texts
from drivetrain.core.errors import DrivetrainError

DEFAULT_FOLDER = ".drivetrain-demo"
LOCK_FILE = "demo.lock"
"""Held while a demo runs; its presence also says that the folder is a demo's and may be made anew."""
KEYS = ("web-chat", "e-mail", "evaluation", "trial")
TEMPLATE_SIMULATOR_PORT = "8090"
TEMPLATE_GATEWAY_PORT = "8080"
ROUTE_FILE = "workflows/intent.py"
ROUTE_PLACE = "        # The trained model comes here.\n"


class DemoFolder:
    """`with DemoFolder(path) as folder:` holds an empty folder for one demo.

    Raises: DrivetrainError where it belongs to something else, is in use, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._lock = -1

    def __enter__(self) -> DemoFolder:
        try:
            self._take()
        except OSError as error:
            raise DrivetrainError(
                f"The demo's folder {self.path} cannot be written: {error.strerror}.",
                do="Name another one with `--dir DIR`.",
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def write(self, texts: Texts) -> None:
        """The whole project with `texts` as its messages, and new keys."""
        for name, content in _template(files(__package__) / "demo_project", "").items():
            self._put(name, content.replace("TEXTS", f"{texts.attribution}.") if name == "README.md" else content)
        if texts.training:
            self._put("data/training.csv", _rows(texts.training))
        self._put(".gitignore", "*\n")
        listed = "\n".join(texts.intents)
        self._put("data/intents.txt", f"{listed}\n")
        self._put("data/messages.csv", _rows(texts.examples))
        self._put(
            "workflows/intent_system.j2",
            "A bank's customer has written. Answer with the intent of the message, one of those below, and with your "
            f"confidence\nfrom 0 to 1.\n\n{listed}\n",
        )
        (self.path / "secrets").mkdir(mode=0o700)
        for name in KEYS:
            key = os.open(self._key_file(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(key, "w") as file:
                file.write(f"dt-{secrets.token_urlsafe(24)}\n")

    def set_ports(self, simulator: int, gateway: int) -> None:
        """Writes the ports where the project names them, so that it can be started by hand as well."""
        for name in ("simulator.toml", "drivetrain.toml"):
            text = (self.path / name).read_text(encoding="utf-8")
            text = text.replace(TEMPLATE_GATEWAY_PORT, str(gateway)) if name == "drivetrain.toml" else text
            self._put(name, text.replace(TEMPLATE_SIMULATOR_PORT, str(simulator)))

    def set_trained(self, variant: str) -> None:
        """Writes the lines of a variant into the route, where the trained model comes; empty: it has none."""
        text = (self.path / ROUTE_FILE).read_text(encoding="utf-8")
        assert text.count(ROUTE_PLACE) == 1
        self._put(ROUTE_FILE, text.replace(ROUTE_PLACE, variant))

    def edit(self, name: str, before: str, after: str) -> None:
        """Puts `after` in the place of `before`, which stands there once."""
        text = (self.path / name).read_text(encoding="utf-8")
        assert text.count(before) == 1, (name, before)
        self._put(name, text.replace(before, after))

    def key(self, name: str) -> str:
        """The secret of one of `KEYS`."""
        return self._key_file(name).read_text(encoding="utf-8").strip()

    @property
    def simulator_file(self) -> Path:
        """What the simulated models do."""
        return self.path / "simulator.toml"

    @property
    def data_folder(self) -> Path:
        """The ledger's folder."""
        return self.path / ".drivetrain" / "data"

    def _take(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise DrivetrainError(f"{self.path} is no folder.", do="Name another one with `--dir DIR`.")
        self.path.mkdir(parents=True, exist_ok=True)
        lock = self.path / LOCK_FILE
        if not lock.exists() and any(self.path.iterdir()):
            raise DrivetrainError(
                f"{self.path} is not empty and was not made by a demo; nothing in it was touched.",
                do="Name a new or an empty folder with `--dir DIR`.",
            )
        self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = -1
            raise DrivetrainError(
                f"A demo is still running in {self.path}.",
                do="End it with Ctrl-C, or name another folder with `--dir DIR`.",
            ) from None
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != LOCK_FILE:
                entry.unlink()

    def _put(self, name: str, content: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")

    def _key_file(self, name: str) -> Path:
        return self.path / "secrets" / f"{name}.key"


def _rows(examples: Sequence[Example]) -> str:
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(["text", "intent"])
    writer.writerows(dict.fromkeys((one.text, one.intent) for one in examples))
    return written.getvalue()


def _template(folder: Traversable, above: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in folder.iterdir():
        if entry.name == "__pycache__":
            continue
        if entry.is_dir():
            found |= _template(entry, f"{above}{entry.name}/")
        else:
            found[above + entry.name] = entry.read_text(encoding="utf-8")
    return found
