"""The demo's trained model: a Dataset, a training, an alias, and the lines in the route, as anybody would make them.

Owns the order of it, and what becomes of the demo where there is nothing to train on or with: the route is then without
the model, and says why. As a program (`python -m drivetrain.cli.demo_training`, in the project's folder) it runs
`COMMANDS`, and ends with the demo, however that ends. A process of its own, because a training may hold a gigabyte that
nobody needs afterwards.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

import msgspec

from drivetrain.cli.demo_folder import DemoFolder
from drivetrain.cli.demo_texts import Texts
from drivetrain.core.errors import DrivetrainError

COMMANDS = (
    ("dataset", "create", "intents", "--from-file", "data/training.csv", "--split", "train=0.9,test=0.1"),
    ("train", "intent"),
)
"""What is run before an alias can be moved; the README of the demo's project tells them too."""
MODEL, ALIAS = "intent", "champion"
REASON = "the demo's first model"
RISK = 0.02
"""Of the model's own answers at most this share may be wrong; the training says from which confidence on that holds."""
LIBRARIES = ("numpy", "scipy", "sklearn")
"""What a training on texts imports."""
NOT_INSTALLED = 'training needs numpy and scikit-learn: pip install "drivetrain[train]"'
TRAINING_S_MAX = 900.0
"""10,000 texts take half a minute; what takes longer than this was not meant for a demo."""
LOG_FILE = "training.log"
WITHOUT = "Run the demo again. In a folder without train.csv it runs without a trained model."
SAID_CHARACTERS_MAX = 2_000
NO_ERROR = re.compile(r"\s*(\d+%|\$) ")
"""Lines of progress, and of what is run."""


class TrainedModelOfDemo(msgspec.Struct, frozen=True, kw_only=True):
    """The model that stands in the route."""

    version: str
    """`intent@1`."""
    texts: int
    """Those it was made from, its own test rows among them."""
    source: str
    """Where they come from."""
    dropped: int
    """Texts that were left out because they are sent."""
    risk: float
    threshold: float
    """From this confidence on it answers; chosen by the training for `risk`, on rows that the model had not seen."""
    error_bound: float
    """What the share of errors among its answers stays below, at 95 % confidence."""
    took_s: float

    @property
    def variant(self) -> str:
        """Its lines in the route."""
        return (
            f"        # Costs nothing. Of its answers at most {self.risk:.0%} may be wrong; from which confidence on "
            f"that holds\n        # its training found: `drivetrain report show {self.version}`.\n"
            f'        dt.Variant("trained", model="models:/{MODEL}@{ALIAS}", accept=dt.confidence({self.threshold})),\n'
        )


class NoModel(msgspec.Struct, frozen=True):
    """Why the route is without a trained model."""

    why: str


def is_installed(library: str) -> bool:
    """Whether it could be imported."""
    return find_spec(library) is not None


def train_in(
    project: DemoFolder,
    texts: Texts,
    say: Callable[[str], None],
    *,
    is_installed: Callable[[str], bool] = is_installed,
) -> TrainedModelOfDemo | NoModel:
    """Trains, lets `champion` stand for the version, and writes it into the route; or the route is without it.

    Raises: DrivetrainError where the training fails.
    """
    if not texts.training:
        found: TrainedModelOfDemo | NoModel = NoModel(texts.training_source)
    elif not all(is_installed(name) for name in LIBRARIES):
        found = NoModel(NOT_INSTALLED)
    else:
        say(f"training `{MODEL}` on {len(texts.training):,} texts")
        began_s = time.monotonic()
        _run(project)
        found = _let_serve(project, texts, began_s)
    project.set_trained(found.variant if isinstance(found, TrainedModelOfDemo) else "")
    return found


def _run(project: DemoFolder) -> None:
    """Runs `COMMANDS`. Raises: DrivetrainError with what they said."""
    log = project.path / LOG_FILE
    with log.open("wb") as written:
        # A session of its own: Ctrl-C reaches the demo only, which then ends its children in order.
        child = subprocess.Popen(
            [sys.executable, "-m", "drivetrain.cli.demo_training"],
            cwd=project.path,
            stdin=subprocess.PIPE,
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name != "DRIVETRAIN_ENV"},
        )
    try:
        code = child.wait(TRAINING_S_MAX)
    except subprocess.TimeoutExpired:
        raise DrivetrainError(f"The training took longer than {TRAINING_S_MAX:.0f} s.", do=WITHOUT) from None
    finally:
        child.kill()
        child.wait()
        if child.stdin is not None:
            child.stdin.close()
    if code != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = max((place for place, line in enumerate(lines, 1) if NO_ERROR.match(line)), default=0)
        said = "\n".join(lines[last:])[-SAID_CHARACTERS_MAX:]
        raise DrivetrainError(f"The training failed. It said: {said or 'nothing'}", looked=[str(log)], do=WITHOUT)


def _let_serve(project: DemoFolder, texts: Texts, began_s: float) -> TrainedModelOfDemo | NoModel:
    """What `drivetrain models alias` does, where the training found a threshold."""
    from drivetrain.embedded.modelling import open_registry, open_reports

    registry = open_registry(project.path)
    version = registry.find(MODEL)
    report = open_reports(project.path).get(version.report).report
    chosen = next(one for one in report.body["thresholds"] if one["risk"] == RISK)
    if chosen["threshold"] is None:
        return NoModel(f"no confidence keeps its errors below {RISK:.0%}: {chosen['reason']}")
    registry.move_alias(MODEL, ALIAS, version.number, REASON)
    return TrainedModelOfDemo(
        version=f"{version.name}@{version.number}",
        texts=len(texts.training),
        source=texts.training_source,
        dropped=texts.dropped,
        risk=RISK,
        threshold=chosen["threshold"],
        error_bound=chosen["error_bound"],
        took_s=time.monotonic() - began_s,
    )


def main() -> None:
    """The child. Raises: SystemExit at the first command that fails."""
    from drivetrain.cli.demo_gateway import end_with_stdin
    from drivetrain.cli.main import main as drivetrain

    end_with_stdin()
    for command in COMMANDS:
        print(f"$ drivetrain {' '.join(command)}", flush=True)
        try:
            drivetrain(list(command))
        except SystemExit as ended:
            if ended.code:
                raise


if __name__ == "__main__":
    main()
