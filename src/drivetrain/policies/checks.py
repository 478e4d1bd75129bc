"""What `drivetrain check` asks this room: every mistake in a project's policies, each with its line, and notices.

What is wrong with a declaration itself is noted while a project is loaded, by `project.policy_checks`. Nothing is
decided here, and no case is run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from drivetrain.core.declarations import Conversation, Record, Workflow
from drivetrain.core.errors import DrivetrainError, Problem, did_you_mean
from drivetrain.core.policies import Policy
from drivetrain.features.definitions import define
from drivetrain.features.online import output_names
from drivetrain.policies.analysis import Analysis, analyse
from drivetrain.policies.cells import read_cell
from drivetrain.policies.compile import CompiledPolicy, as_policy, compile_policy, table_file
from drivetrain.policies.domains import AMOUNT, ANYTHING, DEGRADED, NAMED, SHARE, Kind, kind_of, shown
from drivetrain.policies.engine import EngineMissing
from drivetrain.policies.function_checks import check_function
from drivetrain.policies.graph_parts import Graph, Graphs, Node
from drivetrain.policies.graph_reading import path_of
from drivetrain.policies.graphs import read_graphs
from drivetrain.policies.pitfalls import labels_of, pitfalls
from drivetrain.project.model_checks import notices as model_notices
from drivetrain.project.policy_checks import FOLDER
from drivetrain.project.snapshot import Snapshot

_FACTS = {"confidence": SHARE, "cost_usd": AMOUNT, "variant": NAMED, "degraded": DEGRADED}


def check(snapshot: Snapshot) -> Iterator[Problem]:
    """Every mistake in the project's policies: their tables and functions. A missing extra is told once."""
    missing: Problem | None = None
    for workflow in snapshot.workflows.values():
        if workflow.policy is None:
            continue
        try:
            yield from check_policy(as_policy(workflow.policy, workflow.name), workflow, snapshot)
        except EngineMissing as error:
            missing = Problem(what=error.what, do=error.do)
    if missing is not None:
        yield missing


def notices(snapshot: Snapshot) -> Iterator[str]:
    """What is worth knowing and is no mistake: of trained models in routes, and of policies and their tables."""
    yield from model_notices(snapshot)
    used: set[str] = set()
    for workflow in snapshot.workflows.values():
        if workflow.policy is None:
            continue
        policy = as_policy(workflow.policy, workflow.name)
        try:
            graphs = read_graphs(table_file(policy.table, snapshot.files), snapshot.files) if policy.table else None
        except DrivetrainError:
            used.add(path_of(policy.table or ""))
            continue  # `check` says why
        if graphs is not None:
            used |= set(graphs.files)
            yield from table_notices(graphs, workflow, snapshot)
    for path in snapshot.files:
        if path.startswith(FOLDER) and path.endswith(".json") and path not in used:
            yield f"{path} is a table that no policy uses"


def table_notices(graphs: Graphs, workflow: Workflow[Any, Any], snapshot: Snapshot) -> Iterator[str]:
    """What is worth a second look in a policy's tables, and what of them was not analysed."""
    kinds, labels = kinds_of(workflow), labels_of(workflow, snapshot.pinned)
    for graph in graphs.files.values():
        for node in graph.tables:
            yield from _unanalysed(analyse(node, kinds))
            yield from pitfalls(node, kinds, labels)


def _unanalysed(found: Analysis) -> Iterator[str]:
    if found.complex:
        names = ", ".join(f"`{one}`" for one in found.complex[:5])
        more = f" and {len(found.complex) - 5} more" if len(found.complex) > 5 else ""
        yield f"table `{found.table}`: rules {names}{more} compare with more than constants and are not analysed"
    if found.unfinished:
        yield f"table `{found.table}`: from rule `{found.unfinished}` on it is too large to be analysed"


