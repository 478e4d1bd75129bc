"""A project's folder -> a Snapshot, or every mistake in it. The one door through which projects are read.

The story: collect the files, read drivetrain.toml for one environment, import the project's code under
the hash of all that, check every declaration, and hand over an immutable Snapshot.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from drivetrain.core.declarations import SLO, Budget, Cache, Parameters, Stale, Variant, Workflow
from drivetrain.core.errors import Problem, ProjectError, did_you_mean, nearest
from drivetrain.core.evals import Eval
from drivetrain.core.features import FeatureService
from drivetrain.core.models import Pinned
from drivetrain.core.recipes import TrainedModel
from drivetrain.project.chat_workflows import read_workflows
from drivetrain.project.checks import Surroundings, check_keys, check_workflows
from drivetrain.project.declared import Declarations, declared_in_code, features_of
from drivetrain.project.direct import direct_workflows
from drivetrain.project.document import Parsed, environment_name, overlay, parse
from drivetrain.project.eval_checks import check_evals, fit_evals
from drivetrain.project.files import SETTINGS_FILE, collect, hash_of, top_level_names
from drivetrain.project.limits import budget_limits, check_scopes
from drivetrain.project.modules import Package, close_package, open_package
from drivetrain.project.pins import pins, pins_digest
from drivetrain.project.policy_checks import check_policies
from drivetrain.project.problems import Problems, shown
from drivetrain.project.prompts import Prompts
from drivetrain.project.release_rules import check_rules
from drivetrain.project.secrets import references
from drivetrain.project.settings import Settings, read
from drivetrain.project.snapshot import Features, Snapshot, Versions
from drivetrain.project.source_checks import check_sources
from drivetrain.project.spots import Spots
from drivetrain.project.tables import Table
from drivetrain.project.toml_lines import TomlPath
from drivetrain.project.training_checks import check_trained_models


def load(
    root: Path,
    environment: str | None = None,
    *,
    unresolved_models: Literal["refuse", "leave"] = "refuse",
    also: Also | None = None,
) -> Snapshot:
    """The project in `root`, for one environment, checked.

    environment: by default $DRIVETRAIN_ENV, else `[project] default_env`. Secrets are not looked up. unresolved_models:
    what to do with references to models that the registry does not hold; whoever makes these models and serves nothing
    leaves them. also: asked for more mistakes in the evals where there are mistakes, so that all are told at once.
    Raises: ProjectError with every mistake found.
    """
    root = root.resolve()
    problems = Problems()
    files = collect(root, problems)
    if SETTINGS_FILE not in files:
        what = f"{root} has no {SETTINGS_FILE}."
        problems.add(what, file=SETTINGS_FILE, do="Run `drivetrain init my-ai` to make a project.")
        raise ProjectError(problems.sorted())
    parsed = parse(files[SETTINGS_FILE], problems)
    environment = environment_name(parsed, environment, os.environ)
    source = Source(
        files=files, root=root, code_root=root, environment=environment, leaves_models=unresolved_models == "leave"
    )
    return build(source, parsed, problems, also)


def content_hash(root: Path, environment: str | None = None) -> str:
    """The hash that `load` would give, without importing or checking anything: has the project changed?"""
    root, problems = root.resolve(), Problems()
    files = collect(root, problems)
    parsed = parse(files.get(SETTINGS_FILE, b""), problems)
    environment = environment_name(parsed, environment, os.environ)
    settings = read(overlay(parsed, environment, problems), root, problems) if parsed is not None else None
    source = Source(files=files, root=root, code_root=root, environment=environment)
    return source.with_pins(settings).digest


def unload(snapshot: Snapshot) -> None:
    """Lets go of a Snapshot's modules, once its last call has ended."""
    close_package(snapshot.package)


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What a Snapshot is built from: files, where they stand, and what the hash is over besides them."""

    files: Mapping[str, bytes]
    root: Path
    """The project's folder."""
    code_root: Path
    """Where the files stand, for tracebacks: the project's folder, or where the Snapshot is stored."""
    environment: str
    versions: Versions = Versions()
    pinned: Mapping[str, Pinned] | None = None
    """What its references to trained models stand for; None: what the registry says now."""
    leaves_models: bool = False
    """Whether references that cannot be resolved are no mistake; then nobody serves the Snapshot."""

    def with_pins(self, settings: Settings | None) -> Source:
        """The same, its references resolved."""
        if self.pinned is not None:
            return self
        found = pins(self.files, self.root / settings.ledger.folder) if settings is not None else {}
        return msgspec.structs.replace(self, pinned=found)

    @property
    def digest(self) -> str:
        return hash_of(self.files, self.environment, self.versions, pins_digest(self.pinned or {}))


