"""`linear-text` on disk: vocabulary, weights and calibration as plain data, written and read back.

Owns the format and its limits; `linear_text.py` scores with it, `training/` and `registry/` write it. Five files: a
JSON header that tells every size, the terms as msgpack, and three raw arrays of little-endian float32. A reader
compares each file's size with the header before it allocates anything; the weights are mapped, so that processes share
their pages.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from drivetrain.core.errors import DrivetrainError

Floats = NDArray[np.float32]

HEADER, TERMS, IDF, WEIGHTS, BIAS = "linear_text.json", "terms.msgpack", "idf.f32", "weights.f32", "bias.f32"
FILES = (HEADER, TERMS, IDF, WEIGHTS, BIAS)
ANALYZERS = ("word", "char_wb", "char")
NORMS = ("l2", "l1", "")
ACCENTS = ("", "unicode", "ascii")
LINKS = ("softmax", "sigmoid", "margin")

HEADER_BYTES_MAX = 4 * 1024 * 1024
"""Labels and stop words of a large model are well below one megabyte."""
TERMS_BYTES_MAX = 256 * 1024 * 1024
"""Some ten million n-grams; each process holds them as a dict, which takes several times as much."""
WEIGHTS_BYTES_MAX = 2 * 1024 * 1024 * 1024
"""Mapped, not read; more than this is no small linear model."""
BLOCKS_MAX = 16
"""Each walks over the text once more."""
CLASSES_MAX = 10_000
"""Every class costs a column of the weights and an exponential per text."""
NGRAM_MAX = 16
"""Longest n-gram: each length costs one look-up per place in a text."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """One way to count terms, as scikit-learn's TfidfVectorizer with its default token pattern."""

    analyzer: str
    """One of `ANALYZERS`."""
    ngrams: tuple[int, int]
    """Shortest and longest, in words or characters."""
    terms: tuple[str, ...]
    """In the order of the block's columns."""
    idf: Floats | None = None
    """Shape (terms,); None where `use_idf` is off."""
    use_idf: bool = True
    lowercase: bool = True
    strip_accents: str = ""
    """One of `ACCENTS`."""
    stop_words: tuple[str, ...] = ()
    """Of the analyzer `word`: left out before n-grams are made."""
    binary: bool = False
    """Whether a term that occurs counts once."""
    sublinear_tf: bool = False
    """Whether a count n becomes 1 + ln n."""
    norm: str = "l2"
    """One of `NORMS`, over the block's own values."""
    weight: float = 1.0
    """Factor after the norm, as FeatureUnion's `transformer_weights`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinearText:
    """A linear model over TF-IDF blocks: margins = values @ weights + bias."""

    blocks: tuple[Block, ...]
    labels: tuple[str, ...]
    """At least two; a task with one decision column has two columns of weights here."""
    weights: Floats
    """Shape (terms of all blocks, labels); the blocks' columns one after another."""
    bias: Floats
    """Shape (labels,)."""
    link: str
    """Margins, divided by the temperature, to probabilities: `softmax`; `sigmoid`, one per label, divided by their sum;
    `margin`, for models that know no probability: the softmax too, which only the temperature calibrates."""
    temperature: float = 1.0


class BlockHeader(msgspec.Struct, frozen=True, kw_only=True):
    """A Block without its terms and idf."""

    analyzer: str
    ngrams: tuple[int, int]
    terms: int
    """How many."""
    use_idf: bool
    lowercase: bool
    strip_accents: str
    stop_words: tuple[str, ...]
    binary: bool
    sublinear_tf: bool
    norm: str
    weight: float


class HeaderV1(msgspec.Struct, frozen=True, kw_only=True, tag="linear-text.1"):
    """What `linear_text.json` says; stored, so it stays readable."""

    blocks: tuple[BlockHeader, ...]
    labels: tuple[str, ...]
    link: str
    temperature: float
    terms_bytes: int
    """Size of the file of terms."""


_COPIED = tuple(name for name in BlockHeader.__struct_fields__ if name != "terms")


