"""Drivetrain: everything that turns a model's power into motion.

The names a project needs. Importing this package opens nothing and starts nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from drivetrain.core import scorers
from drivetrain.core.declarations import (
    SLO,
    Budget,
    Cache,
    Check,
    Conversation,
    Parameters,
    Record,
    Reject,
    Rule,
    Stale,
    Static,
    Variant,
    Workflow,
    confidence,
)
from drivetrain.core.errors import DrivetrainError, ProjectError, RequestError
from drivetrain.core.evals import Eval, Score, Scorer
from drivetrain.core.features import (
    Aggregation,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    OnDemandFeatureView,
    PushSource,
    RequestSource,
    SqlSource,
    TableSource,
    on_demand_feature_view,
)
from drivetrain.core.models import Column, Signature
from drivetrain.core.policies import Action, Case, Decided, Explore, Gains, Policy, act
from drivetrain.core.recipes import (
    Examples,
    TabularClassification,
    TabularRegression,
    TextClassification,
    Trained,
    TrainedModel,
    recipe,
)
from drivetrain.core.rollouts import Guard, Rollout, Shadow, Stage
from drivetrain.core.sources import Source
from drivetrain.version import VERSION as __version__

if TYPE_CHECKING:
    from drivetrain.embedded.asking import open_lake, sql
    from drivetrain.embedded.eval_runs import run_eval
    from drivetrain.embedded.feature_store import feature_store
    from drivetrain.embedded.modelling import import_model, open_registry
    from drivetrain.embedded.outcomes import record_outcome, record_outcomes
    from drivetrain.embedded.training import train

__all__ = [
    "SLO",
    "Action",
    "Aggregation",
    "Budget",
    "Cache",
    "Case",
    "Check",
    "Column",
    "Conversation",
    "Decided",
    "DrivetrainError",
    "Entity",
    "Eval",
    "Examples",
    "Explore",
    "FeatureService",
    "FeatureView",
    "Field",
    "FileSource",
    "Gains",
    "Guard",
    "OnDemandFeatureView",
    "Parameters",
    "Policy",
    "ProjectError",
    "PushSource",
    "Record",
    "Reject",
    "RequestError",
    "RequestSource",
    "Rollout",
    "Rule",
    "Score",
    "Scorer",
    "Shadow",
    "Signature",
    "Source",
    "SqlSource",
    "Stage",
    "Stale",
    "Static",
    "TableSource",
    "TabularClassification",
    "TabularRegression",
    "TextClassification",
    "Trained",
    "TrainedModel",
    "Variant",
    "Workflow",
    "__version__",
    "act",
    "confidence",
    "feature_store",
    "import_model",
    "on_demand_feature_view",
    "open_lake",
    "open_registry",
    "recipe",
    "record_outcome",
    "record_outcomes",
    "run_eval",
    "scorers",
    "sql",
    "train",
]

_LATER = {
    "feature_store": "drivetrain.embedded.feature_store",
    "import_model": "drivetrain.embedded.modelling",
    "open_lake": "drivetrain.embedded.asking",
    "open_registry": "drivetrain.embedded.modelling",
    "record_outcome": "drivetrain.embedded.outcomes",
    "record_outcomes": "drivetrain.embedded.outcomes",
    "run_eval": "drivetrain.embedded.eval_runs",
    "sql": "drivetrain.embedded.asking",
    "train": "drivetrain.embedded.training",
}
"""Where names are that a project's declarations do not need: imported when they are first used."""


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
