"""The seed of tests that compare rates with bounds, which one seed in many misses by chance."""

from __future__ import annotations

import os

SEED = int(os.environ.get("DRIVETRAIN_SEED") or 20_261_122)
"""DRIVETRAIN_SEED=n draws others."""
