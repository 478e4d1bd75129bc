"""A model card in Hugging Face's format for one registered version: YAML front matter, then Markdown.

The front matter follows https://github.com/huggingface/hub-docs/blob/main/modelcard.md. JSON's scalars are YAML's, so
no YAML library is needed to write it. Everything is from the registry, from the training's Report and from the
workflows that use the version; what is absent is said to be so.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from drivetrain.core.markup import markdown_text
from drivetrain.core.models import ModelVersionV1
from drivetrain.core.times import iso
from drivetrain.promotion.dossier_material import NOT_DECLARED, NOT_RECORDED
from drivetrain.registry.reports import Stored

LICENCES = frozenset({
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "isc", "unlicense", "openrail",
})  # fmt: skip
"""Identifiers of the Hub; any other licence is `other` with its own name."""
METRICS = {"accuracy": "accuracy", "macro_f1": "f1", "rmse": "rmse", "mae": "mae", "r2": "r_squared"}
"""Our name -> the Hub's; others keep their own."""
_TASKS = {"regression": ("tabular-regression", "Tabular regression"), "ranking": ("other", "Ranking")}


def model_card(
    version: ModelVersionV1, *, used_by: Mapping[str, str] | None = None, report: Stored | None = None
) -> str:
    """The whole card. used_by: workflow -> its use case. report: of its training."""
    return f"---\n{_front(version)}---\n\n{_text(version, used_by or {}, report)}"


def _front(version: ModelVersionV1) -> str:
    task, task_name = task_of(version)
    licence = version.licence.strip().lower()
    front: dict[str, Any] = {}
    if licence in LICENCES:
        front["license"] = licence
    elif licence:
        front |= {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", licence).strip("-") or "other"}
    front["tags"] = ["drivetrain", version.format, version.signature.task]
    if task != "other":
        front["pipeline_tag"] = task
    metrics = {name: value for name, value in version.metrics.items() if math.isfinite(value)}
    if metrics:
        front["metrics"] = list(dict.fromkeys(METRICS.get(name, name) for name in metrics))
        dataset = version.dataset or NOT_RECORDED
        name, _, number = dataset.partition("@")
        front["model-index"] = [{
            "name": f"{version.name}-{version.number}",
            "results": [{
                "task": {"type": task, "name": task_name},
                "dataset": {
                    "name": f"{dataset}, rows it was not trained on", "type": name, "split": "test",
                    **({"revision": number} if number else {}),
                },
                "metrics": [
                    {"type": METRICS.get(one, one), "name": one, "value": value} for one, value in metrics.items()
                ],
            }],
        }]  # fmt: skip
    return "".join(_yaml(front))


def task_of(version: ModelVersionV1) -> tuple[str, str]:
    """The Hub's task, and its name for people."""
    signature = version.signature
    if signature.task == "classification":
        texts = [one for one in signature.inputs if one.dtype == "text"]
        is_text = len(texts) == 1 == len(signature.inputs)
        return ("text-classification", "Text classification") if is_text else (
            "tabular-classification", "Tabular classification")  # fmt: skip
    return _TASKS.get(signature.task, ("other", signature.task))


def _text(version: ModelVersionV1, used_by: Mapping[str, str], report: Stored | None) -> str:
    signature = version.signature
    labels = f", one of {len(signature.labels)} labels: {', '.join(signature.labels)}" if signature.labels else ""
    metrics = [f"{name}: {value:.4g}" for name, value in version.metrics.items()]
    risks = [
        f"at a confidence of {threshold:.4g} and above at most {float(risk):.2%} are wrong"
        for risk, threshold in version.thresholds.items()
    ]
    uses = [f"{name}: {use or 'no use case declared'}" for name, use in sorted(used_by.items())]
    parts: list[tuple[str, Sequence[str]]] = [
        ("", [version.description or f"A model for {signature.task}. No description was declared."]),
        ("Model details", [
            f"Version: {version.artifact}", f"SHA-256 of the artifact: {version.digest}", f"Format: {version.format}",
            f"Made: {iso(version.made_ns)} by {version.made_by or NOT_RECORDED}",
            f"Owner: {version.owner or NOT_DECLARED}", f"Licence: {version.licence or NOT_DECLARED}",
        ]),
        ("Uses", uses or ["No workflow of the project names it now."]),
        ("Inputs and output", [
            *(f"{one.name}: {one.dtype}{' or null' if one.nullable else ''}" for one in signature.inputs),
            f"Gives {signature.target}{labels}",
        ]),
        ("Training", [
            f"Dataset: {version.dataset or NOT_RECORDED}", f"Its SHA-256: {version.dataset_hash or NOT_RECORDED}",
            f"Recipe: {version.recipe or NOT_RECORDED}", f"Source of an import: {version.source or 'none'}",
            f"Seed: {version.seed}", f"SHA-256 of the recipe: {version.code_hash or NOT_RECORDED}",
            f"SHA-256 of the environment: {version.environment_hash or NOT_RECORDED}",
        ]),
        ("Evaluation", [
            *(metrics or [f"Metrics: {NOT_RECORDED}"]), *risks,
            *([f"Report {report.id}: {report.report.verdict}"] if report is not None else []),
        ]),
        ("Limitations", list(limitations(version, report))),
    ]  # fmt: skip
    lines = [f"# {markdown_text(version.name)} {version.number}"]
    for title, said in parts:
        lines += ["", f"## {title}", ""] if title else [""]
        lines += [f"- {markdown_text(one)}" if title else markdown_text(one) for one in said]
    return "\n".join(lines) + "\n"


def limitations(version: ModelVersionV1, report: Stored | None) -> Sequence[str]:
    """What is known to be missing, or was noticed when it was trained."""
    found = []
    if not version.metrics:
        found.append("It was not measured on rows that it was not trained on.")
    if not version.dataset:
        found.append("What it was trained on is not recorded.")
    if version.signature.task == "classification" and not version.thresholds:
        found.append("No confidence is stated from which its errors stay below a risk.")
    if report is not None:
        notices = report.report.body.get("notices")
        found += [str(one) for one in notices] if isinstance(notices, list | tuple) else []
    return found or ["None is recorded; that is no statement that there is none."]


def _yaml(value: Any, indent: int = 0) -> list[str]:
    """Lines of block YAML for mappings, lists and scalars."""
    pad = "  " * indent
    lines: list[str] = []
    if isinstance(value, Mapping):
        for key, one in value.items():
            if isinstance(one, Mapping | list):
                lines += [f"{pad}{key}:\n", *_yaml(one, indent + (not isinstance(one, list)))]
            else:
                lines.append(f"{pad}{key}: {_scalar(one)}\n")
        return lines
    for one in value:
        if isinstance(one, Mapping):
            inner = _yaml(one, indent + 1)
            lines += [f"{pad}- {inner[0].lstrip()}", *inner[1:]]
        else:
            lines.append(f"{pad}- {_scalar(one)}\n")
    return lines


def _scalar(value: str | float | int) -> str:
    """JSON's form; a text is quoted unless it cannot be mistaken, and has no character that YAML refuses."""
    if not isinstance(value, str):
        return json.dumps(value)
    if re.fullmatch(r"[a-z][a-z0-9_.@-]*", value) and value not in ("null", "true", "false", "yes", "no", "on", "off"):
        return value
    return json.dumps("".join(one if one.isprintable() else " " for one in value), ensure_ascii=False)