def write_linear_text(model: LinearText) -> dict[str, bytes]:
    """The artifact's files: path -> content; the same model gives the same bytes.

    Raises: DrivetrainError where the model contradicts itself, is not finite or is beyond a limit.
    """
    try:
        terms = msgspec.msgpack.encode([block.terms for block in model.blocks])
    except UnicodeEncodeError:
        raise _refused("a term holds half of a surrogate pair, which no text file can keep") from None
    header = HeaderV1(
        blocks=tuple(
            BlockHeader(terms=len(block.terms), **{name: getattr(block, name) for name in _COPIED})
            for block in model.blocks
        ),
        labels=model.labels,
        link=model.link,
        temperature=float(model.temperature),
        terms_bytes=len(terms),
    )
    _check_header(header)
    _check_terms([block.terms for block in model.blocks], header)
    idfs = []
    for number, block in enumerate(model.blocks):
        if block.use_idf:
            if block.idf is None:
                raise _refused(f"block {number} uses idf and has none")
            idfs.append(_checked(block.idf, (len(block.terms),), f"idf of block {number}"))
    rows = sum(len(block.terms) for block in model.blocks)
    weights = _checked(model.weights, (rows, len(model.labels)), "weights")
    bias = _checked(model.bias, (len(model.labels),), "bias")
    try:
        head = msgspec.json.format(msgspec.json.encode(header), indent=1) + b"\n"
    except UnicodeEncodeError:
        raise _refused("a label or a stop word holds half of a surrogate pair, which no text file can keep") from None
    if len(head) > HEADER_BYTES_MAX:
        raise _refused(f"its header has {len(head):,} bytes, the most is {HEADER_BYTES_MAX:,}")
    return {
        HEADER: head,
        TERMS: terms,
        IDF: b"".join(one.tobytes() for one in idfs),
        WEIGHTS: weights.tobytes(),
        BIAS: bias.tobytes(),
    }


def read_linear_text(folder: Path) -> LinearText:
    """The model in a folder. Its weights are mapped from the file, which has to stay as it is while they are used.

    Reads every weight once, to see that it is finite. Raises: DrivetrainError for anything but a whole, sound model.
    """
    try:
        return _read(folder)
    except FileNotFoundError as error:
        raise DrivetrainError(
            f"The `linear-text` model lacks its file `{Path(str(error.filename)).name}`.", looked=[str(folder)]
        ) from None
    except OSError as error:
        raise DrivetrainError(f"The `linear-text` model cannot be read: {error}.", looked=[str(folder)]) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DrivetrainError(f"The `linear-text` model is damaged: {error}.", looked=[str(folder)]) from None
    except DrivetrainError as error:
        raise DrivetrainError(error.what, looked=[str(folder)], do=error.do) from None


def _read(folder: Path) -> LinearText:
    head = folder / HEADER
    if head.stat().st_size > HEADER_BYTES_MAX:
        raise _refused(f"its header has {head.stat().st_size:,} bytes, the most is {HEADER_BYTES_MAX:,}")
    header = msgspec.json.decode(head.read_bytes(), type=HeaderV1)
    _check_header(header)
    rows, columns = sum(block.terms for block in header.blocks), len(header.labels)
    idf_rows = sum(block.terms for block in header.blocks if block.use_idf)
    sizes = {TERMS: header.terms_bytes, IDF: 4 * idf_rows, WEIGHTS: 4 * rows * columns, BIAS: 4 * columns}
    for name, expected in sizes.items():
        found = (folder / name).stat().st_size
        if found != expected:
            raise _refused(f"`{name}` has {found:,} bytes where its header says {expected:,}")
    terms = msgspec.msgpack.decode((folder / TERMS).read_bytes(), type=tuple[tuple[str, ...], ...])
    _check_terms(terms, header)
    idf = _checked(np.frombuffer((folder / IDF).read_bytes(), dtype="<f4"), (idf_rows,), "idf")
    blocks, at = [], 0
    for one, own in zip(header.blocks, terms, strict=True):
        kept: Mapping[str, Any] = {name: getattr(one, name) for name in _COPIED}
        blocks.append(Block(terms=own, idf=idf[at : at + one.terms] if one.use_idf else None, **kept))
        at += one.terms if one.use_idf else 0
    return LinearText(
        blocks=tuple(blocks),
        labels=header.labels,
        weights=_checked(_mapped(folder / WEIGHTS, rows * columns).reshape(rows, columns), (rows, columns), "weights"),
        bias=_checked(np.frombuffer((folder / BIAS).read_bytes(), dtype="<f4"), (columns,), "bias"),
        link=header.link,
        temperature=header.temperature,
    )


