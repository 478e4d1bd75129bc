"""Everything that is wrong with how a workflow bounds its calls and what it answers where no variant does.

Owns `max_input_tokens`, `context`, `cache`, `degrade`, `deadline_ms` and `priority`. Called by `checks`.
"""

from __future__ import annotations

from typing import Any

from drivetrain.core.declarations import (
    CACHE_WHEN,
    CONTEXT_STRATEGIES,
    PRIORITIES,
    Cache,
    Stale,
    Static,
    Workflow,
)
from drivetrain.core.errors import did_you_mean
from drivetrain.project.workflow_notes import (
    TIMEOUT_MOST_MS,
    WorkflowNotes,
    is_record,
    is_whole,
    kind,
    refused_by_type,
    written,
)

INPUT_TOKENS_MOST = 10_000_000
"""No model takes more."""
CACHED_MOST_S = 30 * 86_400
"""An answer older than a month says little about the variant that would be asked today."""


class ResilienceCheck:
    """One workflow being checked."""

    def __init__(self, notes: WorkflowNotes) -> None:
        self.workflow: Workflow[Any, Any] = notes.workflow
        self.notes = notes

    def run(self) -> None:
        """Notes every mistake."""
        workflow = self.workflow
        for argument, most in (("max_input_tokens", INPUT_TOKENS_MOST), ("deadline_ms", TIMEOUT_MOST_MS)):
            value = getattr(workflow, argument)
            if value is not None:
                self.notes.whole(argument, value, most, None)
        self.notes.choice("priority", workflow.priority, PRIORITIES)
        self._context()
        self._cache()
        self._degrade()

    def _context(self) -> None:
        workflow = self.workflow
        if not self.notes.choice("context", workflow.context, CONTEXT_STRATEGIES) or workflow.context == "refuse":
            return
        if workflow.max_input_tokens is None:
            self.notes.note(
                "has a `context` strategy, but no input is too long for it.",
                "context",
                value=written(workflow.context),
                do="Write `max_input_tokens`, for example 8000.",
            )
        if workflow.context == "drop_oldest_turns" and workflow.input is not None:
            self.notes.note(
                "drops the oldest turns, but its input is no conversation.",
                "context",
                value=written(workflow.context),
                do='Write "keep_ends", which shortens the longest text, or "refuse".',
            )

    def _cache(self) -> None:
        cache = self.workflow.cache
        if cache is None:
            return
        if not isinstance(cache, Cache):
            self.notes.note(
                "has a `cache` that is no Cache.", "cache", value=kind(cache), do="Write `cache=dt.Cache(ttl_s=3600)`."
            )
            return
        self._age("cache", "ttl_s", cache.ttl_s)
        if cache.when not in CACHE_WHEN:
            listed = " or ".join(f'"{one}"' for one in CACHE_WHEN)
            self.notes.note(
                f"has a cache whose `when` is not {listed}.",
                "cache",
                "when",
                value=written(cache.when),
                do=did_you_mean(str(cache.when), CACHE_WHEN),
            )
        if not isinstance(cache.tool_calls, bool):
            self.notes.note(
                "has a cache whose `tool_calls` is neither true nor false.",
                "cache",
                "tool_calls",
                value=written(cache.tool_calls),
            )

    def _age(self, argument: str, field: str, value: object) -> bool:
        if is_whole(value, 1, CACHED_MOST_S):
            return True
        self.notes.note(
            f"has a `{argument}` whose `{field}` is no whole number of seconds from 1 to {CACHED_MOST_S} (30 days).",
            argument,
            field,
            value=written(value),
        )
        return False

    def _degrade(self) -> None:
        seen: list[type] = []
        for rung in self.workflow.degrade:
            if not isinstance(rung, Stale | Static):
                self.notes.note(
                    "has a step in `degrade` that is no Stale and no Static.",
                    "degrade",
                    value=kind(rung),
                    do='Write `degrade=[dt.Stale(max_age_s=86400), dt.Static("...")]`.',
                )
                continue
            name = type(rung).__name__
            if type(rung) in seen:
                self.notes.note(f"has more than one {name} in `degrade`.", "degrade", do="Keep one of them.")
            elif isinstance(rung, Stale) and Static in seen:
                self.notes.note(
                    "has a Stale behind its Static, which always answers.", "degrade", do="Put the Static last."
                )
            seen.append(type(rung))
            if isinstance(rung, Stale):
                self._stale(rung)
            else:
                self._static(rung)

    def _stale(self, stale: Stale) -> None:
        if not self._age("degrade", "max_age_s", stale.max_age_s):
            return
        cache = self.workflow.cache
        if cache is None:
            self.notes.note(
                "has a Stale in `degrade`, but no cache that keeps answers.",
                "degrade",
                do="Write `cache`, with `ttl_s`.",
            )
        elif isinstance(cache, Cache) and is_whole(cache.ttl_s, stale.max_age_s, CACHED_MOST_S):
            self.notes.note(
                "has a Stale in `degrade` that gives no answer that is not fresh still.",
                "degrade",
                value=f"max_age_s {stale.max_age_s}, ttl_s {cache.ttl_s}",
                do="Write a `max_age_s` above the cache's `ttl_s`.",
            )

    def _static(self, static: Static) -> None:
        answer, output = static.answer, self.workflow.output
        if output is not None and not is_record(output):
            return  # already noted with the types
        wanted = "text" if output is None else output.__name__
        if isinstance(answer, type) or not isinstance(answer, str if output is None else output):
            self.notes.note(
                f"has a Static in `degrade` whose answer is no {wanted}.",
                "degrade",
                value=answer.__name__ if isinstance(answer, type) else kind(answer),
                do="Write a text." if output is None else f"Write an instance, `{wanted}(...)`.",
            )
            return
        refused = refused_by_type(answer, output) if output is not None else ""
        if refused:
            self.notes.note(
                f"has a Static in `degrade` whose answer its own type refuses: {refused}.",
                "degrade",
                value=written(repr(answer)),
                do=f"Write an output that fits {wanted}.",
            )
        elif answer == "":
            self.notes.note("has a Static in `degrade` that says nothing.", "degrade", do="Write what users get.")
