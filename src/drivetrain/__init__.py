"""Drivetrain: everything that turns a model's power into motion.

The names a project needs. Importing this package opens nothing and starts nothing.
"""

from drivetrain.core.declarations import (
    SLO,
    Budget,
    Check,
    Conversation,
    Parameters,
    Record,
    Reject,
    Rule,
    Variant,
    Workflow,
    confidence,
)
from drivetrain.core.errors import DrivetrainError, ProjectError, RequestError
from drivetrain.version import VERSION as __version__

__all__ = [
    "SLO",
    "Budget",
    "Check",
    "Conversation",
    "DrivetrainError",
    "Parameters",
    "ProjectError",
    "Record",
    "Reject",
    "RequestError",
    "Rule",
    "Variant",
    "Workflow",
    "__version__",
    "confidence",
]