def _mapped(file: Path, count: int) -> NDArray[Any]:
    """The floats of a file, read-only, in pages that every process which maps it shares."""
    if count == 0:
        return np.empty(0, dtype="<f4")
    with file.open("rb") as opened:
        pages = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(pages, dtype="<f4", count=count)


def _check_header(header: HeaderV1) -> None:
    columns, rows = len(header.labels), sum(block.terms for block in header.blocks)
    if not 2 <= columns <= CLASSES_MAX:
        raise _refused(f"it has {columns} labels; from 2 to {CLASSES_MAX:,} are possible")
    if len(set(header.labels)) != columns:
        raise _refused("a label stands in it twice")
    if not 1 <= len(header.blocks) <= BLOCKS_MAX:
        raise _refused(f"it has {len(header.blocks)} blocks; from 1 to {BLOCKS_MAX} are possible")
    _one_of("link", header.link, LINKS)
    if not (math.isfinite(header.temperature) and header.temperature > 0):
        raise _refused(f"its temperature is {header.temperature}, which is no positive number")
    if not 0 <= header.terms_bytes <= TERMS_BYTES_MAX:
        raise _refused(f"its terms take {header.terms_bytes:,} bytes, the most is {TERMS_BYTES_MAX:,}")
    for block in header.blocks:
        _one_of("analyzer", block.analyzer, ANALYZERS)
        _one_of("norm", block.norm, NORMS)
        _one_of("strip_accents", block.strip_accents, ACCENTS)
        shortest, longest = block.ngrams
        if not 1 <= shortest <= longest <= NGRAM_MAX:
            raise _refused(f"n-grams from {shortest} to {longest} are not between 1 and {NGRAM_MAX}")
        if block.terms < 0 or not math.isfinite(block.weight):
            raise _refused(f"a block has {block.terms} terms and the weight {block.weight}")
        if block.stop_words and block.analyzer != "word":
            raise _refused(f"stop words mean nothing to the analyzer `{block.analyzer}`")
    if 4 * rows * columns > WEIGHTS_BYTES_MAX:
        raise _refused(f"{rows:,} terms x {columns:,} labels take more than {WEIGHTS_BYTES_MAX:,} bytes of weights")


def _check_terms(terms: tuple[tuple[str, ...], ...] | list[tuple[str, ...]], header: HeaderV1) -> None:
    if [len(own) for own in terms] != [block.terms for block in header.blocks]:
        raise _refused("its terms are not as many as its header says")
    for number, own in enumerate(terms):
        if len(set(own)) != len(own):
            raise _refused(f"a term stands in block {number} twice")


def _checked(values: NDArray[Any], shape: tuple[int, ...], what: str) -> Floats:
    """As contiguous little-endian float32; finite, in the shape."""
    if values.shape != shape:
        raise _refused(f"{what} has the shape {values.shape} instead of {shape}")
    with np.errstate(over="ignore"):
        floats = np.ascontiguousarray(values, dtype="<f4")
    if not np.isfinite(floats).all():
        raise _refused(f"{what} holds values that are not finite")
    return floats


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise _refused(f"`{value[:50]}` is no {what}", do=f"Known: {', '.join(f'`{one}`' for one in known)}.")


def _refused(why: str, do: str = "") -> DrivetrainError:
    return DrivetrainError(f"This is no sound `linear-text` model: {why}.", do=do)
