"""Help in which options of one kind stand together, under a heading of their own.

Typer draws its panels with a markup that would swallow `[gateway]`, so without that markup it draws none; here a panel
is a heading, as `Options` is. An option names its own with `rich_help_panel`.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

ARGUMENTS, OPTIONS = "Arguments", "Options"


class SectionedCommand(TyperCommand):
    """A command whose help has a section for each panel, in the order in which they are first named."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the sections. ctx, formatter: click's."""
        sections: dict[str, list[tuple[str, str]]] = {ARGUMENTS: [], OPTIONS: []}
        for param in self.get_params(ctx):
            told = param.get_help_record(ctx)
            if told is not None:
                usual = ARGUMENTS if param.param_type_name == "argument" else OPTIONS
                sections.setdefault(getattr(param, "rich_help_panel", None) or usual, []).append(told)
        for title, rows in sections.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
