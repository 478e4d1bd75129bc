"""Fitted estimators, converted in the process that holds them, with what they say of a sample.

Texts become `linear-text`, boosters their own formats, everything else ONNX by skl2onnx. Whether a conversion is right
is not decided here: it is scored and compared before it is accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Column, ModelVersionV1
from drivetrain.registry.boosters import read_lightgbm, read_xgboost
from drivetrain.registry.candidates import Candidate, Expected, Terms, TextFormat, signature_of, task_of
from drivetrain.registry.importing import Importer, booster_candidate, onnx_candidate
from drivetrain.registry.samples import Table, read_table, read_texts
from drivetrain.registry.store import check_name
from drivetrain.registry.text_import import TextSteps, fitted_text, has_probabilities, text_steps

OPSETS = {"": 21, "ai.onnx.ml": 3}
"""What onnxruntime has known for long; ai.onnx.ml 3 has trees with thresholds in double precision."""


def import_estimator(importer: Importer, estimator: Any, terms: Terms, sample: Any) -> ModelVersionV1:
    """The next number of a model, equal to the estimator on every row of the sample.

    Raises: ConversionRefused with the rows that differ; DrivetrainError.
    """
    check_name(terms.name)
    if sample is None:
        raise DrivetrainError(
            "A conversion is compared with the original on a sample, and there is none.",
            do="Give rows as the model sees them, such as a test set: `sample=rows`.",
        )
    estimator = getattr(estimator, "best_estimator_", estimator)  # of a search over parameters
    with importer.registry.workplaces.folder() as work:
        found = text_steps(estimator)
        if found is not None:
            candidate, expected = _from_texts(estimator, found, terms, read_texts(sample), importer.texts)
        else:
            table = read_table(sample, terms.columns or _own_names(estimator))
            library = type(estimator).__module__.partition(".")[0]
            convert = {"lightgbm": _from_lightgbm, "xgboost": _from_xgboost}.get(library, _from_sklearn)
            candidate, expected = convert(estimator, terms, table, work)
        return importer.take(candidate, terms, expected)


def _from_texts(
    estimator: Any, steps: TextSteps, terms: Terms, sample: list[str], texts: TextFormat
) -> tuple[Candidate, Expected]:
    import numpy as np

    classes = [str(one) for one in estimator.classes_]
    if task_of(terms, "classification") != "classification":
        raise DrivetrainError("A model of texts is imported as a classification.", do="Leave the task out.")
    signature = signature_of(terms, "classification", (Column(name="text", dtype="text"),), told=classes)
    model = fitted_text(steps, signature.labels)
    if has_probabilities(model):
        probabilities = np.asarray(estimator.predict_proba(sample), dtype=np.float64)
    else:
        margins = np.asarray(estimator.decision_function(sample), dtype=np.float64).reshape(len(sample), -1)
        if margins.shape[1] == 1:
            margins = np.concatenate([np.zeros_like(margins), margins], axis=1)
        powers = np.exp(margins - margins.max(axis=1, keepdims=True))
        probabilities = powers / powers.sum(axis=1, keepdims=True)
    expected = _classified(
        estimator, estimator.predict(sample), signature.labels, probabilities, [[one] for one in sample]
    )
    files = texts.write(model)
    return Candidate(format="linear-text", signature=signature, files=files, source=_source(estimator)), expected


def _from_lightgbm(estimator: Any, terms: Terms, table: Table, work: Path) -> tuple[Candidate, Expected]:
    booster = getattr(estimator, "booster_", estimator)
    path = work / "model.txt"
    path.write_text(booster.model_to_string(), encoding="utf-8")
    return _boosted(estimator, read_lightgbm(path), "lightgbm", terms, table)


def _from_xgboost(estimator: Any, terms: Terms, table: Table, work: Path) -> tuple[Candidate, Expected]:
    booster = estimator.get_booster() if hasattr(estimator, "get_booster") else estimator
    if getattr(estimator, "best_iteration", None) is not None:
        booster = booster[: estimator.best_iteration + 1]  # as the estimator predicts after early stopping
    path = work / "model.json"
    path.write_bytes(bytes(booster.save_raw("json")))
    return _boosted(estimator, read_xgboost(path), "xgboost", terms, table)


def _boosted(estimator: Any, booster: Any, format: str, terms: Terms, table: Table) -> tuple[Candidate, Expected]:
    import numpy as np

    classes = [str(one) for one in getattr(estimator, "classes_", ())]
    candidate = booster_candidate(format, booster, terms, source=_source(estimator), labels=terms.labels or classes)
    given = table.given
    if type(estimator).__name__ == "Booster" and format == "xgboost":
        import xgboost

        given = xgboost.DMatrix(given)
    if not booster.classes:
        return candidate, Expected(rows=table.rows, values=_values(estimator.predict(given)))
    asked = estimator.predict_proba if hasattr(estimator, "predict_proba") else estimator.predict
    probabilities = np.asarray(asked(given), dtype=np.float64).reshape(len(table.rows), -1)
    if probabilities.shape[1] == 1:
        probabilities = np.concatenate([1 - probabilities, probabilities], axis=1)
    if candidate.signature.task != "classification":
        return candidate, Expected(rows=table.rows, values=_chances(probabilities))
    if classes:
        predicted = estimator.predict(given)
        return candidate, _classified(estimator, predicted, candidate.signature.labels, probabilities, table.rows)
    likeliest = [candidate.signature.labels[int(one)] for one in probabilities.argmax(axis=1)]
    return candidate, Expected(rows=table.rows, labels=likeliest, probabilities=probabilities.tolist())


def _from_sklearn(estimator: Any, terms: Terms, table: Table, work: Path) -> tuple[Candidate, Expected]:
    import numpy as np

    classes = [str(one) for one in getattr(estimator, "classes_", ())]
    if classes and not hasattr(estimator, "predict_proba"):
        raise DrivetrainError(
            f"`{type(estimator).__name__}` tells no probabilities, and every answer has a confidence.",
            do="Wrap it: `CalibratedClassifierCV(model, ensemble=False)`, fitted on the training set.",
        )
    path = work / "model.onnx"
    path.write_bytes(_onnx(estimator, table, bool(classes)))
    labels = terms.labels or classes
    candidate = onnx_candidate(
        path, terms, source=_source(estimator), columns=table.columns, labels=labels
    )  # fmt: skip
    if not classes:
        return candidate, Expected(rows=table.rows, values=_values(estimator.predict(table.given)))
    probabilities = np.asarray(estimator.predict_proba(table.given), dtype=np.float64)
    if candidate.signature.task != "classification":
        return candidate, Expected(rows=table.rows, values=_chances(probabilities))
    predicted = estimator.predict(table.given)
    return candidate, _classified(estimator, predicted, candidate.signature.labels, probabilities, table.rows)


def _onnx(estimator: Any, table: Table, is_classifier: bool) -> bytes:
    try:
        import skl2onnx
        from skl2onnx.common import data_types
        from skl2onnx.common.exceptions import MissingConverter, MissingShapeCalculator
    except ImportError:
        raise DrivetrainError(
            "Converting this estimator needs skl2onnx, which is not installed.",
            do='Run `pip install "drivetrain[train]"`.',
        ) from None
    kinds = {
        "float": data_types.FloatTensorType, "int": data_types.Int64TensorType, "bool": data_types.BooleanTensorType,
        "text": data_types.StringTensorType, "category": data_types.StringTensorType,
    }  # fmt: skip
    inputs = (
        [("rows", data_types.FloatTensorType([None, len(table.columns)]))]
        if table.uniform
        else [(one.name, kinds[one.dtype]([None, 1])) for one in table.columns]
    )
    options = {"zipmap": False} if is_classifier else None
    try:
        made = skl2onnx.convert_sklearn(estimator, initial_types=inputs, options=options, target_opset=OPSETS)
    except (MissingConverter, MissingShapeCalculator) as error:
        raise _unconverted(estimator, str(error).strip().splitlines()[0]) from None
    except (RuntimeError, ValueError, TypeError, NameError, NotImplementedError, AttributeError, KeyError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _unconverted(estimator, why) from None
    content: bytes = made.SerializeToString()
    return content


def _classified(
    estimator: Any, predicted: Any, labels: Sequence[str], probabilities: Any, rows: Sequence[list[Any]]
) -> Expected:
    """The original's labels are those of its own `predict`, under the names of the signature."""
    place = {str(one): at for at, one in enumerate(estimator.classes_)}
    return Expected(
        rows=rows, labels=[labels[place[str(one)]] for one in predicted], probabilities=probabilities.tolist()
    )  # fmt: skip


