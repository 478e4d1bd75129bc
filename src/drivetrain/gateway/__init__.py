"""The HTTP hot path: applications call workflows here."""
