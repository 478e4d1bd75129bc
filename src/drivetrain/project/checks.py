"""Everything that is wrong with a project's declarations, all at once.

Sees Workflows wherever they were written. What providers can do and what models cost is checked by the
room that knows them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.declarations import (
    CHAT_INPUTS,
    DURABILITIES,
    RETENTIONS,
    SLO,
    Budget,
    Parameters,
    Record,
    Workflow,
)
from drivetrain.core.errors import did_you_mean
from drivetrain.core.features import FeatureService
from drivetrain.core.limits import MODES
from drivetrain.core.models import Pinned
from drivetrain.project.data_checks import DataCheck
from drivetrain.project.files import SETTINGS_FILE
from drivetrain.project.limits import SHARES_MAX
from drivetrain.project.model_checks import ModelCheck
from drivetrain.project.names import E_MAIL
from drivetrain.project.parameters import KNOWN, MANAGED
from drivetrain.project.problems import Problems, shown
from drivetrain.project.prompts import Prompts
from drivetrain.project.resilience_checks import ResilienceCheck
from drivetrain.project.rollout_checks import RolloutCheck
from drivetrain.project.route_checks import RouteCheck
from drivetrain.project.settings import Settings
from drivetrain.project.spots import Spots
from drivetrain.project.tables import amount_fix, amount_mistake
from drivetrain.project.workflow_notes import TIMEOUT_MOST_MS, WorkflowNotes, is_record, is_whole, kind, written

ATTEMPTS_MOST = 50
"""Above it a call cannot be told from a loop."""
AMOUNTS = ("usd_per_call", "usd_per_day", "usd_per_month")
"""Of a Budget, in USD."""


class Surroundings(msgspec.Struct, frozen=True):
    """What workflows refer to."""

    settings: Settings | None
    """None where the TOML file is broken: then what needs none is checked."""
    prompts: Prompts
    services: Mapping[str, FeatureService]
    """FeatureServices by name."""
    pinned: Mapping[str, Pinned]
    """What references to trained models stand for."""
    root: Path
    """The project's folder."""
    leaves_models: bool = False
    """Whether references that cannot be resolved are no mistake."""


def check_workflows(
    workflows: Sequence[Workflow[Any, Any]], around: Surroundings, spots: Spots, problems: Problems
) -> None:
    """Notes every mistake in the declared workflows."""
    declared: dict[str, Workflow[Any, Any]] = {}
    for workflow in workflows:
        notes = WorkflowNotes(workflow, spots, problems)
        _WorkflowCheck(notes, around).run()
        name = str(workflow.name)
        if name in declared:
            first = spots.of(declared[name])
            notes.note(f"is declared twice; first in {first.file}:{first.line}.", do="Give one of them another name.")
        else:
            declared[name] = workflow


def check_keys(
    settings: Settings, names: Collection[str], spots_line: Callable[[str, int], int], problems: Problems
) -> None:
    """Notes every workflow that a key names and nobody declares."""
    for key in settings.keys.values():
        for index, name in enumerate(key.workflows or ()):
            if name not in names:
                problems.add(
                    f"`keys.{key.name}.workflows` names `{name}`, which is not declared.", file=SETTINGS_FILE,
                    line=spots_line(key.name, index), value=shown(name), do=did_you_mean(name, names),
                )  # fmt: skip