def _values(predicted: Any) -> list[float]:
    import numpy as np

    values = np.asarray(predicted, dtype=np.float64)
    if values.ndim > 1 and values.shape[1] != 1:
        raise DrivetrainError(f"The model predicts {values.shape[1]} values for a row; a regression has one.")
    return [float(one) for one in values.reshape(-1)]


def _chances(probabilities: Any) -> list[float]:
    """Of the second of two classes, by which a classifier ranks."""
    if probabilities.shape[1] != 2:
        raise DrivetrainError(
            f"The model tells {probabilities.shape[1]} classes apart, and none of them says what is better.",
            do="Rank with a ranker, a regression, or a classifier of two classes.",
        )
    return [float(one) for one in probabilities[:, 1]]


def _own_names(estimator: Any) -> tuple[str, ...]:
    """As scikit-learn noted them where it was fitted on a frame."""
    return tuple(str(one) for one in getattr(estimator, "feature_names_in_", ()))


def _source(estimator: Any) -> str:
    """`sklearn Pipeline`, `lightgbm LGBMClassifier`."""
    return f"{type(estimator).__module__.partition('.')[0]} {type(estimator).__name__}"


def _unconverted(estimator: Any, why: str) -> DrivetrainError:
    return DrivetrainError(
        f"`{type(estimator).__name__}` cannot be converted to ONNX: {why[:500]}",
        do="Use an estimator that skl2onnx knows, or train it here: `drivetrain train`.",
    )
