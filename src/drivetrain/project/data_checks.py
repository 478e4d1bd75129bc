"""Everything that is wrong with what a workflow says about data: its features, its business key, how long it is kept.

Owns `features`, `features_missing`, `entity_keys`, `outcome_key` and `keep_days`. Called by `checks`. What a feature
service is made of is for the room `features/`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from drivetrain.core.declarations import FEATURES_MISSING, Workflow
from drivetrain.core.errors import did_you_mean
from drivetrain.core.features import FeatureService
from drivetrain.project.workflow_notes import WorkflowNotes, is_record, kind, written

KEEP_DAYS_MOST = 36_500
"""A century."""


class DataCheck:
    """One workflow being checked."""

    def __init__(self, notes: WorkflowNotes, services: Collection[str]) -> None:
        self.workflow: Workflow[Any, Any] = notes.workflow
        self.notes = notes
        self.services = services

    def run(self) -> None:
        """Notes every mistake."""
        if self.workflow.keep_days is not None:
            self.notes.whole("keep_days", self.workflow.keep_days, KEEP_DAYS_MOST, None)
        self.notes.choice("features_missing", self.workflow.features_missing, FEATURES_MISSING)
        self._features()
        self._entity_keys()
        self._outcome_key()

    def _features(self) -> None:
        features = self.workflow.features
        if features is None:
            if self.workflow.entity_keys:
                self.notes.note("has `entity_keys`, but no `features`.", "entity_keys", do="Name a FeatureService.")
            return
        if isinstance(features, FeatureService):
            return
        if not isinstance(features, str):
            self.notes.note(
                "has `features` that are no FeatureService.", "features", value=kind(features),
                do="Write a dt.FeatureService or the name of one.",
            )  # fmt: skip
        elif features not in self.services:
            do = did_you_mean(features, self.services) or "Declare a dt.FeatureService in `features/`."
            self.notes.note("names a FeatureService that is not declared.", "features", value=written(features), do=do)

    def _entity_keys(self) -> None:
        fields, keys = self._fields(), self.workflow.entity_keys
        if not isinstance(keys, Mapping):
            self.notes.note(
                "has `entity_keys` that are no dict.", "entity_keys", value=kind(keys),
                do='Write for example `entity_keys={"customer_id": "customer"}`.',
            )  # fmt: skip
            return
        for name, source in keys.items():
            if isinstance(source, str) and (source == "user" or (source.startswith("tag:") and len(source) > 4)):
                continue
            if fields is not None and source not in fields:
                self.notes.note(
                    f"reads the entity key `{name}` from `{source}`, which its input does not have.", "entity_keys",
                    name, value=written(source), do=did_you_mean(str(source), {*fields, "user", "tag:NAME"}),
                )  # fmt: skip

    def _outcome_key(self) -> None:
        field, fields = self.workflow.outcome_key, self._fields()
        if field is None or fields is None:
            return
        if self.workflow.input is None:
            self.notes.note(
                "has an `outcome_key`, but a conversation has no field that could be one.", "outcome_key",
                value=written(field), do="Declare `input`, or name Calls by their id.",
            )  # fmt: skip
        elif field not in fields:
            self.notes.note(
                "has an `outcome_key` that is no field of its input.", "outcome_key", value=written(field),
                do=did_you_mean(str(field), fields),
            )  # fmt: skip

    def _fields(self) -> tuple[str, ...] | None:
        """Of the input; None where it is no Record, which is noted elsewhere."""
        declared = self.workflow.input
        if declared is None:
            return ()
        return declared.__struct_fields__ if is_record(declared) else None
