"""Registries to which something happened: versions deleted, disks full, names that are none."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path

import msgspec
import pytest

from drivetrain.core.errors import DrivetrainError
from drivetrain.inference.linear_text_files import write_linear_text
from drivetrain.registry.store import Draft
from support.registered import register_words, registry, word_model

WORDS = {"refund": "refund", "parcel": "delivery"}


def models(root: Path) -> Path:
    return root / ".drivetrain" / "data" / "models"


def test_a_number_that_was_deleted_is_never_another_version(tmp_path: Path) -> None:
    """Else the champion of yesterday would be whatever is registered next, and nobody had moved it."""
    register_words(tmp_path, "words", WORDS)
    champion = register_words(tmp_path, "words", {**WORDS, "more": "refund"})
    shutil.rmtree(models(tmp_path) / "words" / str(champion.number))
    after = register_words(tmp_path, "words", {**WORDS, "other": "delivery"}, alias="")
    assert after.number == champion.number + 1
    with pytest.raises(DrivetrainError, match=f"has no version {champion.number}"):
        registry(tmp_path).find("words@champion")
    shutil.rmtree(models(tmp_path) / "words")
    assert register_words(tmp_path, "words", WORDS, alias="").number == after.number + 1


def test_a_model_of_a_longer_name_has_numbers_of_its_own(tmp_path: Path) -> None:
    register_words(tmp_path, "words", WORDS)
    register_words(tmp_path, "words", WORDS)
    assert register_words(tmp_path, "words-two", WORDS).number == 1
    assert register_words(tmp_path, "word", WORDS).number == 1


def kept(root: Path) -> list[str]:
    """Files of models and of work that was begun."""
    data = root / ".drivetrain" / "data"
    return sorted(str(one) for folder in ("models", "tmp") for one in (data / folder).rglob("*") if one.is_file())


@pytest.mark.parametrize("most", [0, 1_000, 10_000, 17_000])
def test_a_full_disk_leaves_a_whole_version_or_none(tmp_path: Path, most: int) -> None:
    """A limit on the size of files stands for a disk that is full."""
    register_words(tmp_path, "words", WORDS)
    before = [one for one in kept(tmp_path) if not one.endswith(".lock")]
    made, large = registry(tmp_path), word_model({f"word{n}": ("a", "b")[n % 2] for n in range(2_000)})
    signature = msgspec.structs.replace(made.version("words", 1).signature, labels=large.labels)
    draft = Draft(name="words", format="linear-text", signature=signature, files=write_linear_text(large))
    child = os.fork()
    if not child:
        code = 9
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            made.register(draft)
            code = 0
        except DrivetrainError:
            code = 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert [one for one in kept(tmp_path) if not one.endswith(".lock")] == before
    assert registry(tmp_path).find("words@champion").number == 1
    assert registry(tmp_path).verify("words").findings == ()
    assert register_words(tmp_path, "words", WORDS).number == 2


def test_half_a_surrogate_pair_is_no_label() -> None:
    with pytest.raises(DrivetrainError, match="surrogate"):
        write_linear_text(word_model({"refund": "\ud800", "parcel": "delivery"}))
