"""When a provider retires a model that routes name: the days that a project wrote down, and warnings ahead of them.

Owns the words. What the built-in price list says of models that are deprecated comes from `providers`. Called by
`drivetrain check`, `drivetrain probe` and the dossier.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

import msgspec

from drivetrain.core.declarations import Variant
from drivetrain.core.models import is_trained
from drivetrain.project.snapshot import Snapshot

WARNED_DAYS = 60
"""Ahead: an upgrade has to be evaluated, approved and rolled out before."""


class Retirement(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the end of one model."""

    model: str
    """`provider/model`."""
    workflows: tuple[str, ...]
    """Whose routes name it."""
    retires: str = ""
    """`YYYY-MM-DD`; empty: no day was written down."""
    days: int | None = None
    """Until then; negative when it is over."""
    replacement: str = ""
    deprecated: bool = False
    """By the built-in price list."""

    @property
    def warning(self) -> str:
        """One sentence for whom it concerns; empty where there is time."""
        used = f"{'workflow' if len(self.workflows) == 1 else 'workflows'} {', '.join(self.workflows)}"
        then = f" {self.replacement} is to follow it: `drivetrain upgrade` compares them." if self.replacement else ""
        if self.days is not None and self.days < 0:
            return f"{self.model} was retired on {self.retires}, {_days(-self.days)} ago, and is in {used}.{then}"
        if self.days is not None and self.days <= WARNED_DAYS:
            when = f"in {_days(self.days)}" if self.days else "today"
            return f"{self.model} retires {when}, on {self.retires}, and is in {used}.{then}"
        if self.days is None and self.deprecated:
            told = f'write `retires = "YYYY-MM-DD"` under [models."{self.model}"]'
            return f"{self.model} is deprecated by its provider, and is in {used}; once its last day is known, {told}."
        return ""


def retirements(
    snapshot: Snapshot, today: date, is_deprecated: Callable[[str, str], bool] = lambda _model, _base_url: False
) -> tuple[Retirement, ...]:
    """Each pinned model of the routes of which something is known, the soonest first.

    is_deprecated: of (`provider/model`, the provider's address).
    """
    found = []
    for model, workflows in pinned_models(snapshot).items():
        facts, provider = snapshot.models.get(model), snapshot.providers.get(model.partition("/")[0])
        retires = facts.retires if facts is not None else ""
        place = provider.endpoint if provider is not None else None
        deprecated = is_deprecated(model, f"{place.scheme}://{place.authority}{place.path}" if place else "")
        if retires or deprecated:
            found.append(
                Retirement(
                    model=model,
                    workflows=workflows,
                    retires=retires,
                    days=(date.fromisoformat(retires) - today).days if retires else None,
                    replacement=facts.replacement if facts is not None else "",
                    deprecated=deprecated,
                )
            )
    return tuple(sorted(found, key=lambda one: (one.retires or "9999", one.model)))


def pinned_models(snapshot: Snapshot) -> dict[str, tuple[str, ...]]:
    """`provider/model` -> the workflows whose routes name it, both sorted; models of one's own are left out."""
    found: dict[str, set[str]] = {}
    for name, workflow in snapshot.workflows.items():
        for step in workflow.route:
            if isinstance(step, Variant) and not is_trained(step.model):
                found.setdefault(step.model, set()).add(name)
    return {model: tuple(sorted(found[model])) for model in sorted(found)}


def _days(number: int) -> str:
    return f"{number} day{'' if number == 1 else 's'}"
