"""What `drivetrain check` asks this room: prices and dialects of every variant."""

from __future__ import annotations

from drivetrain.core.declarations import Variant
from drivetrain.core.errors import Problem
from drivetrain.project.snapshot import Snapshot
from drivetrain.providers.pricing import check_prices


def check(snapshot: Snapshot) -> list[Problem]:
    """Variants whose model has no known price; each model is named once."""
    problems = []
    seen: set[str] = set()
    for workflow in snapshot.workflows.values():
        for step in workflow.route:
            if not isinstance(step, Variant) or step.model in seen:
                continue
            seen.add(step.model)
            provider = snapshot.providers.get(step.model.partition("/")[0])
            if provider is None:
                continue
            endpoint = provider.endpoint
            base_url = f"{endpoint.scheme}://{endpoint.authority}{endpoint.path}"
            why = check_prices(snapshot.models, step.model, base_url)
            if why is not None:
                what, _, fix = why.partition(": ")
                place = step.place
                file = place.file
                if file.startswith(str(snapshot.root)):
                    file = file[len(str(snapshot.root)) + 1 :]
                problems.append(Problem(what=what, file=file, line=place.line, value=step.model, do=fix))
    return problems
