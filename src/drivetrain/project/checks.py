"""Everything that is wrong with a project's declarations, all at once.

Sees Workflows wherever they were written. What providers can do and what models cost is checked by the
room that knows them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

import msgspec

from drivetrain.core.declarations import (
    CHAT_INPUTS,
    DURABILITIES,
    RETENTIONS,
    SLO,
    Budget,
    Check,
    Conversation,
    Parameters,
    Record,
    Rule,
    Variant,
    Workflow,
)
from drivetrain.core.errors import did_you_mean, nearest
from drivetrain.project.files import SETTINGS_FILE
from drivetrain.project.parameters import KNOWN, MANAGED
from drivetrain.project.problems import Problems, shown
from drivetrain.project.prompts import Prompts
from drivetrain.project.settings import E_MAIL, NAME, NAME_HELP, Settings, model_mistake
from drivetrain.project.spots import Spots
from drivetrain.project.tables import amount_fix, amount_mistake

ATTEMPTS_MOST = 50
"""Above it a call cannot be told from a loop."""
TIMEOUT_MOST_MS = 3_600_000
OUTPUT_TOKENS_MOST = 1_000_000
ROUTE_STEPS_MAX = 50
NEAR_PARAMETER = 0.8
"""How alike an unknown parameter of a variant must be to a known one to count as its misspelling."""


def check_workflows(
    workflows: Sequence[Workflow[Any, Any]],
    settings: Settings | None,
    prompts: Prompts,
    spots: Spots,
    problems: Problems,
) -> None:
    """Notes every mistake in the declared workflows. Without settings (a broken TOML file), what needs none."""
    declared: dict[str, Workflow[Any, Any]] = {}
    for workflow in workflows:
        one = _WorkflowCheck(workflow, settings, prompts, spots, problems)
        one.run()
        name = str(workflow.name)
        if name in declared:
            first = spots.of(declared[name])
            one.note(f"is declared twice; first in {first.file}:{first.line}.", do="Give one of them another name.")
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
    """One workflow being checked; `note` puts its name in front and its line behind."""

    def __init__(
        self,
        workflow: Workflow[Any, Any],
        settings: Settings | None,
        prompts: Prompts,
        spots: Spots,
        problems: Problems,
    ) -> None:
        self.workflow = workflow
        self.label = f"Workflow `{workflow.name}`"
        self.settings = settings
        self.prompts = prompts
        self.spots = spots
        self.problems = problems

    def note(self, what: str, *arguments: str, value: str = "", do: str = "", of: Rule | Variant | None = None) -> None:
        """Keeps a mistake in the workflow, or in one of its steps, at the line of an argument."""
        place = self.spots.of(of or self.workflow, *arguments)
        step = "" if of is None else f"{'Rule' if isinstance(of, Rule) else 'Variant'} `{of.name}` of "
        label = step + (self.label if of is None else f"workflow `{self.workflow.name}`")
        self.problems.add(f"{label} {what}", file=place.file, line=place.line, value=value, do=do)

    def run(self) -> None:
        workflow = self.workflow
        self._unknown(workflow, None)
        self._name(workflow.name, None)
        self._attribution()
        self._choices()
        self._types()
        self._parameters()
        self._budget()
        self._slo()
        self._whole("attempts_max", workflow.attempts_max, ATTEMPTS_MOST, None)
        for validator in workflow.validators:
            if not callable(validator):
                self.note("has a validator that is no function.", "validators", value=_kind(validator))
        self._route()

    def _unknown(self, declaration: Any, step: Rule | Variant | None) -> None:
        known = [
            name for name in inspect.signature(type(declaration).__init__).parameters if name not in _NOT_ARGUMENTS
        ]
        for name in declaration.unknown:
            self.note(f"has no argument `{name}`.", name, do=did_you_mean(name, known), of=step)

    def _name(self, name: object, step: Rule | Variant | None) -> None:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            self.note("has a name that is none.", value=_value(name), do=NAME_HELP, of=step)

    def _attribution(self) -> None:
        workflow, teams = self.workflow, self.settings.teams if self.settings else {}
        if not workflow.owner:
            self.note("has no owner.", do='Write `owner="team@acme.example"`: who answers for it.')
        elif not isinstance(workflow.owner, str) or not E_MAIL.fullmatch(workflow.owner):
            self.note(
                "has an owner that is no e-mail address.",
                "owner",
                value=_value(workflow.owner),
                do='Write for example "team@acme.example".',
            )
        if not workflow.team:
            self.note("has no team.", do='Write `team="support"`: who pays for it.')
        elif not isinstance(workflow.team, str):
            self.note("has a team that is no text.", "team", value=_kind(workflow.team))
        elif teams and workflow.team not in teams:
            self.note(
                f"names the team `{workflow.team}`, which is not declared.",
                "team",
                value=shown(workflow.team),
                do=did_you_mean(workflow.team, teams),
            )
        if not workflow.use_case:
            self.note("has no use case.", do='Write `use_case="ticket-routing"`: what its cost is for.')
        elif not isinstance(workflow.use_case, str):
            self.note("has a use case that is no text.", "use_case", value=_kind(workflow.use_case))

    def _choices(self) -> None:
        workflow = self.workflow
        for argument, value, choices in (
            ("retention", workflow.retention, RETENTIONS),
            ("durability", workflow.durability, DURABILITIES),
            ("chat_input", workflow.chat_input, CHAT_INPUTS),
        ):
            if value is None and argument == "retention":
                continue
            if value not in choices:
                listed = ", ".join(f'"{one}"' for one in choices)
                self.note(
                    f"has a wrong `{argument}`; it is one of {listed}.",
                    argument,
                    value=_value(value),
                    do=did_you_mean(str(value), choices),
                )

    def _types(self) -> None:
        workflow = self.workflow
        for argument, declared in (("input", workflow.input), ("output", workflow.output)):
            if declared is None:
                continue
            if not _is_record(declared):
                self.note(
                    f"has an {argument} that is no Record.",
                    argument,
                    value=_type_of(declared),
                    do=f"Write `class {_title(argument)}(dt.Record)` and pass the class.",
                )
                continue
            mistake = _schema_mistake(declared)
            if mistake is not None:
                self.note(
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
            self.note(
                "has a `chat_field` but no input type.",
                "chat_field",
                value=_value(field),
                do="Remove it, or declare `input`.",
            )
        elif _is_record(declared):
            texts = _text_fields(declared)
            if field not in declared.__struct_fields__:
                self.note(
                    f"has a `chat_field` that is no field of {declared.__name__}.",
                    "chat_field",
                    value=_value(field),
                    do=did_you_mean(str(field), declared.__struct_fields__),
                )
            elif texts is not None and field not in texts:
                self.note(
                    f"has a `chat_field` that is no `str` field of {declared.__name__}.",
                    "chat_field",
                    value=_value(field),
                    do=did_you_mean(str(field), texts),
                )

    def _parameters(self) -> None:
        parameters = self.workflow.parameters
        if not isinstance(parameters, Parameters):
            self.note(
                "has `parameters` that are no Parameters.",
                "parameters",
                value=_kind(parameters),
                do="Write `parameters=dt.Parameters(...)`.",
            )
            return
        if parameters.others not in (None, "refuse", "honour"):
            self.note(
                "has wrong `others` parameters.",
                "parameters",
                "others",
                value=_value(parameters.others),
                do='Write "refuse" or "honour".',
            )
        listed: dict[str, str] = {}
        for group in ("honour", "fix", "ignore", "refuse"):
            names = getattr(parameters, group)
            if isinstance(names, str) or not isinstance(names, tuple | list | dict):
                self.note(
                    f"has `{group}` parameters that are no list.",
                    "parameters",
                    group,
                    value=_kind(names),
                    do=f'Write `{group}=("temperature",)`.',
                )
                continue
            for name in names:
                self._listed_parameter(group, name, listed)

    def _listed_parameter(self, group: str, name: object, listed: dict[str, str]) -> None:
        if not isinstance(name, str) or name not in KNOWN:
            self.note(
                f"names the parameter `{name}` in `{group}`, which chat completions do not have.",
                "parameters",
                group,
                value=_value(name),
                do=did_you_mean(str(name), KNOWN),
            )
            return
        if name in MANAGED:
            self.note(
                f"names the parameter `{name}` in `{group}`, which Drivetrain sets itself.",
                "parameters",
                group,
                value=_value(name),
                do=MANAGED[name],
            )
        if name in listed:
            self.note(
                f"names the parameter `{name}` in both `{listed[name]}` and `{group}`.",
                "parameters",
                group,
                value=_value(name),
                do="Keep one of them.",
            )
        listed.setdefault(name, group)

    def _budget(self) -> None:
        budget = self.workflow.budget
        if budget is None:
            return
        if not isinstance(budget, Budget):
            self.note(
                "has a budget that is no Budget.",
                "budget",
                value=_kind(budget),
                do='Write `budget=dt.Budget(usd_per_month="500")`.',
            )
            return
        for argument in budget.__struct_fields__:
            amount = getattr(budget, argument)
            mistake = None if amount is None else amount_mistake(amount)
            if mistake is not None:
                self.note(
                    f"has a budget whose `{argument}` {mistake}",
                    "budget",
                    argument,
                    value=_value(amount),
                    do=amount_fix(amount),
                )

    def _slo(self) -> None:
        slo = self.workflow.slo
        if slo is None:
            return
        if not isinstance(slo, SLO):
            self.note("has an SLO that is none.", "slo", value=_kind(slo), do="Write `slo=dt.SLO(p99_ms=1500)`.")
            return
        if slo.p99_ms is not None and not _is_whole(slo.p99_ms, 1, TIMEOUT_MOST_MS):
            self.note(
                f"has an SLO whose `p99_ms` is no whole number from 1 to {TIMEOUT_MOST_MS}.",
                "slo",
                "p99_ms",
                value=_value(slo.p99_ms),
            )
        share = slo.availability
        if share is not None and (isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1):
            do = (
                f"Write {share / 100:g}."
                if isinstance(share, int | float) and 1 < share <= 100
                else "Write for example 0.999."
            )
            self.note(
                "has an SLO whose `availability` is no share above 0 and at most 1.",
                "slo",
                "availability",
                value=_value(share),
                do=do,
            )

    def _whole(self, argument: str, value: object, most: int, step: Rule | Variant | None) -> None:
        if not _is_whole(value, 1, most):
            self.note(
                f"has a wrong `{argument}`; it is a whole number from 1 to {most}.",
                argument,
                value=_value(value),
                of=step,
            )

    def _route(self) -> None:
        route = self.workflow.route
        if not route:
            self.note(
                "has an empty route, so that nothing could answer.",
                "route",
                do='Add `dt.Variant("main", model="provider/model")`.',
            )
        if len(route) > ROUTE_STEPS_MAX:
            self.note(f"has a route of more than {ROUTE_STEPS_MAX} steps.", "route", value=str(len(route)))
        seen: set[str] = set()
        closed_by = ""
        for step in route:
            if not isinstance(step, Rule | Variant):
                self.note("has a step in its route that is no Rule and no Variant.", "route", value=_kind(step))
                continue
            self._unknown(step, step)
            self._name(step.name, step)
            if str(step.name) in seen:
                self.note(
                    "has the name of an earlier step.",
                    value=_value(step.name),
                    do="Give it another name; records tell steps apart by name.",
                    of=step,
                )
            seen.add(str(step.name))
            if closed_by:
                self.note(
                    f"can never answer: the rule `{closed_by}` before it answers everything.",
                    do="Put that rule last, or give it a condition.",
                    of=step,
                )
            if isinstance(step, Rule):
                self._rule(step)
                closed_by = closed_by or (step.name if _always(step.when) else "")
            else:
                self._variant(step)

    def _rule(self, rule: Rule) -> None:
        output = self.workflow.output
        if not callable(rule.when):
            self.note(
                "has a `when` that is no function of the input.",
                "when",
                value=_kind(rule.when),
                do="Write for example `when=lambda ticket: not ticket.text`.",
                of=rule,
            )
        then = rule.then
        if isinstance(then, type):
            self.note(
                "has a class as its `then`.",
                "then",
                value=then.__name__,
                do=f"Write an instance, `{then.__name__}(...)`, or a function of the input.",
                of=rule,
            )
        elif not callable(then):
            wanted = str if output is None else output
            if (output is None or _is_record(output)) and not isinstance(then, wanted):
                self.note(
                    f"has a `then` that is no {wanted.__name__}.",
                    "then",
                    value=_kind(then),
                    do="Write an instance of the output type, or a function of the input.",
                    of=rule,
                )

    def _variant(self, variant: Variant) -> None:
        self._model(variant)
        self._whole("max_output_tokens", variant.max_output_tokens, OUTPUT_TOKENS_MOST, variant)
        self._whole("timeout_ms", variant.timeout_ms, TIMEOUT_MOST_MS, variant)
        self._whole("first_byte_timeout_ms", variant.first_byte_timeout_ms, TIMEOUT_MOST_MS, variant)
        accept = variant.accept if isinstance(variant.accept, list | tuple) else (variant.accept,)
        for check in accept:
            if check is not None and not isinstance(check, Check) and not callable(check):
                self.note(
                    "has an `accept` that is no Check and no function.",
                    "accept",
                    value=_kind(check),
                    do="Write `accept=dt.confidence(0.9)` or a function of the output.",
                    of=variant,
                )
        self._variant_parameters(variant)
        self._prompts(variant)

    def _model(self, variant: Variant) -> None:
        if not isinstance(variant.model, str):
            self.note("has a model that is no text.", "model", value=_kind(variant.model), of=variant)
            return
        if variant.model == "" and self.spots.of(variant).file == SETTINGS_FILE:
            return  # already noted where the file was read
        mistake = model_mistake(variant.model, self.settings.provider_names if self.settings else None)
        if mistake is not None:
            self.note(
                f"has a `model` that {mistake[0]}", "model", value=_value(variant.model), do=mistake[1], of=variant
            )

    def _variant_parameters(self, variant: Variant) -> None:
        if not isinstance(variant.parameters, Mapping):
            self.note("has `parameters` that are no dict.", "parameters", value=_kind(variant.parameters), of=variant)
            return
        for name in variant.parameters:
            if name in MANAGED:
                self.note(
                    f"sets the parameter `{name}`, which Drivetrain sets itself.",
                    "parameters",
                    name,
                    do=MANAGED[name],
                    of=variant,
                )
            elif name not in KNOWN:
                near = nearest(str(name), KNOWN)
                if near is not None and _alike(str(name), near) >= NEAR_PARAMETER:
                    self.note(
                        f"sets the parameter `{name}`, which no provider has.",
                        "parameters",
                        name,
                        do=f"Did you mean `{near}`?",
                        of=variant,
                    )

    def _prompts(self, variant: Variant) -> None:
        declared = self.workflow.input
        if self.workflow.input is None and variant.prompt is not None:
            self.note(
                "has a `prompt`, but a chat workflow sends the client's messages.",
                "prompt",
                value=_value(variant.prompt),
                do="Use `system` for instructions, or declare `input`.",
                of=variant,
            )
            return
        fields = (
            (Conversation if declared is None else declared).__struct_fields__
            if declared is None or _is_record(declared)
            else None
        )
        for argument in ("prompt", "system"):
            name = getattr(variant, argument)
            if name is None:
                continue
            if not isinstance(name, str) or not name:
                self.note(f"has a `{argument}` that is no file name.", argument, value=_kind(name), of=variant)
                continue
            place = self.spots.of(variant, argument)
            path = self.prompts.find(
                name, place, f"The `{argument}` of variant `{variant.name}` of workflow `{self.workflow.name}`"
            )
            if path is not None and fields is not None:
                self.prompts.check(path, fields, f"workflow `{self.workflow.name}`")


_NOT_ARGUMENTS = ("self", "place", "unknown")
_ALWAYS = (lambda _input: True).__code__.co_code


def _always(when: object) -> bool:
    """Whether a rule's condition is plainly true for every input, as in `lambda ticket: True`."""
    if getattr(getattr(when, "pattern", None), "pattern", None) in ("", ".*", "^.*$", "(?s).*"):
        return True
    code = getattr(when, "__code__", None)
    return code is not None and code.co_code == _ALWAYS and code.co_consts[-1:] == (True,)


def _is_record(declared: object) -> bool:
    return isinstance(declared, type) and issubclass(declared, Record)


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


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _alike(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other).ratio()


def _value(value: object) -> str:
    """A value as written, where it is a plain one; else its kind."""
    return shown(value) if isinstance(value, str | int | float) else _kind(value)


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _type_of(value: object) -> str:
    return value.__name__ if isinstance(value, type) else re.sub(r"<|>", "", _kind(value))


def _title(argument: str) -> str:
    return "Ticket" if argument == "input" else "Route"