class _WorkflowCheck:
    """One workflow being checked."""

    def __init__(self, notes: WorkflowNotes, around: Surroundings) -> None:
        self.workflow: Workflow[Any, Any] = notes.workflow
        self.notes = notes
        self.settings = around.settings
        self.prompts = around.prompts
        self.around = around

    def run(self) -> None:
        workflow = self.workflow
        self.notes.unknown(workflow, None)
        self.notes.name(workflow.name, None)
        self._attribution()
        self._choices()
        self._types()
        self._parameters()
        self._budget()
        self._slo()
        ResilienceCheck(self.notes).run()
        RolloutCheck(self.notes).run()
        DataCheck(self.notes, self.around.services).run()
        self.notes.whole("attempts_max", workflow.attempts_max, ATTEMPTS_MOST, None)
        for validator in workflow.validators:
            if not callable(validator):
                self.notes.note("has a validator that is no function.", "validators", value=kind(validator))
        RouteCheck(self.notes, self.settings.provider_names if self.settings else None, self.prompts).run()
        if self.settings is not None:
            data_folder = self.around.root / self.settings.ledger.folder
            ModelCheck(self.notes, self.around.pinned, data_folder, self.around.leaves_models).run()

    def _attribution(self) -> None:
        workflow, teams = self.workflow, self.settings.teams if self.settings else {}
        if not workflow.owner:
            self.notes.note("has no owner.", do='Write `owner="team@acme.example"`: who answers for it.')
        elif not isinstance(workflow.owner, str) or not E_MAIL.fullmatch(workflow.owner):
            self.notes.note(
                "has an owner that is no e-mail address.",
                "owner",
                value=written(workflow.owner),
                do='Write for example "team@acme.example".',
            )
        if not workflow.team:
            self.notes.note("has no team.", do='Write `team="support"`: who pays for it.')
        elif not isinstance(workflow.team, str):
            self.notes.note("has a team that is no text.", "team", value=kind(workflow.team))
        elif teams and workflow.team not in teams:
            self.notes.note(
                f"names the team `{workflow.team}`, which is not declared.",
                "team",
                value=shown(workflow.team),
                do=did_you_mean(workflow.team, teams),
            )
        if not workflow.use_case:
            self.notes.note("has no use case.", do='Write `use_case="ticket-routing"`: what its cost is for.')
        elif not isinstance(workflow.use_case, str):
            self.notes.note("has a use case that is no text.", "use_case", value=kind(workflow.use_case))

    def _choices(self) -> None:
        workflow = self.workflow
        for argument, value, choices in (
            ("retention", workflow.retention, RETENTIONS),
            ("durability", workflow.durability, DURABILITIES),
            ("chat_input", workflow.chat_input, CHAT_INPUTS),
        ):
            if value is None and argument == "retention":
                continue
            self.notes.choice(argument, value, choices)

    def _types(self) -> None:
        workflow = self.workflow
        for argument, declared in (("input", workflow.input), ("output", workflow.output)):
            if declared is None:
                continue
            if not is_record(declared):
                self.notes.note(
                    f"has an {argument} that is no Record.",
                    argument,
                    value=_type_of(declared),
                    do=f"Write `class {_title(argument)}(dt.Record)` and pass the class.",
                )
                continue
            mistake = _schema_mistake(declared)
            if mistake is not None:
                self.notes.note(
                    f"has an {argument} type without a JSON schema: {mistake}.",
                    argument,
                    value=declared.__name__,
                    do="Use str, int, float, bool, None, lists, dicts, Literals, Enums and Records.",
                )
        self._chat_field()

    def _chat_field(self) -> None:
        field, declared = self.workflow.chat_field, self.workflow.input
        if field is None:
            return
        if declared is None:
            self.notes.note(
                "has a `chat_field` but no input type.",
                "chat_field",
                value=written(field),
                do="Remove it, or declare `input`.",
            )
        elif is_record(declared):
            texts = _text_fields(declared)
            if field not in declared.__struct_fields__:
                self.notes.note(
                    f"has a `chat_field` that is no field of {declared.__name__}.",
                    "chat_field",
                    value=written(field),
                    do=did_you_mean(str(field), declared.__struct_fields__),
                )
            elif texts is not None and field not in texts:
                self.notes.note(
                    f"has a `chat_field` that is no `str` field of {declared.__name__}.",
                    "chat_field",
                    value=written(field),
                    do=did_you_mean(str(field), texts),
                )

    def _parameters(self) -> None:
        parameters = self.workflow.parameters
        if not isinstance(parameters, Parameters):
            self.notes.note(
                "has `parameters` that are no Parameters.",
                "parameters",
                value=kind(parameters),
                do="Write `parameters=dt.Parameters(...)`.",
            )
            return
        if parameters.others not in (None, "refuse", "honour"):
            self.notes.note(
                "has wrong `others` parameters.",
                "parameters",
                "others",
                value=written(parameters.others),
                do='Write "refuse" or "honour".',
            )
        listed: dict[str, str] = {}
        for group in ("honour", "fix", "ignore", "refuse"):
            names = getattr(parameters, group)
            if isinstance(names, str) or not isinstance(names, tuple | list | dict):
                self.notes.note(
                    f"has `{group}` parameters that are no list.",
                    "parameters",
                    group,
                    value=kind(names),
                    do=f'Write `{group}=("temperature",)`.',
                )
                continue
            for name in names:
                self._listed_parameter(group, name, listed)

    def _listed_parameter(self, group: str, name: object, listed: dict[str, str]) -> None:
        if not isinstance(name, str) or name not in KNOWN:
            self.notes.note(
                f"names the parameter `{name}` in `{group}`, which chat completions do not have.",
                "parameters",
                group,
                value=written(name),
                do=did_you_mean(str(name), KNOWN),
            )
            return
        if name in MANAGED:
            self.notes.note(
                f"names the parameter `{name}` in `{group}`, which Drivetrain sets itself.",
                "parameters",
                group,
                value=written(name),
                do=MANAGED[name],
            )
        if name in listed:
            self.notes.note(
                f"names the parameter `{name}` in both `{listed[name]}` and `{group}`.",
                "parameters",
                group,
                value=written(name),
                do="Keep one of them.",
            )
        listed.setdefault(name, group)

    def _budget(self) -> None:
        budget = self.workflow.budget
        if budget is None:
            return
        if not isinstance(budget, Budget):
            self.notes.note(
                "has a budget that is no Budget.",
                "budget",
                value=kind(budget),
                do='Write `budget=dt.Budget(usd_per_month="500")`.',
            )
            return
        for argument in AMOUNTS:
            amount = getattr(budget, argument)
            mistake = None if amount is None else amount_mistake(amount)
            if mistake is not None:
                self.notes.note(
                    f"has a budget whose `{argument}` {mistake}",
                    "budget",
                    argument,
                    value=written(amount),
                    do=amount_fix(amount),
                )
        self._budget_mode(budget)

    def _budget_mode(self, budget: Budget) -> None:
        if budget.mode not in MODES:
            listed = ", ".join(f'"{one}"' for one in MODES)
            self.notes.note(
                f"has a budget with a wrong `mode`; it is one of {listed}.",
                "budget",
                "mode",
                value=written(budget.mode),
                do=did_you_mean(str(budget.mode), MODES),
            )
        alerts = budget.alerts
        if not isinstance(alerts, tuple | list) or not all(is_whole(share, 1, SHARES_MAX) for share in alerts):
            self.notes.note(
                f"has a budget whose `alerts` are no whole percents from 1 to {SHARES_MAX}.",
                "budget",
                "alerts",
                value=kind(alerts) if not isinstance(alerts, tuple | list) else written(repr(alerts)),
                do="Write `alerts=(50, 80, 100)`.",
            )
        elif (alerts or budget.mode in MODES[1:]) and budget.usd_per_day is None and budget.usd_per_month is None:
            self.notes.note(
                "has a budget with `mode` or `alerts`, but no amount per day or month.",
                "budget",
                do="Write `usd_per_month`; `usd_per_call` is always refused before anything is sent.",
            )

    def _slo(self) -> None:
        slo = self.workflow.slo
        if slo is None:
            return
        if not isinstance(slo, SLO):
            self.notes.note(
                "has an `slo` that is no SLO.", "slo", value=kind(slo), do="Write `slo=dt.SLO(p99_ms=1500)`."
            )
            return
        if slo.p99_ms is not None and not is_whole(slo.p99_ms, 1, TIMEOUT_MOST_MS):
            self.notes.note(
                f"has an SLO whose `p99_ms` is no whole number from 1 to {TIMEOUT_MOST_MS}.",
                "slo",
                "p99_ms",
                value=written(slo.p99_ms),
            )
        share = slo.availability
        if share is not None and (isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1):
            do = (
                f"Write {share / 100:g}."
                if isinstance(share, int | float) and 1 < share <= 100
                else "Write for example 0.999."
            )
            self.notes.note(
                "has an SLO whose `availability` is no share above 0 and at most 1.",
                "slo",
                "availability",
                value=written(share),
                do=do,
            )


