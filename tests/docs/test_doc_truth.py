"""The documentation names what there is: commands, options, error codes, headers, parameters, metrics, modules."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from doc_blocks import DOCS, PAGES, ROOT, without_blocks

from drivetrain.cli.main import application
from drivetrain.gateway import metrics
from drivetrain.gateway.application import Gateway
from drivetrain.gateway.http import READ_HEADERS
from drivetrain.gateway.identity import OVERRIDES
from drivetrain.project.parameters import KNOWN

SOURCE = ROOT / "src" / "drivetrain"
API = DOCS / "reference" / "gateway-api.md"
CLI = DOCS / "reference" / "cli.md"
RUN = DOCS / "operating" / "run.md"
FEATURE_SERVER = DOCS / "how-to" / "serve-features.md"
PYTHON_PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]


# Commands.


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    for child, below in getattr(command, "commands", {}).items():
        yield from _commands(f"{name} {child}", below)


COMMANDS = dict(_commands("drivetrain", typer.main.get_command(application([]))))


def _sections(page: Path) -> dict[str, str]:
    """Heading -> text below it, up to the next heading."""
    parts = re.split(r"^#{2,4} (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {title.strip("` "): text for title, text in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_and_its_options_are_in_the_reference(name: str) -> None:
    sections = _sections(CLI)
    assert name in sections, f"docs/reference/cli.md has no section `{name}`"
    for parameter in COMMANDS[name].params:
        for option in parameter.opts:
            if option.startswith("--"):
                assert f"`{option}" in sections[name], f"`{option}` of `{name}` is not in docs/reference/cli.md"


def test_the_reference_has_no_command_or_option_that_does_not_exist() -> None:
    for title, text in _sections(CLI).items():
        if not title.startswith("drivetrain"):
            continue
        assert title in COMMANDS, f"there is no command `{title}`"
        known = {option for parameter in COMMANDS[title].params for option in parameter.opts} | {"--help"}
        rows = re.findall(r"^\| `(--[a-z-]+)", text, flags=re.MULTILINE)
        assert set(rows) <= known, f"`{title}` has no {sorted(set(rows) - known)}"


def test_every_command_that_a_page_shows_exists() -> None:
    for page in PAGES:
        for said in re.findall(r"(?:^\$ |`|&& )drivetrain ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert f"drivetrain {said}" in COMMANDS, f"{page.relative_to(ROOT)}: there is no `drivetrain {said}`"


# Error codes.


TYPES = frozenset({"invalid_request_error", "rate_limit_error", "server_error"})
CODE = re.compile(r"[a-z]+(_[a-z]+)+|unsupported")


def _codes() -> dict[str, set[int]]:
    """Every error code that the gateway can answer with -> the statuses that are known where it is raised."""
    found: dict[str, set[int]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        if "simulator" in path.parts or path.parent.name == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for code, status in _codes_of(node):
                found.setdefault(code, set()).update({status} if status else set())
    return found


def _codes_of(node: ast.AST) -> Iterator[tuple[str, int]]:
    """`code=...` anywhere, `code = ...`, and the texts beside a status: `RequestError(404, ...)`, `_stop(413, ...)`."""
    if isinstance(node, ast.Assign) and any(getattr(one, "id", "") in ("code", "_CODES") for one in node.targets):
        yield from ((code, 0) for code in _texts(node.value))
    if not isinstance(node, ast.Call):
        return
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    first = getattr(node.args[0], "value", 0) if node.args else 0
    status = 400 if name == "bad_request" else first if isinstance(first, int) and 400 <= first < 600 else 0
    named = [word.value for word in node.keywords if word.arg == "code"]
    if name == "bad_request" and not named:
        yield "invalid_value", 400
    given = node.args[1:] if status and name != "bad_request" else []
    for value in (*named, *given):
        yield from ((code, status) for code in _texts(value))


def _texts(value: ast.expr) -> Iterator[str]:
    if isinstance(value, ast.JoinedStr):
        head = value.values[0].value if isinstance(value.values[0], ast.Constant) else ""
        if head == "stalled_":  # f"stalled_{what}"
            yield from ("stalled_head", "stalled_body")
        return
    for one in ast.walk(value):
        text = one.value if isinstance(one, ast.Constant) else None
        if isinstance(text, str) and CODE.fullmatch(text) and text not in TYPES:
            yield text


CODES = _codes()


def _documented_codes() -> dict[str, set[int]]:
    rows = re.findall(r"^\| `([a-z_]+)` \| ([\d, ]+) \|", _sections(API)["Errors"], flags=re.MULTILINE)
    found: dict[str, set[int]] = {}
    for code, statuses in rows:
        found.setdefault(code, set()).update(int(status) for status in statuses.split(","))
    return found


def test_codes_are_found_in_the_source() -> None:
    assert len(CODES) > 30
    assert CODES["stalled_body"] == {408}
    assert CODES["invalid_api_key"] == {401}
    assert CODES["upstream_auth"] == {502}
    assert "upstream_unreachable" in CODES


@pytest.mark.parametrize("code", sorted(CODES))
def test_an_error_code_is_in_the_reference(code: str) -> None:
    documented = _documented_codes()
    assert code in documented, f"the error code `{code}` is not in docs/reference/gateway-api.md"
    assert CODES[code] <= documented[code], f"`{code}` also comes with {sorted(CODES[code] - documented[code])}"


def test_the_reference_has_no_code_that_does_not_exist() -> None:
    assert set(_documented_codes()) <= set(CODES)


# The gateway's paths, headers and parameters; its metrics.


def test_every_path_is_in_the_reference() -> None:
    said = API.read_text(encoding="utf-8") + FEATURE_SERVER.read_text(encoding="utf-8")
    source = _gateway_source()
    paths = set(re.findall(r'b"(/[a-z0-9/]+)"', source))
    assert {"/v1/chat/completions", "/v1/outcomes", "/metrics", "/v1/workflows/"} <= paths
    assert Gateway.__name__ in source
    for path in paths:
        assert path in said, f"{path} is in neither docs/reference/gateway-api.md nor docs/how-to/serve-features.md"


def test_every_header_is_in_the_reference() -> None:
    said = API.read_text(encoding="utf-8")
    sent = re.findall(r"(x-[a-z-]+|openai-processing-ms): ", _gateway_source())
    assert "x-request-id" in sent
    for header in {*(one.decode() for one in (*READ_HEADERS, *OVERRIDES)), *sent}:
        assert f"`{header}" in said, f"the header `{header}` is not in docs/reference/gateway-api.md"


def _gateway_source() -> str:
    return "".join(path.read_text(encoding="utf-8") for path in sorted((SOURCE / "gateway").glob("*.py")))


@pytest.mark.parametrize("parameter", sorted(KNOWN))
def test_every_chat_parameter_is_in_the_reference(parameter: str) -> None:
    assert f"`{parameter}`" in API.read_text(encoding="utf-8")


def test_every_metric_is_in_the_page_for_operators() -> None:
    names = re.findall(r"^# TYPE (\w+) ", metrics.text([]), flags=re.MULTILINE)
    said = RUN.read_text(encoding="utf-8")
    assert len(names) >= 10
    for name in names:
        assert f"`{name}" in said, f"the metric `{name}` is not in docs/operating/run.md"
    for name in re.findall(r"`(drivetrain_\w+)", said):
        assert name in names, f"there is no metric `{name}`"


# Limits.


LIMITS = DOCS / "operating" / "limits.md"


def test_every_limit_that_is_named_is_a_constant() -> None:
    rows = re.findall(r"^\| (`[^|]+) \|", LIMITS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([A-Z][A-Z0-9_]+)`", row)}
    made = re.compile(r"^\s*([A-Z][A-Z0-9_, ]*)(?:: [\w\[\], .|]+)? = ", flags=re.MULTILINE)
    known = {
        name
        for path in SOURCE.rglob("*.py")
        for names in made.findall(path.read_text(encoding="utf-8"))
        for name in names.split(", ")
    }
    assert len(named) >= 80
    assert named <= known, f"docs/operating/limits.md names {sorted(named - known)}, which no module defines"


# Links and modules.


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#{1,6} (.+)$", without_blocks(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        led = (page.parent / path).resolve() if path else page
        assert led.exists(), f"{page.relative_to(ROOT)} links to {target}, which is not there"
        assert led.is_relative_to(ROOT), f"{page.relative_to(ROOT)} links out of the repository: {target}"
        if anchor:
            assert anchor in _anchors(led), f"{page.relative_to(ROOT)} links to {target}: no such heading"


def test_every_page_is_linked() -> None:
    """From the README or a page that it leads to."""
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        for target in re.findall(r"\]\(([^)\s#]+)", without_blocks(page)):
            led = (page.parent / target).resolve()
            if led.is_file():
                waiting.append(led)
    assert {page for page in PAGES if page.is_relative_to(DOCS)} <= seen


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"\bdrivetrain(?:\.[A-Za-z_]\w*)+", text)):
        if name != "drivetrain.toml":
            assert _exists(name), f"{page.relative_to(ROOT)} names `{name}`, which does not exist"
    for name in set(re.findall(r"`(?:src/drivetrain/)?((?:[a-z_]+/)+[a-z_]*\.py)`", text)):
        rooms = {path.name for path in SOURCE.iterdir()}
        if name.split("/")[0] in rooms:
            assert (SOURCE / name).is_file(), f"{page.relative_to(ROOT)} names {name}, which does not exist"
    for name in set(re.findall(r"`((?:src|tests|docs|benchmarks|scripts|requirements)/[\w./-]*)`", text)):
        assert (ROOT / name).exists(), f"{page.relative_to(ROOT)} names {name}, which does not exist"
    for name in set(re.findall(r"\bdt\.([A-Za-z_]\w*)", text)):
        assert _exists(f"drivetrain.{name}"), f"{page.relative_to(ROOT)} names `dt.{name}`, which does not exist"


def _exists(name: str) -> bool:
    parts = name.split(".")
    found: Any = importlib.import_module(parts[0])
    for index, part in enumerate(parts[1:], 2):
        if hasattr(found, part):
            found = getattr(found, part)
            continue
        module = ".".join(parts[:index])
        is_package = isinstance(found, types.ModuleType) and hasattr(found, "__path__")
        if not is_package or importlib.util.find_spec(module) is None:
            return False
        found = importlib.import_module(module)
    return True


def test_names_that_do_not_exist_are_seen() -> None:
    assert _exists("drivetrain.ledger.journal.FrameJournal")
    assert not _exists("drivetrain.lakes")
    assert not _exists("drivetrain.ledger.journal.Lake")
