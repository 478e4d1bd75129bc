"""The documentation's code runs: every page in a project of its own, its blocks in the order of the page."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from doc_blocks import DOCS, LANGUAGES, MARKS, PAGES, ROOT, Block, blocks_of, commands_of
from doc_project import DocProject

from drivetrain.cli.check import check_project
from drivetrain.simulator import SimulatorProcess

pytestmark = pytest.mark.slow

TEMPLATE = ROOT / "src" / "drivetrain" / "project" / "template"
WITH_CODE = [page for page in PAGES if any(block.language in ("python", "console") for block in blocks_of(page))]
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PROVIDERS = {
    "openai": 'dialect = "openai"\nbase_url = "https://api.openai.com/v1"\nkey = "env:OPENAI_API_KEY"\n',
    "anthropic": 'dialect = "anthropic"\nbase_url = "https://api.anthropic.com"\nkey = "env:ANTHROPIC_API_KEY"\n',
    "sim": 'dialect = "openai"\nbase_url = "http://127.0.0.1:8090/v1"\n',
    "sim-anthropic": 'dialect = "anthropic"\nbase_url = "http://127.0.0.1:8090"\n',
}
"""What a page's part of drivetrain.toml may take for granted."""


def of(language: str, marked: str = "") -> list[Block]:
    found = [block for block in BLOCKS if block.language == language]
    return [block for block in found if block.mark.startswith(marked)] if marked else found


def named(block: Block) -> str:
    return block.where


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess(_chaos_allowed()) as running:
        yield running


def _chaos_allowed() -> dict[str, object]:
    """The simulator of a new project; requests may ask for failures, as the page about chaos says how to allow."""
    text = (TEMPLATE / "simulator.toml").read_text().replace("data/tickets.csv", str(TEMPLATE / "data/tickets.csv"))
    config = tomllib.loads(text)
    config["server"] = {"allow_overrides": True}
    return config


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_runs(page: Path, simulator: SimulatorProcess, tmp_path: Path) -> None:
    if "sklearn" in page.read_text(encoding="utf-8") and importlib.util.find_spec("sklearn") is None:
        pytest.skip("scikit-learn, whose data the page uses, is not installed")
    project = DocProject(tmp_path / "my-ai", simulator.url)
    try:
        for block in blocks_of(page):
            if block.language == "python":
                ran = project.python(block.text)
                assert ran.returncode == 0, f"{block.where} fails:\n{ran.stdout}{ran.stderr}"
            elif block.language == "console" and block.mark != "example":
                _run_console(project, block)
    finally:
        project.close()


def _run_console(project: DocProject, block: Block) -> None:
    folder = project.root
    for command in commands_of(block):
        if not command.is_run:
            continue
        if "curl" in command.text and shutil.which("curl") is None:
            pytest.skip("curl is not installed")
        ran, folder = project.bash(command.text, folder)
        assert ran.returncode == 0, f"{block.where}: `{command.text}` ends with {ran.returncode}:\n{ran.stdout}"
        printed = [_masked(line) for line in ran.stdout.splitlines()]
        at = 0
        for line in command.output:
            wanted = _masked(line)
            if not wanted or wanted == "...":
                continue
            assert wanted in printed[at:], f"{block.where} promises\n  {line}\nand got\n{ran.stdout}"
            at = printed.index(wanted, at) + 1


def _masked(line: str) -> str:
    """A line without what differs from run to run: ids, hashes, times, ports, widths and bars."""
    line = re.sub(r"[░█━]+", "", line)
    line = re.sub(r"call_[0-9a-f]{30}|chatcmpl-[0-9a-f]+|msg_[0-9a-f]+|\b[0-9a-f]{16,64}\b", "ID", line)
    line = re.sub(r"\d{4}-\d\d-\d\d(T[\d:.]+Z)?", "DAY", line)
    line = re.sub(r"127\.0\.0\.1:\d+", "ADDRESS", line)
    line = re.sub(r'("created":|processing-ms: )\d+', r"\1N", line)
    line = re.sub(r"\b\d[\d,]*\.\d\b", "MS", line)  # milliseconds and shares have one decimal, money has more
    return re.sub(r"\s+", " ", line).strip()


@pytest.mark.parametrize("block", of("toml"), ids=named)
def test_toml_parses(block: Block) -> None:
    try:
        tomllib.loads(block.text)
    except tomllib.TOMLDecodeError as problem:
        pytest.fail(f"{block.where}: {problem}")


@pytest.mark.parametrize("block", of("json"), ids=named)
def test_json_parses(block: Block) -> None:
    try:
        json.loads(block.text)
    except json.JSONDecodeError as problem:
        pytest.fail(f"{block.where}: {problem}")


@pytest.mark.parametrize("block", of("toml", "project"), ids=named)
def test_parts_of_drivetrain_toml_pass_the_check(block: Block, tmp_path: Path) -> None:
    _check({"drivetrain.toml": _settings(block.text)}, tmp_path, block.where)


FILES = sorted({block.page for block in BLOCKS if block.file})


@pytest.mark.parametrize("page", FILES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_files_of_a_page_make_a_project_that_passes_the_check(page: Path, tmp_path: Path) -> None:
    files = {block.file: block.text for block in blocks_of(page) if block.file}
    _check({"drivetrain.toml": _settings(""), **files}, tmp_path, str(page.relative_to(ROOT)))


def _settings(part: str) -> str:
    """`part` with what it takes for granted: a name, and the providers that it does not declare itself."""
    declared = tomllib.loads(part)
    whole = part if "project" in declared else f'[project]\nname = "docs"\n\n{part}'
    for name, body in PROVIDERS.items():
        if name not in declared.get("providers", {}):
            whole += f"\n[providers.{name}]\n{body}"
    for name in ("gpt-5-mini-2025-08-07", "gpt-5-nano-2025-08-07"):
        if f"sim/{name}" not in declared.get("models", {}):
            whole += f'\n[models."sim/{name}"]\nprice_as = "openai/{name}"\n'
    opus = "claude-opus-4-5-20251101"
    if f"sim-anthropic/{opus}" not in declared.get("models", {}):
        whole += f'\n[models."sim-anthropic/{opus}"]\nprice_as = "anthropic/{opus}"\n'
    return whole


def _check(files: dict[str, str], folder: Path, where: str) -> None:
    shutil.copytree(TEMPLATE / "workflows", folder / "workflows", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for reference in re.findall(r'ca_file = "([^"]+)"', files["drivetrain.toml"]):
        (folder / reference).parent.mkdir(parents=True, exist_ok=True)
        (folder / reference).write_text("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")
    answer = check_project(folder, None)
    assert answer.ok, f"{where}:\n" + "\n".join(map(str, answer.problems))


def test_every_block_says_what_it_is() -> None:
    for block in BLOCKS:
        assert block.language in LANGUAGES, f"{block.where}: `{block.language}` is no language that these tests know"
        assert not block.mark or block.file or block.mark in MARKS, f"{block.where}: no mark is called `{block.mark}`"


def test_most_of_the_code_is_run() -> None:
    """Marks are for what cannot be run, not a way out."""
    commands = [command for block in of("console") for command in commands_of(block)]
    run = [
        command
        for block in of("console")
        if block.mark != "example"
        for command in commands_of(block)
        if command.is_run
    ]
    assert len(of("python")) >= 10
    assert len(run) >= 40, f"{len(run)} of {len(commands)} commands are run"
    assert len(run) / len(commands) > 0.75, f"{len(run)} of {len(commands)} commands are run"
    assert any(block.page.is_relative_to(DOCS / "how-to") for block in of("python"))