class DeclaredEvals(msgspec.Struct, frozen=True):
    """The evals of a project that has mistakes, with what tells their lines; a Snapshot has the same."""

    evals: Mapping[str, Eval]
    root: Path
    files: Mapping[str, bytes]


Also = Callable[[DeclaredEvals], Iterable[Problem]]
"""More mistakes in evals, told by a room above this one."""


class Declared(msgspec.Struct, frozen=True):
    """What was declared, with what is needed to find its prompts and its lines."""

    workflows: list[Workflow[Any, Any]]
    features: Features
    trained: list[TrainedModel]
    evals: list[Eval]
    prompts: Prompts
    spots: Spots
    direct_line: int
    """Line of `direct_models`."""


def build(source: Source, parsed: Parsed | None, problems: Problems, also: Also | None = None) -> Snapshot:
    """A Snapshot from a project's files; `problems` holds what was found wrong while reading them. also: see `load`.

    Raises: ProjectError with every mistake found.
    """
    spots = Spots(source.files)
    settings: Settings | None = None
    workflows: list[Workflow[Any, Any]] = []
    lines: Mapping[TomlPath, int] = {}
    if parsed is not None:
        document = overlay(parsed, source.environment, problems)
        settings = read(document, source.root, problems)
        lines = document.lines
        tables = Table(document.values, (), lines, problems).table("workflows")
        workflows = read_workflows(tables, source.code_root, spots)
        _check_other_environments(parsed, source, problems)
    source = source.with_pins(settings)
    package = open_package(source.digest, source.code_root, source.files, top_level_names(source.files))
    spots.package = package
    snapshot: Snapshot | None = None
    try:
        declarations = declared_in_code(package, problems, _add_import_problem)
        workflows += declarations.of(Workflow)
        features = features_of(_with_services(declarations, workflows), spots, problems)
        check_sources(features, [str(one.name) for one in workflows], spots, problems)
        trained = declarations.of(TrainedModel)
        check_trained_models(trained, spots, problems)
        prompts = Prompts(source.files, problems)
        around = Surroundings(
            settings, prompts, features.services, source.pinned or {}, source.root, source.leaves_models
        )
        check_workflows(workflows, around, spots, problems)
        check_policies(workflows, source.files, spots, problems)
        evals = declarations.of(Eval)
        check_evals(evals, workflows, spots, problems)
        if settings is not None:
            snapshot = _snapshot(
                source,
                package.name,
                settings,
                Declared(
                    workflows, features, trained, evals, prompts, spots, lines.get(("gateway", "direct_models"), 0)
                ),
                problems,
            )
            _check_names(settings, snapshot, lines, problems)
        if problems and also is not None:
            for one in also(DeclaredEvals(fit_evals(evals), source.root, source.files)):
                problems.add(one.what, file=one.file, line=one.line, value=one.value, do=one.do)
        if problems or snapshot is None:
            raise ProjectError(problems.sorted())
    except BaseException:
        package.close()
        raise
    package.keep_lines()
    return snapshot


def _check_other_environments(parsed: Parsed, source: Source, problems: Problems) -> None:
    """Notes the mistakes in the overlays of the environments that are not being loaded."""
    overlays = parsed.values.get("env")
    for name in overlays if isinstance(overlays, dict) else ():
        if name == source.environment:
            continue
        found = Problems()
        document = overlay(parsed, name, found)
        read(document, source.root, found)
        tables = Table(document.values, (), document.lines, found).table("workflows")
        read_workflows(tables, source.code_root, Spots({}))
        for problem in found.sorted():
            if problem.line in document.overlay_lines:
                problems.add(problem.what, file=problem.file, line=problem.line, value=problem.value, do=problem.do)


def _add_import_problem(error: BaseException, path: str, package: Package, problems: Problems) -> None:
    """Notes why a module could not be imported, at the deepest line of the project's own code."""
    file, line, message = path, 0, str(error)
    for frame in traceback.extract_tb(error.__traceback__):
        relative = package.relative(frame.filename)
        if relative is not None:
            file, line = relative, frame.lineno or 0
    if isinstance(error, SyntaxError):
        relative = package.relative(error.filename or "")
        if relative is not None:
            file, line = relative, error.lineno or 0
        message = error.msg
    message = (
        message.replace(f"{package.name}.", "")
        .replace(f"{package.code_root}/", "")
        .replace(package.name, "the project")
    )
    what = f"The module cannot be imported: {type(error).__name__}: {message}".rstrip(":. ") + "."
    problems.add(what, file=file, line=line, do=_import_help(error, message, package))