def check_policy(policy: Policy, workflow: Workflow[Any, Any], snapshot: Snapshot) -> Iterator[Problem]:
    """Every mistake in one policy's table or function, as its workflow uses it.

    Raises: EngineMissing where the extra `policies` is not installed, which is no mistake of a policy.
    """
    label = f"Policy `{policy.name}` of workflow `{workflow.name}`"
    try:
        compiled = compile_policy(policy, snapshot.files)
    except EngineMissing:
        raise
    except DrivetrainError as error:
        file = getattr(error, "file", "")
        yield Problem(what=f"{label}: {error.what.removeprefix(f'{file}: ')}", file=file, do=error.do)
        return
    yield from _fields(label, compiled, workflow, snapshot)
    if compiled.graphs is None:
        yield from check_function(label, policy, workflow, snapshot.files)
        return
    kinds = kinds_of(workflow)
    for graph in compiled.graphs.files.values():
        lines = _Lines(snapshot.files[graph.file])
        for node in graph.tables:
            place = _Place(label, graph, node, lines)
            yield from _actions(policy, place)
            yield from _analysed(policy, place, analyse(node, kinds))


def analyses(compiled: CompiledPolicy, workflow: Workflow[Any, Any]) -> Iterator[Analysis]:
    """What is known of each table of a policy."""
    if compiled.graphs is not None:
        for graph in compiled.graphs.files.values():
            for node in graph.tables:
                yield analyse(node, kinds_of(workflow))


class _Place(msgspec.Struct, frozen=True):
    """A table in a file, as mistakes name it."""

    label: str
    graph: Graph
    node: Node
    lines: _Lines

    def problem(self, what: str, rule: str = "", *, value: str = "", do: str = "") -> Problem:
        line = self.lines.of(rule) if rule else 0
        table = self.node.table
        if rule and table is not None:  # a table that came from a spreadsheet is mended there, where lines differ
            place = next((place for place, one in enumerate(table.rules, 1) if one.id == rule), 0)
            what = f"{what} It is rule {place} of {len(table.rules)}."
        return Problem(what=f"{self.label}: {what}", file=self.graph.file, line=line, value=value, do=do)


def _analysed(policy: Policy, place: _Place, found: Analysis) -> Iterator[Problem]:
    table = f"table `{place.node.name}`"
    for one in found.unreachable:
        names = ", ".join(f"`{rule}`" for rule in one.because[:5])
        why = (
            f"{names} before it {'take' if len(one.because) > 1 else 'takes'} every case of it"
            if one.because
            else "no value fits its cells"
        )
        yield place.problem(
            f"rule `{one.rule}` of {table} never matches: {why}.", one.rule,
            do="Remove it, move it up, or narrow what stands before it.",
        )  # fmt: skip
    for pair in found.conflicts:
        yield place.problem(
            f"rules `{pair.rule}` and `{pair.other}` of {table} contradict each other.", pair.other,
            value=shown(pair.example) or "any case", do="Narrow one of them, or use the hit policy `first`.",
        )  # fmt: skip
    if found.gap is not None and policy.otherwise is None and _decides(place.node):
        yield place.problem(
            f"no rule of {table} matches every case, and the policy has no `otherwise`.",
            value=shown(found.gap) or "any case",
            do='Add a last rule with empty cells, or write `otherwise=dt.act("review", "no_rule")`.',
        )


def _decides(node: Node) -> bool:
    return node.table is not None and any(column.field == "action" for column in node.table.outputs)


def _actions(policy: Policy, place: _Place) -> Iterator[Problem]:
    """Actions that a table writes and the policy does not know."""
    table = place.node.table
    if table is None or not policy.actions:
        return
    for column in table.outputs:
        for rule in table.rules if column.field == "action" else ():
            action = _plain_text(rule.cells[column.id])
            if action is not None and action not in policy.actions:
                yield place.problem(
                    f"rule `{rule.id}` of table `{place.node.name}` takes an action that is not among `actions`.",
                    rule.id, value=action, do=did_you_mean(action, policy.actions),
                )  # fmt: skip


def written_actions(graphs: Graphs) -> tuple[str, ...]:
    """Actions that the rules of a policy's tables write out, in order."""
    cells = (
        rule.cells[column.id]
        for graph in graphs.files.values()
        for node in graph.tables
        if node.table is not None
        for column in node.table.outputs
        if column.field == "action"
        for rule in node.table.rules
    )
    return tuple(dict.fromkeys(one for cell in cells if (one := _plain_text(cell)) is not None))


