"""The registry: immutable, numbered versions of trained models, and aliases whose every move is in the control log.

Owns the registry's folder and the order in which a version comes to be: files, digest, manifest, one rename, the note
in the control log. A version that was published before its maker was killed is noted by the next change. Formats and
scoring are others'. Called by imports, training and the commands.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.lineage import MADE
from drivetrain.core.models import (
    ALIAS_MOVED,
    ARTIFACT,
    FORMATS,
    MANIFEST,
    NAME,
    FileV1,
    ModelVersionV1,
    Pinned,
    Reference,
    Signature,
)
from drivetrain.lineage.lineage import Lineage
from drivetrain.ports.control import ControlLog
from drivetrain.ports.disk import sync_folder
from drivetrain.registry.aliases import (
    ALIASES_MAX,
    AliasMove,
    check_alias,
    moves,
    read_aliases,
    standing,
    write_aliases,
)
from drivetrain.registry.artifacts import (
    RESTORE,
    artifact_digest,
    artifact_folder,
    describe_files,
    manifest_hash,
    open_artifact,
    read_manifest,
    write_files,
)
from drivetrain.registry.diff import Difference, difference
from drivetrain.registry.export import Export, export_version
from drivetrain.registry.references import find_reference
from drivetrain.registry.signatures import check_signature
from drivetrain.registry.verify import Verified, verify
from drivetrain.registry.workplaces import Workplaces

UNNOTED = "unnoted"
"""A file in a version's folder until the control log knows of it."""
NUMBER_MAX = 999_999_999
"""Nine digits, as a reference takes."""
EXPORTED = "exported"
"""The control log's kind of exports."""


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """What a version will be, before it has a number. Fields are those of ModelVersionV1."""

    name: str
    format: str
    signature: Signature
    files: Mapping[str, bytes | Path]
    """Path inside the artifact -> content, or where to copy it from."""
    owner: str = ""
    licence: str = ""
    description: str = ""
    dataset: str = ""
    dataset_hash: str = ""
    code_hash: str = ""
    environment_hash: str = ""
    recipe: str = ""
    seed: int = 0
    metrics: Mapping[str, float] = {}
    thresholds: Mapping[str, float] = {}
    report: str | Callable[[int], str] = ""
    """Its id; or what keeps it once the number is known, and gives its id. Called before the version is published,
    while no other process registers."""
    source: str = ""
    inputs: tuple[str, ...] = ()
    """Artifacts that it was made from besides its Dataset."""


