"""A user's folder -> an immutable, hashed Snapshot. Every mistake is reported at once."""
