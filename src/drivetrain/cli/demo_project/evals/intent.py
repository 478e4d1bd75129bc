"""What a Release that changes `intent` must show, on messages whose true intent is known."""

import drivetrain as dt

golden = dt.Eval(
    "intent-golden",
    dataset="golden",
    expected="outcome_label",
    scorers=[dt.scorers.exact("intent")],
    gates=["accuracy >= 0.9", "overall not worse than -1 pp"],
    usd="0.50",
)