class Registry:
    """The models of a project.

    folder: `models` in the data folder. Versions are put together in `tmp` beside it, on the same disk. Reading makes
    no folder.
    """

    def __init__(
        self,
        folder: Path,
        control: ControlLog,
        lineage: Lineage,
        *,
        now_ns: Callable[[], int] = time.time_ns,
        actor: str = "",
    ) -> None:
        self.folder = folder
        self.workplaces = Workplaces(folder.with_name("tmp"))
        self._control = control
        self._lineage = lineage
        self._now_ns = now_ns
        self._actor = actor

    # Versions.

    def register(self, draft: Draft) -> ModelVersionV1:
        """The next number of a model: whole, hashed, noted with its lineage; or nothing is left of it.

        Raises: DrivetrainError.
        """
        check_name(draft.name)
        if draft.format not in FORMATS:
            raise DrivetrainError(
                f"`{draft.format[:50]}` is no format of a model.", do=did_you_mean(draft.format, FORMATS)
            )
        check_signature(draft.signature)
        check_figures(draft)
        with self.workplaces.folder() as work:
            begun = work / "version"
            try:
                write_files(begun / ARTIFACT, draft.files)
                return self._publish(draft, begun, describe_files(begun / ARTIFACT))
            except OSError as error:
                raise DrivetrainError(
                    f"Model `{draft.name}` cannot be written: {error.strerror or error}.",
                    looked=[str(self.folder)],
                    do="Nothing of it is left. Make room on that disk, or let us write there.",
                ) from error

    def names(self) -> list[str]:
        """Every model's name."""
        if not self.folder.is_dir():
            return []
        return sorted(one.name for one in self.folder.iterdir() if NAME.fullmatch(one.name) and self.numbers(one.name))

    def numbers(self, name: str) -> list[int]:
        """Every number of a model, rising; none where there is no such model."""
        folder = self.folder / name
        if NAME.fullmatch(name) is None or not folder.is_dir():
            return []
        found = [int(one.name) for one in folder.iterdir() if one.name.isascii() and one.name.isdecimal()]
        return sorted(one for one in found if one > 0 and (folder / str(one) / MANIFEST).is_file())

    def versions(self, name: str) -> list[ModelVersionV1]:
        """Every version of a model, by number. Raises: DrivetrainError where it is unknown or one cannot be read."""
        return [self.version(name, number) for number in self._known(name)]

    def version(self, name: str, number: int) -> ModelVersionV1:
        """One version's manifest. Raises: DrivetrainError where there is none, or it cannot be read."""
        known = self._known(name)
        if number not in known:
            raise DrivetrainError(
                f"Model `{name}` has no version {number}.",
                looked=[str(self.folder / name)],
                do=f"Its versions: {', '.join(map(str, known[-20:]))}.",
            )
        path = self.folder / name / str(number) / MANIFEST
        found = read_manifest(path)
        if (found.name, found.number) != (name, number):
            raise DrivetrainError(f"The manifest {path} is that of {found.artifact}.", do=RESTORE)
        return found

    def find(self, reference: str | Reference) -> ModelVersionV1:
        """What `NAME` (its newest), `NAME@ALIAS`, `NAME@NUMBER`, `NAME/NUMBER` or `models:/...` of these names now.

        Raises: DrivetrainError.
        """
        wanted = find_reference(reference) if isinstance(reference, str) else reference
        known = self._known(wanted.name)
        if not wanted.alias:
            return self.version(wanted.name, wanted.number or known[-1])
        aliases = self.aliases(wanted.name)
        if wanted.alias not in aliases:
            raise DrivetrainError(
                f"Model `{wanted.name}` has no alias `{wanted.alias}`.",
                looked=[str(self.folder / wanted.name)],
                do=did_you_mean(wanted.alias, aliases)
                if aliases
                else f'Run `drivetrain models alias {wanted.name} {wanted.alias} NUMBER --reason "..."`.',
            )
        return self.version(wanted.name, aliases[wanted.alias])

    def resolve(self, reference: str | Reference) -> Pinned:
        """As `find`, with what is needed to load and to score. Raises: DrivetrainError."""
        return pinned(self.find(reference))

    # Files.

    def artifact_folder(self, pinned: Pinned) -> Path:
        """Where its files are, unchecked; `open` checks them."""
        return artifact_folder(self.folder, pinned.name, pinned.number)

    def open(self, pinned: Pinned) -> Path:
        """Where its files are, every byte checked. Raises: DrivetrainError as `open_artifact`."""
        return open_artifact(self.folder, pinned)

    # Aliases.

    def aliases(self, name: str) -> dict[str, int]:
        """Alias -> number, as references are resolved now."""
        return read_aliases(self.folder / name) if NAME.fullmatch(name) else {}

    def move_alias(self, name: str, alias: str, number: int, reason: str) -> AliasMove:
        """Let an alias stand for a version from now on; in the control log first. Nothing that is served changes.

        The version's files are checked before. Raises: DrivetrainError.
        """
        check_alias(alias, reason)
        version = self.version(name, number)
        self.open(pinned(version))
        with self.workplaces.locked():
            self._note_published()
            now = standing(moves(self._control.records(), name))
            if alias not in now and len(now) >= ALIASES_MAX:
                raise DrivetrainError(f"Model `{name}` has {ALIASES_MAX} aliases, which is the most there can be.")
            body = {"from": now.get(alias, 0), "to": number, "digest": version.digest, "reason": reason}
            record = self._control.append(
                kind=ALIAS_MOVED, actor=self._actor, subject=f"{name}@{alias}", body=body
            )  # fmt: skip
            try:
                write_aliases(self.folder / name, {**now, alias: number})
            except OSError as error:
                raise DrivetrainError(
                    f"The control log has the move of {name}@{alias} to {number}, and its file cannot be written: "
                    f"{error.strerror or error}.",
                    looked=[str(self.folder / name)],
                    do="Make room on that disk, and move the alias again.",
                ) from error
        return next(moves([record], name))

    def history(self, name: str) -> list[AliasMove]:
        """Every move of a model's aliases, oldest first. Raises: DrivetrainError."""
        return list(moves(self._control.records(), name))

    def alias_at(self, name: str, alias: str, at_ns: int) -> AliasMove | None:
        """The move by which an alias stood where it did at a moment; None: it did not exist yet."""
        return next((one for one in reversed(self.history(name)) if one.alias == alias and one.at_ns <= at_ns), None)

    # What is asked of versions.

    def verify(self, reference: str | Reference) -> Verified:
        """Whether files, manifest, aliases and the control log agree. Raises: DrivetrainError where it is unknown."""
        wanted = find_reference(reference) if isinstance(reference, str) else reference
        name = wanted.name
        number = wanted.number or (self.find(wanted).number if wanted.alias else self._known(name)[-1])
        try:
            version = self.version(name, number)
        except DrivetrainError as error:
            if number not in self.numbers(name):
                raise
            return Verified(artifact=f"model:{name}@{number}", findings=(error.what,))
        return verify(self.folder, version, list(self._control.records()))

    def diff(self, before: str, after: str) -> Difference:
        """What differs between two versions. Raises: DrivetrainError."""
        return difference(self.find(before), self.find(after))

    def export(self, reference: str, to: Path, *, layout: str = "folder") -> Export:
        """A copy of one version in a folder that is not there yet: files, manifest and a model card.

        layout: `folder`, or `mlflow` for a folder that MLflow reads. The control log keeps that it was done.
        Raises: DrivetrainError.
        """
        version = self.find(reference)
        source = self.open(pinned(version))
        return export_version(
            version, source, to, layout=layout,
            noted=lambda: self._control.append(
                kind=EXPORTED, actor=self._actor, subject=version.artifact,
                body={"digest": version.digest, "layout": layout, "to": to.name},
            ),
        )  # fmt: skip

    # How a version comes to be.

    def _publish(self, draft: Draft, begun: Path, files: tuple[FileV1, ...]) -> ModelVersionV1:
        digest = artifact_digest(draft.format, draft.signature, files)
        with self.workplaces.locked():
            self._note_published()
            place = self.folder / draft.name
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            number = self._next_number(place)
            if number > NUMBER_MAX:
                raise DrivetrainError(f"Model `{draft.name}` has no number left.", do="Choose another name.")
            report = draft.report if isinstance(draft.report, str) else draft.report(number)
            version = _version(
                draft, number, digest, files, report=report, made_ns=self._now_ns(), made_by=self._actor
            )  # fmt: skip
            content = msgspec.json.format(msgspec.json.encode(version), indent=1) + b"\n"
            _write_synced(begun / UNNOTED, msgspec.json.encode(sorted(draft.inputs)))
            _write_synced(begun / MANIFEST, content)
            _sync_tree(begun)
            begun.rename(place / str(number))
            sync_folder(place)
            sync_folder(self.folder)
            try:
                self._note(version, list(draft.inputs))
            except BaseException:
                # Nobody was told of it, and what the control log does not know is no version.
                shutil.rmtree(place / str(number), ignore_errors=True)
                with contextlib.suppress(OSError):
                    place.rmdir()  # where it was the first
                raise
            return version

    def _next_number(self, place: Path) -> int:
        """Above every number that is there or ever was: an alias of a version that was deleted stands for no other."""
        there = [one.name for one in place.iterdir()]
        prefix = f"model:{place.name}@"
        made = (one.subject for one in self._control.records() if one.kind == MADE)
        noted = [one.removeprefix(prefix) for one in made if one.startswith(prefix)]
        return 1 + max((int(one) for one in (*there, *noted) if one.isascii() and one.isdecimal()), default=0)

    def _note(self, version: ModelVersionV1, inputs: list[str]) -> None:
        """Lineage in the control log, then the mark that says otherwise goes."""
        made_from = [f"dataset:{version.dataset}"] if version.dataset else []
        self._lineage.made(
            version.artifact,
            inputs=[*made_from, *inputs],
            code_hash=version.code_hash,
            facts={"digest": version.digest, "format": version.format, "manifest_sha256": manifest_hash(version)},
        )
        folder = self.folder / version.name / str(version.number)
        (folder / UNNOTED).unlink()
        sync_folder(folder)

    def _note_published(self) -> None:
        """Note what killed processes had published and not noted yet."""
        for mark in self.folder.glob(f"*/*/{UNNOTED}"):
            folder = mark.parent
            with contextlib.suppress(DrivetrainError, msgspec.MsgspecError, FileNotFoundError):  # `verify` tells
                version = read_manifest(folder / MANIFEST)
                self._note(version, msgspec.json.decode(mark.read_bytes(), type=list[str]))

    def _known(self, name: str) -> list[int]:
        """Its numbers; one at least. Raises: DrivetrainError."""
        found = self.numbers(name)
        if not found:
            known = self.names()
            raise DrivetrainError(
                f"There is no model `{name[:100]}`.",
                looked=[str(self.folder)],
                do=did_you_mean(name, known)
                if known
                else "`drivetrain train` and `drivetrain models import` make one.",
            )
        return found


