"""Reads a simulator's TOML (or the same as a dict), checks all of it, and loads the files it names.

Called by the command line, by `SimulatorProcess` and by tests. All mistakes are reported at once. The records
themselves are in `settings`.
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

from drivetrain.simulator.errors import SimulatorConfigError
from drivetrain.simulator.failures import FAILURE_KINDS, STATUS_KIND
from drivetrain.simulator.mistakes import TableReader, suggestion
from drivetrain.simulator.settings import (
    EchoQuality,
    Failures,
    FailureShare,
    LabelQuality,
    ModelSettings,
    Price,
    Quality,
    RateLimit,
    ServerSettings,
    SimulatorConfig,
    TableQuality,
    TextQuality,
)
from drivetrain.simulator.tables import CsvTable, TableFiles

ANSWER_BYTES_MAX = 64 * 1024 * 1024
"""The largest `answer_bytes` and `oversized_bytes`: enough to break any reader, small enough for a laptop."""
TOKENS_MAX = 10_000_000
REQUESTS_RECORDED_MAX = 100_000


def load_config(source: str | Path | Mapping[str, object]) -> SimulatorConfig:
    """The checked configuration in a TOML file (or a `.json` file, or a dict of the same form).

    Paths inside are relative to the file; in a dict, to the working folder.
    Raises: SimulatorConfigError with every mistake.
    """
    if isinstance(source, Mapping):
        return _read(source, "The simulator's configuration", Path())
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise SimulatorConfigError(str(path), [f"The file cannot be read: {error}"]) from error
    return _read(content, str(path), path.parent)


def _read(content: Mapping[str, object], where: str, folder: Path) -> SimulatorConfig:
    mistakes: list[str] = []
    top = TableReader(content, "", mistakes)
    files = TableFiles(folder)
    seed = top.integer("seed", 0, most=2**63 - 1)
    server = _server(top.table("server"))
    models_table = top.table("models")
    names = models_table.names()
    if not names:
        mistakes.append('There is no model. Write a table such as [models."gpt-5-mini-2025-08-07"].')
    models = {name: _model(name, models_table.table(name), files) for name in names}
    top.refuse_unknown()
    if mistakes:
        raise SimulatorConfigError(where, mistakes)
    return SimulatorConfig(seed=seed, server=server, models=models)


def _server(table: TableReader) -> ServerSettings:
    defaults = ServerSettings()
    server = ServerSettings(
        host=table.text("host") or defaults.host,
        port=table.integer("port", defaults.port, most=65_535),
        keys=table.texts("keys"),
        record_requests=table.integer("record_requests", 0, most=REQUESTS_RECORDED_MAX),
        allow_overrides=table.flag("allow_overrides"),
    )
    table.refuse_unknown()
    return server


def _model(name: str, table: TableReader, files: TableFiles) -> ModelSettings:
    quality_table = table.table("quality")
    model = ModelSettings(
        name=name,
        dialect=table.choice("dialect", ("openai", "anthropic", "both"), "both"),
        latency=table.milliseconds("latency_ms"),
        first_token=table.milliseconds("first_token_ms"),
        tokens_per_s=table.number("tokens_per_s", 0.0),
        output_tokens=table.tokens("output_tokens"),
        reasoning_tokens=table.integer("reasoning_tokens", 0, most=TOKENS_MAX),
        cached_input_share=table.share("cached_input_share"),
        price=_price(table),
        answer=table.text("answer"),
        stream_events=table.integer("stream_events", 1, least=1, most=1_000_000)
        if table.has("stream_events")
        else None,
        stream_writes=table.choice("stream_writes", ("each", "together"), "each"),
        answer_bytes=table.integer("answer_bytes", 0, most=ANSWER_BYTES_MAX) if table.has("answer_bytes") else None,
        quality=_quality(quality_table, files),
        failures=_failures(table.table("failures")),
    )
    if model.output_tokens is not None and model.output_tokens.tokens_max > TOKENS_MAX:
        table.note("output_tokens", f"must be at most {TOKENS_MAX}; found {model.output_tokens.tokens_max}.")
    if model.answer is not None and quality_table.names():
        table.note("answer", "fixes every answer, so the model's quality would never be seen. Remove one of the two.")
    if model.answer_bytes is not None and (model.answer is not None or not isinstance(model.quality, TextQuality)):
        table.note("answer_bytes", 'sizes generated text only: it needs quality.kind = "text" and no `answer`.')
    table.refuse_unknown()
    return model


def _price(table: TableReader) -> Price:
    full = table.nano_usd("usd_per_million_input", 0)
    return Price(
        input_nano_usd_per_million=full,
        input_cached_nano_usd_per_million=table.nano_usd("usd_per_million_input_cached", full),
        output_nano_usd_per_million=table.nano_usd("usd_per_million_output", 0),
    )


def _quality(table: TableReader, files: TableFiles) -> Quality:
    kind = table.choice("kind", ("text", "echo", "labels", "table"), "text")
    quality: Quality
    if kind == "labels":
        quality = _labels(table, files)
    elif kind == "table":
        quality = _table(table, files)
    else:
        quality = EchoQuality() if kind == "echo" else TextQuality()
    table.refuse_unknown()
    return quality


def _labels(table: TableReader, files: TableFiles) -> LabelQuality:
    examples = files.csv(table, "examples_file")
    text_column, label_column = table.text("text_column") or "text", table.text("label_column") or "category"
    truth = _pairs(table, examples, text_column, label_column)
    labels = tuple(dict.fromkeys((*table.texts("labels"), *files.lines(table, "labels_file"))))
    given = bool(labels)
    labels = labels or tuple(sorted(set(truth.values())))
    if not labels:
        table.note(
            "labels", "is missing. Write `labels = [...]`, a `labels_file` with one a line, or an `examples_file`."
        )
    strangers = sorted(set(truth.values()) - set(labels)) if given else []
    if strangers:
        table.note("examples_file", f"has labels that are not in the labels: {', '.join(strangers[:5])}.")
    by_label = table.table("per_label_accuracy")
    accuracy_by_label = {label: by_label.share(label) for label in by_label.names()}
    for label in accuracy_by_label:
        if labels and label not in labels:
            by_label.note(label, f"is not one of the labels.{suggestion(label, labels) if len(labels) < 200 else ''}")
    unmatched = table.text("unmatched")
    if unmatched is not None and labels and unmatched not in labels:
        table.note("unmatched", f"must be one of the labels; found {unmatched!r}.")
    return LabelQuality(
        labels=labels,
        truth=truth,
        accuracy=table.share("accuracy", 1.0),
        accuracy_by_label=accuracy_by_label,
        shared_difficulty=table.share("shared_difficulty"),
        confidence=table.flag("confidence"),
        answer_field=table.text("answer_field"),
        unmatched=unmatched,
    )


def _table(table: TableReader, files: TableFiles) -> TableQuality:
    if not table.has("file"):
        table.note("file", "is missing: it names the CSV of recorded prompts and answers.")
    recorded = files.csv(table, "file")
    prompts = table.text("prompt_column") or "prompt"
    correct, truth = table.text("correct_column"), table.text("truth_column")
    if (correct is None) != (truth is None):
        table.note("correct_column", "and `truth_column` go together: what is right, and whether this model was.")
    if correct is not None and truth is not None:
        if table.has("answer_column"):
            table.note("answer_column", "says the same as `correct_column` and `truth_column`. Remove one of the two.")
        answers = _answers_from_correctness(table, recorded, prompts, truth, correct)
    else:
        answers = _pairs(table, recorded, prompts, table.text("answer_column") or "answer")
    return TableQuality(
        answers=answers,
        unmatched=table.text("unmatched") or "I do not know.",
        answer_field=table.text("answer_field"),
    )


def _pairs(table: TableReader, csv: CsvTable | None, key_column: str, value_column: str) -> dict[str, str]:
    if csv is None:
        return {}
    for column in (key_column, value_column):
        if column not in csv.columns:
            table.mistakes.append(f"{csv.path} has no column `{column}`.{suggestion(column, csv.columns)}")
            return {}
    return {row[key_column].strip(): row[value_column].strip() for row in csv.rows}


def _answers_from_correctness(
    table: TableReader, csv: CsvTable | None, prompts: str, truth: str, correct: str
) -> dict[str, str]:
    """What the model said, where only "was it right" is known: the truth, or the next other truth in the file."""
    right = _pairs(table, csv, prompts, truth)
    verdicts = _pairs(table, csv, prompts, correct)
    others = sorted(set(right.values()))
    answers = {}
    for prompt, true_answer in right.items():
        if verdicts.get(prompt, "").lower() in ("1", "1.0", "true", "yes"):
            answers[prompt] = true_answer
        else:
            following = others[(others.index(true_answer) + 1) % len(others)]
            answers[prompt] = following if following != true_answer else f"not {true_answer}"
    return answers


def _failures(table: TableReader) -> Failures:
    defaults = Failures()
    shares = []
    statuses = table.table("status")
    for status in statuses.names():
        if not status.isdigit() or not 400 <= int(status) <= 599:
            statuses.note(status, "must be an HTTP status from 400 to 599.")
            continue
        shares.append(FailureShare(kind=STATUS_KIND, argument=int(status), share=statuses.share(status)))
    shares += [FailureShare(kind=kind, argument=-1, share=table.share(kind)) for kind in FAILURE_KINDS]
    shares = [each for each in shares if each.share > 0]
    total = sum(each.share for each in shares)
    if total > 1.0 + 1e-9:
        table.mistakes.append(
            f"`{table.where}` has shares that sum to {total:g}. "
            "At most one failure happens to a request, so they sum to at most 1."
        )
    failures = Failures(
        shares=tuple(shares),
        stall_s=table.number("stall_s", defaults.stall_s, most=86_400),
        cut_at_byte=table.integer("cut_at_byte", -1, least=-1),
        cut_with=table.choice("cut_with", ("fin", "rst"), "fin"),
        oversized_bytes=table.integer("oversized_bytes", defaults.oversized_bytes, least=1, most=ANSWER_BYTES_MAX),
        retry_after_s=table.integer("retry_after_s", defaults.retry_after_s),
        rate_limit=_rate_limit(table.table("rate_limit")) if table.has("rate_limit") else None,
    )
    table.refuse_unknown()
    return failures


def _rate_limit(table: TableReader) -> RateLimit:
    rate = table.number("requests_per_s", 0.0)
    if rate <= 0:
        table.note("requests_per_s", "must be a number above 0.")
    limit = RateLimit(requests_per_s=rate, burst=table.integer("burst", max(1, int(rate)), least=1))
    table.refuse_unknown()
    return limit
