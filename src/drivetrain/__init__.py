"""Drivetrain: everything that turns a model's power into motion.

The names a project needs. Importing this package opens nothing and starts nothing.
"""

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
from drivetrain.core.sources import Source
from drivetrain.version import VERSION as __version__

__all__ = [
    "SLO",
    "Aggregation",
    "Budget",
    "Cache",
    "Check",
    "Conversation",
    "DrivetrainError",
    "Entity",
    "FeatureService",
    "FeatureView",
    "Field",
    "FileSource",
    "OnDemandFeatureView",
    "Parameters",
    "ProjectError",
    "PushSource",
    "Record",
    "Reject",
    "RequestError",
    "RequestSource",
    "Rule",
    "Source",
    "SqlSource",
    "Stale",
    "Static",
    "TableSource",
    "Variant",
    "Workflow",
    "__version__",
    "confidence",
    "on_demand_feature_view",
]