def check_name(name: str) -> None:
    """Raises: DrivetrainError where a model cannot be called so."""
    if NAME.fullmatch(name) is None:
        raise DrivetrainError(
            f"{name[:100]!r} is no name for a model.",
            do="A name starts with a small letter and has at most 64 of a-z, 0-9, `_` and `-`.",
        )


def check_figures(draft: Draft) -> None:
    """Raises: DrivetrainError for a metric or a threshold that is no finite number: a manifest cannot hold it."""
    for what, figures in (("metric", draft.metrics), ("threshold", draft.thresholds)):
        for name, value in figures.items():
            if not math.isfinite(value):
                raise DrivetrainError(
                    f"Model `{draft.name}` has a {what} `{name[:80]}` that is no finite number: {value}.",
                    do="Leave it out where it cannot be computed, such as a figure of no rows or of one label only.",
                )


def pinned(version: ModelVersionV1) -> Pinned:
    """What is needed to load and to score a version."""
    return Pinned(
        name=version.name, number=version.number, digest=version.digest, format=version.format,
        signature=version.signature, thresholds=version.thresholds,
    )  # fmt: skip


def _version(
    draft: Draft, number: int, digest: str, files: tuple[FileV1, ...], *, report: str, made_ns: int, made_by: str
) -> ModelVersionV1:
    taken = ("owner", "licence", "description", "dataset", "dataset_hash", "code_hash", "environment_hash", "recipe")
    told = {name: getattr(draft, name) for name in (*taken, "seed", "source")}
    return ModelVersionV1(
        name=draft.name, number=number, format=draft.format, digest=digest, signature=draft.signature, files=files,
        report=report, made_ns=made_ns, made_by=made_by, metrics=dict(draft.metrics),
        thresholds=dict(draft.thresholds), **told,
    )  # fmt: skip


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_tree(folder: Path) -> None:
    """Every folder's entries; the files were flushed when they were written."""
    for one in folder.rglob("*"):
        if one.is_dir():
            sync_folder(one)
    sync_folder(folder)