def _import_help(error: BaseException, message: str, package: Package) -> str:
    if isinstance(error, SystemExit):
        return "A module of the project must not end the process; put scripts outside `workflows/`."
    if isinstance(error, ModuleNotFoundError):
        known = [
            path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            for path in package.files
            if path.endswith(".py")
        ]
        missing = (error.name or "").removeprefix(f"{package.name}.")
        near = nearest(missing, known)
        return f"Did you mean `{near}`?" if near else f"Install `{missing.partition('.')[0]}`, or correct its name."
    if isinstance(error, ImportError):
        names = re.search(r"cannot import name '([^']+)'", message)
        module = _names_in_module(error)
        return did_you_mean(names[1], module) if names and module else ""
    argument = re.search(r"[Uu]nexpected keyword argument '([^']+)'", message)
    if isinstance(error, TypeError) and argument:
        for declared in (Budget, Cache, SLO, Stale, Parameters):
            near = nearest(argument[1], declared.__struct_fields__)
            if near is not None:
                return f"Did you mean `{near}`?"
    return ""


def _names_in_module(error: ImportError) -> list[str]:
    module = sys.modules.get(error.name or "")
    return [] if module is None else [name for name in vars(module) if not name.startswith("_")]


def _snapshot(source: Source, package: str, settings: Settings, declared: Declared, problems: Problems) -> Snapshot:
    named = {str(workflow.name): workflow for workflow in declared.workflows}
    for workflow in named.values():
        workflow.project = str(source.root)
        for step in workflow.route:
            if isinstance(step, Variant):
                _name_prompts_by_path(step, declared.prompts, declared.spots)
    direct = direct_workflows(
        settings, source.root, declared.direct_line, source.pinned or {}, problems, taken=named.keys(),
        leaves_models=source.leaves_models,
    )  # fmt: skip
    return Snapshot(
        hash=source.digest,
        name=settings.name,
        environment=source.environment,
        root=source.root,
        package=package,
        versions=source.versions,
        files=source.files,
        templates=declared.prompts.templates,
        workflows=named | direct,
        direct=frozenset(direct),
        providers=settings.providers,
        models=settings.models,
        keys=settings.keys,
        limits=settings.limits | {limit.name: limit for one in named.values() for limit in budget_limits(one)},
        teams=tuple(settings.teams),
        gateway=settings.gateway,
        ledger=settings.ledger,
        lake=settings.lake,
        features=declared.features,
        pinned=source.pinned or {},
        trained={str(one.name): one for one in declared.trained},
        evals={str(one.name): one for one in declared.evals},
        rules=settings.rules,
    )


def _with_services(declarations: Declarations, workflows: list[Workflow[Any, Any]]) -> Declarations:
    """With the services that only a workflow holds, as an argument."""
    own = [one.features for one in workflows if isinstance(one.features, FeatureService)]
    known = {id(one) for one in declarations.found}
    return Declarations((*declarations.found, *(one for one in own if id(one) not in known)))


def _name_prompts_by_path(variant: Variant, prompts: Prompts, spots: Spots) -> None:
    """Makes `prompt` and `system` the keys of the Snapshot's templates, because two folders may hold one name."""
    for argument in ("prompt", "system"):
        name = getattr(variant, argument)
        if isinstance(name, str) and name not in prompts.templates:
            path = prompts.path_of(name, spots.of(variant).file)
            if path is not None:
                setattr(variant, argument, path)


def _check_names(settings: Settings, snapshot: Snapshot, lines: Mapping[TomlPath, int], problems: Problems) -> None:
    """Notes keys and limits that name what nobody declares, and references to secrets in the Snapshot."""

    def line_of(key: str, index: int) -> int:
        return lines.get(("keys", key, "workflows", index), 0)

    check_keys(settings, snapshot.workflows.keys(), line_of, problems)
    known_teams = {*settings.teams, settings.direct_team} if settings.teams else None
    check_scopes(settings.limits.values(), snapshot.workflows.keys(), known_teams, problems, lines)
    check_rules(settings.rules, snapshot.workflows.keys(), lines, problems)
    for where, secret in references(snapshot).items():
        kind, _, path = secret.reference.partition(":")
        if kind == "file" and Path(path).as_posix() in snapshot.files:
            problems.add(
                f"`{where}` keeps its secret in a file that is part of the project's Snapshot.", file=SETTINGS_FILE,
                line=lines.get(tuple(where.split(".", 2)), 0), value=shown(path), do="Move the file to `secrets/`.",
            )  # fmt: skip