def _plain_text(cell: str) -> str | None:
    """The text that an output cell writes; None where it writes something else."""
    test = read_cell(cell) if cell else None
    constants = test.constants if test is not None else ()
    return constants[0] if len(constants) == 1 and isinstance(constants[0], str) else None


def _fields(
    label: str, compiled: CompiledPolicy, workflow: Workflow[Any, Any], snapshot: Snapshot
) -> Iterator[Problem]:
    """Fields that are read and that no Case of this workflow has."""
    file = compiled.graphs.main if compiled.graphs is not None else ""
    known = _known(workflow, snapshot)
    for path in compiled.reads:
        root, _, rest = path.partition(".")
        fields = known.get(root)
        if not rest and root in (*known, *_FACTS):
            continue
        name = rest.partition(".")[0]
        if root not in known:
            everything = {*_FACTS, *(f"{one}.{field}" for one, names in known.items() for field in names or ())}
            yield Problem(
                what=f"{label} reads `{path}`, which no case has.", file=file, do=did_you_mean(path, everything)
            )
        elif fields is not None and name not in fields:
            do = did_you_mean(path, {f"{root}.{field}" for field in fields}) if fields else _NONE.get(root, "")
            yield Problem(what=f"{label} reads `{path}`, which {_WHOSE[root]} does not have.", file=file, do=do)
    if compiled.graphs is not None:
        everything = {*_FACTS, *(f"{one}.{field}" for one, names in known.items() for field in names or ())}
        for where, place, path in compiled.graphs.unknown:
            yield Problem(
                what=f"{label}: {place} reads `{path}`, which is neither of the case nor made by another node.",
                file=where, do=did_you_mean(path, everything),
            )  # fmt: skip


_WHOSE = {"input": "the workflow's input", "answer": "its output", "features": "its FeatureService"}
_NONE = {
    "input": "Declare `input`, a Record.",
    "answer": "Declare `output`, a Record; a text has no fields.",
    "features": "Give the workflow `features`.",
}


def _known(workflow: Workflow[Any, Any], snapshot: Snapshot) -> dict[str, tuple[str, ...] | None]:
    """Root -> its fields; None: nobody knows them."""
    features: tuple[str, ...] | None = ()
    if workflow.features is not None:
        name = workflow.features if isinstance(workflow.features, str) else workflow.features.name
        try:
            service = define(snapshot.features).services.get(name)
        except DrivetrainError:
            service = None  # the room `features` tells what is wrong with it
        features = None if service is None else tuple(name for name, _ in output_names(service))
    return {
        "input": _encoded(Conversation if workflow.input is None else workflow.input),
        "answer": () if workflow.output is None else _encoded(workflow.output),
        "features": features,
    }


def _encoded(declared: Any) -> tuple[str, ...] | None:
    return declared.__struct_encode_fields__ if isinstance(declared, type) and issubclass(declared, Record) else None


def kinds_of(workflow: Workflow[Any, Any]) -> Callable[[str], Kind]:
    """What is known of the values that a field can have, from the workflow's types.

    Of what no type speaks for, such as a feature, it is whatever the cells compare with.
    """
    roots = {"input": Conversation if workflow.input is None else workflow.input, "answer": workflow.output}

    def of(field: str) -> Kind:
        if field in _FACTS:
            return _FACTS[field]
        root, *names = field.split(".")
        declared = roots.get(root)
        if not names or not (isinstance(declared, type) and issubclass(declared, msgspec.Struct)):
            return ANYTHING
        found: Any = msgspec.inspect.type_info(declared)
        for name in names:
            if not isinstance(found, msgspec.inspect.StructType):
                return ANYTHING
            inner = next((one for one in found.fields if one.encode_name == name), None)
            if inner is None:
                return ANYTHING
            found = inner.type
        return kind_of(found)

    return of


class _Lines:
    """Where a rule stands in its file, as far as its id can be found there."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def of(self, rule: str) -> int:
        """1-based; 0 where it cannot be found."""
        at = self._content.find(json.dumps(rule, ensure_ascii=False).encode())
        return self._content.count(b"\n", 0, at) + 1 if at >= 0 else 0
