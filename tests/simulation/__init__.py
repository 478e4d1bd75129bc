"""A seeded simulator of the whole pipeline: execution, limits, cache, health and ledger are real, the rest is played.

`python -m tests.simulation PROFILE SEED` plays one seed again, with its trace.
`docs/design/0006-a-simulated-pipeline.md` says what is real, what is played, and what is checked.
"""
