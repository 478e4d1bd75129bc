"""The simulator's TOML: what is right is read exactly, what is wrong is said at once."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from drivetrain.simulator import SimulatorConfigError, SimulatorProcess, load_config
from drivetrain.simulator.failures import FAILURE_KINDS
from drivetrain.simulator.settings import LabelQuality, Milliseconds, TokenRange
from support.tries import eventually

DOC = Path(__file__).resolve().parents[2] / "docs" / "reference" / "simulator.md"

GOOD = """
seed = 7
[server]
keys = ["a"]
[models."gpt-5-mini-2025-08-07"]
dialect = "openai"
latency_ms = {median = 300, p99 = 1500}
first_token_ms = 80
output_tokens = {min = 20, max = 60}
usd_per_million_input = "0.25"
usd_per_million_output = "2"
[models."gpt-5-mini-2025-08-07".quality]
kind = "labels"
labels_file = "labels.txt"
accuracy = 0.86
[models."gpt-5-mini-2025-08-07".failures]
cut = 0.01
rate_limit = {requests_per_s = 10}
"""

MISTAKES = [
    ("[models.m]\nlatency = 3", "latency_ms"),
    ('[models.m]\ndialect = "openia"', "Did you mean `openai`"),
    ("[models.m]\nusd_per_million_input = 0.25", "text in quotes"),
    ('[models.m]\nusd_per_million_input = "0.00000000001"', "9 decimals"),
    ('[models.m]\nusd_per_million_output = "-1"', "at least 0"),
    ("[models.m]\nlatency_ms = {median = 5, p99 = 1}", "median <= p99"),
    ("[models.m]\nlatency_ms = -5", "milliseconds"),
    ("[models.m]\noutput_tokens = {min = 5, max = 1}", "min <= max"),
    ("[models.m]\ncached_input_share = 1.5", "from 0 to 1"),
    ("[models.m]\nstream_events = 0", "from 1 to"),
    ('[models.m]\nanswer = "x"\n[models.m.quality]\nkind = "echo"', "Remove one"),
    ('[models.m]\nanswer_bytes = 9\n[models.m.quality]\nkind = "echo"', "generated text"),
    ('[models.m.quality]\nkind = "label"', "Did you mean `labels`"),
    ('[models.m.quality]\nkind = "labels"', "examples_file"),
    ('[models.m.quality]\nkind = "labels"\nlabels = ["a"]\nper_label_accuracy = {b = 1}', "not one of the labels"),
    ('[models.m.quality]\nkind = "labels"\nexamples_file = "gone.csv"', "gone.csv"),
    ('[models.m.quality]\nkind = "table"', "`models.m.quality.file`"),
    ('[models.m.quality]\nkind = "table"\nfile = "labels.txt"', "no column `prompt`"),
    ("[models.m.failures]\nstatus = {200 = 0.1}", "from 400 to 599"),
    ("[models.m.failures]\nmalfromed = 0.1", "Did you mean `malformed`"),
    ("[models.m.failures]\ncut = 0.6\nempty = 0.6", "sum to 1.2"),
    ("[models.m.failures]\nrate_limit = {requests_per_s = 0}", "above 0"),
    ("[server]\nport = 70000\n[models.m]", "65535"),
    ("sed = 7\n[models.m]", "Did you mean `seed`"),
    ("seed = 7", "There is no model"),
    ("seed = = 7", "cannot be read"),
]


def write(folder: Path, text: str) -> Path:
    (folder / "labels.txt").write_text("card_arrival\nlost_card\n", encoding="utf-8")
    path = folder / "simulator.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_is_right_is_read_exactly(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    model = config.models["gpt-5-mini-2025-08-07"]
    assert config.seed == 7
    assert config.server.keys == ("a",)
    assert model.latency == Milliseconds(median_ms=300, p99_ms=1500)
    assert model.output_tokens == TokenRange(tokens_min=20, tokens_max=60)
    assert model.price.input_nano_usd_per_million == 250_000_000
    assert model.price.input_cached_nano_usd_per_million == 250_000_000
    assert isinstance(model.quality, LabelQuality)
    assert model.quality.labels == ("card_arrival", "lost_card")
    assert model.failures.rate_limit is not None
    assert model.failures.rate_limit.burst == 10


@pytest.mark.parametrize(("text", "said"), MISTAKES)
def test_a_mistake_is_named_with_what_to_do(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SimulatorConfigError) as wrong:
        load_config(write(tmp_path, text))
    assert said in str(wrong.value)
    assert "simulator.toml" in str(wrong.value)


def test_all_mistakes_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(SimulatorConfigError) as wrong:
        load_config(write(tmp_path, '[models."a.b"]\nlatency = 3\ndialect = "x"\n[models.c]\ntokens_per_s = "fast"\n'))
    assert len(wrong.value.mistakes) == 3
    assert '`models."a.b".latency`' in str(wrong.value)


def test_a_wrong_configuration_starts_no_process() -> None:
    with pytest.raises(SimulatorConfigError):
        SimulatorProcess({"models": {}}).start()


def test_the_command_line_says_what_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "drivetrain.simulator", "--config", str(write(tmp_path, "seed = 1"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 2
    assert "There is no model" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_process_ends_with_its_block_and_says_why_it_cannot_start() -> None:
    from drivetrain.simulator.errors import ProcessNotReady

    with SimulatorProcess({"models": {"m": {}}}) as simulator:
        pid = simulator.pid
        with pytest.raises(ProcessNotReady, match="cannot listen"):
            SimulatorProcess({"models": {"m": {}}}, port=simulator.port).start()
    assert not Path(f"/proc/{pid}").exists()


def test_a_process_ends_when_its_parent_dies() -> None:
    code = (
        "import os\nfrom drivetrain.simulator import SimulatorProcess\n"
        "print(SimulatorProcess({'models': {'m': {}}}).start().pid, flush=True)\nos._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=50, check=True)
    process = Path("/proc", done.stdout.strip())
    assert eventually(lambda: not is_running(process))


def is_running(process: Path) -> bool:
    """Whether a process of this folder in /proc runs; one that only waits to be reaped does not."""
    try:
        return ") Z " not in (process / "stat").read_text(encoding="ascii")
    except FileNotFoundError:
        return False


def test_importing_the_package_imports_none_of_its_parts() -> None:
    code = "import sys, drivetrain.simulator; print([m for m in sys.modules if m.startswith('drivetrain.simulator.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout.strip() == "[]"


def test_the_documented_example_is_right() -> None:
    example = re.search(r"```toml\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    assert len(load_config(tomllib.loads(example[1])).models) == 2


def test_every_key_is_documented() -> None:
    page = DOC.read_text(encoding="utf-8")
    with pytest.raises(SimulatorConfigError) as wrong:
        load_config(
            {"qqqqqqqq": 1, "server": {"qqqqqqqq": 1}, "models": {"m": {"qqqqqqqq": 1, "failures": {"qqqqqqqq": 1}}}}
        )
    known = {name for mistake in wrong.value.mistakes for name in re.findall(r"\w+", mistake.partition("Known: ")[2])}
    assert set(FAILURE_KINDS) < known
    assert [name for name in sorted(known) if not re.search(rf"\b{name}\b", page)] == []
