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
from drivetrain.version import VERSION as __version__

__all__ = [
    "SLO",
    "Budget",
    "Cache",
    "Check",
    "Conversation",
    "DrivetrainError",
    "Parameters",
    "ProjectError",
    "Record",
    "Reject",
    "RequestError",
    "Rule",
    "Stale",
    "Static",
    "Variant",
    "Workflow",
    "__version__",
    "confidence",
]
