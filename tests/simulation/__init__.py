"""A seeded simulator of the whole pipeline: real execution, limits, cache, health and ledger; everything else is played.

`python -m tests.simulation SEED` plays one seed again, with its trace. `docs/design/0006-a-simulated-pipeline.md` says
what is real, what is played, and what is checked.
"""
