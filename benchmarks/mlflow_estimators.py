"""The estimators that both servers serve, fitted the same in either environment: same data, same seed.

On scikit-learn's own breast cancer data: 30 columns, two classes. Needs scikit-learn only; called by `mlflow_model.py`
in MLflow's environment and by `mlflow_server.py` in ours, which compares what both say before it measures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

LABELS = ("malignant", "benign")
TRAINED = 400
"""Rows that estimators are fitted on; they are asked about the others."""

ESTIMATORS: dict[str, Callable[[], Any]] = {
    "logistic": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000)),
    "boosting": lambda: GradientBoostingClassifier(n_estimators=100, max_depth=3, random_state=0),
}


def columns() -> list[str]:
    """Names of the columns, with nothing in them but letters, digits and underscores."""
    return [str(name).replace(" ", "_") for name in load_breast_cancer().feature_names]


def rows() -> Any:
    """What the servers are asked about: shape (169, 30), float64."""
    return load_breast_cancer().data[TRAINED:]


def fitted(name: str) -> Any:
    """One of `ESTIMATORS`."""
    data = load_breast_cancer()
    return ESTIMATORS[name]().fit(data.data[:TRAINED], data.target[:TRAINED])
