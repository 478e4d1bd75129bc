"""Trials: a model that misbehaves costs its own process, knows no secret, and leaves nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Column, Pinned, Signature
from drivetrain.ports.inference import Scorer
from drivetrain.registry.trials import TrialLimits, Trials
from support.tries import PATIENCE_S, Spoiled, eventually, in_one_try, within

pytestmark = pytest.mark.slow

PINNED = Pinned(
    name="odd", number=0, digest="d" * 64, format="onnx",
    signature=Signature(task="regression", inputs=(Column(name="text", dtype="text"),), target="price"),
)  # fmt: skip
PATIENT = TrialLimits(memory_bytes=1024**3)
QUICK = TrialLimits(batch_s=1.0, memory_bytes=1024**3)
"""For what never ends; what does may take long where the machine stands still."""


@pytest.fixture
def scorer(tmp_path: Path) -> Iterator[Scorer]:
    with Trials("trial_loaders:doing", PATIENT).open(tmp_path, PINNED) as opened:
        yield opened


def test_a_trial_scores_batch_after_batch_whatever_a_library_prints(scorer: Scorer) -> None:
    assert [one.value for one in scorer.score([["print"], [""]])] == [1.0, 1.0]
    assert len(scorer.score([["x" * 20_000]] * 1_000)) == 1_000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("die", "ended the process that was to score 1 rows: signal SIGSEGV"),
        ("exit", "exit code 4"),
        ("memory", "needs more memory than it may take"),
        ("write", "File too large"),
        ("twice", "gave 2 results for 1 rows"),
        ("raise", "cannot be tried: ZeroDivisionError: of its own"),
    ],
)
def test_what_a_model_does_to_its_process_is_told(scorer: Scorer, text: str, said: str) -> None:
    with pytest.raises(DrivetrainError) as caught:
        scorer.score([[text]])
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["sleep", "spin"])
def test_a_model_that_never_ends_is_given_up(tmp_path: Path, text: str) -> None:
    with (
        Trials("trial_loaders:doing", QUICK).open(tmp_path, PINNED) as scorer,
        pytest.raises(DrivetrainError, match="takes more than 1 s to score 1 rows"),
    ):
        scorer.score([[text]])


def test_a_trial_knows_no_secret_of_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with Trials("trial_loaders:doing", PATIENT).open(tmp_path, PINNED) as scorer:
        environment, where = (one.label for one in scorer.score([["environment"], ["where"]]))
    assert environment is not None
    names = {line.partition("=")[0] for line in environment.splitlines()}
    assert "PYTHONPATH" in names
    assert "sk-secret" not in environment
    assert not names & {"OPENAI_API_KEY", "HOME", "USER"}
    assert where == "/"


@pytest.mark.parametrize(
    ("loader", "said"),
    [("refusing", "odd is damaged"), ("hanging", "more than 1 s to load it"), ("none", "AttributeError")],
)
def test_a_model_that_cannot_be_loaded_is_told_in_the_words_of_its_loader(
    tmp_path: Path, loader: str, said: str
) -> None:
    limits = TrialLimits(load_s=1.0) if loader == "hanging" else TrialLimits()
    with pytest.raises(DrivetrainError, match=said), Trials(f"trial_loaders:{loader}", limits).open(tmp_path, PINNED):
        pass


def test_nothing_runs_on_once_a_trial_has_ended(tmp_path: Path) -> None:
    before = children()
    with Trials("trial_loaders:doing", QUICK).open(tmp_path, PINNED) as scorer:
        (process,) = children() - before
        with pytest.raises(DrivetrainError):
            scorer.score([["spin"]])
    assert process not in children()


PARENT = """
import sys
from pathlib import Path
sys.path[:0] = [{here!r}, {tests!r}]
from test_trials import PINNED, QUICK, Trials
with Trials("trial_loaders:doing", QUICK).open(Path({folder!r}), PINNED) as scorer:
    print(int(scorer.score([["where"]])[0].value), flush=True)
    scorer.score([["spin"]])
"""


def test_a_trial_whose_parent_was_killed_ends_by_itself(tmp_path: Path) -> None:
    process = in_one_try(lambda: orphan(tmp_path))
    assert eventually(lambda: not is_running(process), 4 * PATIENCE_S)


def orphan(tmp_path: Path) -> int:
    """A process in which a model spins, and whose parent was killed before its second was over."""
    here = Path(__file__).parent
    script = PARENT.format(here=str(here), tests=str(here.parent), folder=str(tmp_path))
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    line = parent.stdout.readline()
    time.sleep(0.3)
    parent.kill()
    said = parent.communicate()[1]
    if not line or parent.returncode != -signal.SIGKILL:
        assert "takes more than 1 s to score 1 rows" in said, said
        raise Spoiled("its parent gave it up first")
    process = int(line)
    if not is_running(process):
        raise Spoiled("its parent was giving it up")
    return process


def children() -> set[str]:
    """Processes that this one has started and not asked yet how they ended."""
    return {one for path in Path("/proc/self/task").glob("*/children") for one in path.read_text().split()}


def is_running(process: int) -> bool:
    """Whether it does anything still; one that ended may wait for somebody to ask how."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_trial_costs_little_more_than_the_start_of_python(tmp_path: Path) -> None:
    """Without the format's library, which an import needs anyway. In one of a few tries: the machine has neighbours."""

    def tried() -> None:
        with Trials("trial_loaders:doing").open(tmp_path, PINNED) as scorer:
            scorer.score([[""]])

    within(1.0, tried)
