"""A scikit-learn model in MLflow's own folder, with what it says of rows: runs in MLflow's own environment.

`.venvs/mlflow/bin/python benchmarks/mlflow_model.py FOLDER`, called by `mlflow_server.py`, which fits the same
estimators through `mlflow_estimators.py`. Prints one JSON object: versions, and probabilities by estimator.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlflow
import mlflow.sklearn
import sklearn
from mlflow.models import infer_signature

from mlflow_estimators import ESTIMATORS, fitted, rows

TRUSTED = ("sklearn.tree._tree.Tree",)


def main() -> None:
    """Argument: the folder that gets one model folder per estimator."""
    folder = Path(sys.argv[1])
    asked = rows()
    said = {}
    for name in ESTIMATORS:
        estimator = fitted(name)
        said[name] = estimator.predict_proba(asked).tolist()
        # The server answers with probabilities, as ours does, and not with the bare class.
        mlflow.sklearn.save_model(
            estimator,
            str(folder / name),
            pyfunc_predict_fn="predict_proba",
            # Its loader asks before it reads trees. This file was made by the line above, from our own estimator.
            skops_trusted_types=list(TRUSTED),
            signature=infer_signature(asked, estimator.predict_proba(asked)),
        )
    print(json.dumps({"mlflow": mlflow.__version__, "sklearn": sklearn.__version__, "said": said}))


if __name__ == "__main__":
    main()