def _schema_mistake(declared: type[Record]) -> str | None:
    """Why a type has no JSON schema or cannot be read from JSON; None where it has one."""
    try:
        msgspec.json.schema(declared)
        msgspec.json.Decoder(declared)
    except Exception as error:  # noqa: BLE001  whatever the user's annotations raise is the finding
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return (lines[-1] if lines and "requires either" in lines[0] else " ".join(lines[:1])).rstrip(".") or type(
            error
        ).__name__
    return None


def _text_fields(declared: type[Record]) -> list[str] | None:
    """Fields of a Record that take a text; None where its types cannot be resolved."""
    try:
        fields = msgspec.inspect.type_info(declared)
    except Exception:  # noqa: BLE001  noted by `_schema_mistake`
        return None
    assert isinstance(fields, msgspec.inspect.StructType)
    return [field.name for field in fields.fields if _takes_text(field.type)]


def _takes_text(declared: msgspec.inspect.Type) -> bool:
    if isinstance(declared, msgspec.inspect.Metadata):
        return _takes_text(declared.type)
    if isinstance(declared, msgspec.inspect.UnionType):
        return any(_takes_text(one) for one in declared.types)
    return isinstance(declared, msgspec.inspect.StrType)


def _type_of(value: object) -> str:
    return value.__name__ if isinstance(value, type) else re.sub(r"<|>", "", kind(value))


def _title(argument: str) -> str:
    return "Ticket" if argument == "input" else "Route"
