"""The code blocks of the documentation: where they stand, what they are, and what marks on them mean.

```LANGUAGE MARK
`file=PATH`   the block is this file of a project; together with the page's other files it must pass `drivetrain check`
`project`     TOML: a part of drivetrain.toml that must pass `drivetrain check`
`example`     console: what is said in a situation that the page's project is not in; not run
In a console block a command whose comment begins with `# stays`, `# needs` or `# installs` is not run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = tuple(sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")]))
LANGUAGES = frozenset({"python", "toml", "console", "json", "jinja", "text", "http", ""})
MARKS = frozenset({"project", "example"})
NOT_RUN = re.compile(r"\s#\s(stays|needs|installs)\b")
_FENCE = re.compile(r"^```(.*)$")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    """Of its first line of text."""
    language: str
    mark: str
    text: str

    @property
    def where(self) -> str:
        """`docs/start.md:12`, for the person who must mend it."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file(self) -> str:
        """The project's file that the block is; empty where it is none."""
        return self.mark.removeprefix("file=") if self.mark.startswith("file=") else ""


@dataclass
class Command:
    """One command of a console block, and what the page says that it prints."""

    text: str
    output: list[str] = field(default_factory=list)

    @property
    def is_run(self) -> bool:
        """Whether the tests run it."""
        return NOT_RUN.search(self.text) is None


def blocks_of(page: Path) -> list[Block]:
    """Every fenced block of `page`, in order."""
    found: list[Block] = []
    opened: tuple[int, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is None and fence:
            opened, lines = (number + 1, fence[1].strip()), []
        elif opened is not None and line == "```":
            language, _, mark = opened[1].partition(" ")
            found.append(Block(page, opened[0], language, mark.strip(), "\n".join(lines) + "\n"))
            opened = None
        elif opened is not None:
            lines.append(line)
    assert opened is None, f"{page}: the block at line {opened} never ends"
    return found


def commands_of(block: Block) -> list[Command]:
    """The commands of a console block; a line that ends in a backslash goes on in the next."""
    found: list[Command] = []
    open_line = False
    for line in block.text.splitlines():
        if open_line:
            found[-1].text += "\n" + line
        elif line.startswith("$ "):
            found.append(Command(line[2:]))
        else:
            assert found, f"{block.where}: the block prints before its first command"
            found[-1].output.append(line)
        open_line = line.endswith("\\") and (open_line or line.startswith("$ "))
    return found


def without_blocks(page: Path) -> str:
    """The page's prose."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
