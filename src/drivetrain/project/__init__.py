"""A user's folder -> an immutable, hashed Snapshot. Every mistake is reported at once."""

from drivetrain.project.files import find_root
from drivetrain.project.load import content_hash, load, unload
from drivetrain.project.snapshot import Snapshot
from drivetrain.project.stored import load_stored, store

__all__ = ["Snapshot", "content_hash", "find_root", "load", "load_stored", "store", "unload"]
