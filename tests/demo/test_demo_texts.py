"""What the demo sends, and what it says about a folder that is not as it should be."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from drivetrain.cli.demo_folder import DemoFolder
from drivetrain.cli.demo_texts import own_texts, texts_of
from drivetrain.core.errors import DrivetrainError

INTENTS = '["a", "b"]'
TEXTS = 'text,category\n"one, two",a\n three ,b\n'


def write(folder: Path, texts: str | None = TEXTS, intents: str | None = INTENTS) -> Path:
    for name, content in (("test.csv", texts), ("categories.json", intents)):
        if content is not None:
            (folder / name).write_text(content)
    return folder


def test_own_texts_are_many_and_always_the_same() -> None:
    texts = own_texts(None)
    assert len({one.text for one in texts.examples}) == len(texts.examples) == 1_000
    assert len(texts.intents) == 12
    assert {one.intent for one in texts.examples} == set(texts.intents)
    assert own_texts(150).examples == texts.examples[:150]


def test_no_text_that_is_sent_trains() -> None:
    def words(text: str) -> str:
        return " ".join(re.findall(r"[a-z0-9]+", text.lower()))

    texts = own_texts(100_000)
    requests = {words(one.group) for one in texts.examples}
    assert len(requests) > 60
    trains = [words(one.text) for one in texts.training]
    assert len(set(trains)) == len(trains) > 400
    assert not requests & set(trains)
    assert not {words(one.text) for one in texts.examples} & set(trains)
    counts = Counter(one.intent for one in texts.training)
    assert set(counts) == set(texts.intents)
    assert min(counts.values()) >= 40


def test_a_row_of_train_csv_that_is_sent_is_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "train.csv").write_text('text,category\n"ONE,  two",a\nfour,b\nfive,a\n')
    texts = texts_of(folder, 1)
    assert [(one.text, one.intent) for one in texts.training] == [("four", "b"), ("five", "a")]
    assert (texts.dropped, texts.training_source) == (1, str(folder / "train.csv"))


def test_a_train_csv_with_a_stranger_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "train.csv").write_text("text,category\nfour,c\n")
    with pytest.raises(DrivetrainError, match=r"train\.csv has the category `c`"):
        texts_of(folder, None)


def test_a_folders_texts_are_all_sent_or_as_many_as_asked(tmp_path: Path) -> None:
    folder = write(tmp_path)
    assert {(one.text, one.intent) for one in texts_of(folder, None).examples} == {("one, two", "a"), ("three", "b")}
    assert len(texts_of(folder, 1).examples) == 1
    assert len(texts_of(folder, 5).examples) == 5
    assert texts_of(folder, None).attribution.endswith("test.csv"), "only BANKING77 is called so"


@pytest.mark.parametrize(
    ("texts", "intents", "said"),
    [
        (None, INTENTS, "test.csv cannot be read: No such file"),
        (TEXTS, None, "categories.json cannot be read: No such file"),
        ("text,label\nx,a\n", INTENTS, "no column `category`"),
        ("text,category\nx,c\n", INTENTS, "the category `c`"),
        ("text,category\n", INTENTS, "has no text"),
        (TEXTS, "{", "is no JSON"),
        (TEXTS, "[]", "is no list of names"),
    ],
)
def test_what_is_missing_is_named_with_what_to_do(
    tmp_path: Path, texts: str | None, intents: str | None, said: str
) -> None:
    with pytest.raises(DrivetrainError) as caught:
        texts_of(write(tmp_path, texts, intents), None)
    assert said in caught.value.what
    assert str(tmp_path) in caught.value.what
    assert "--data wants a folder with test.csv" in caught.value.do


def test_a_folder_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DrivetrainError, match="not made by a demo"), DemoFolder(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_demos_folder_is_made_anew_with_new_keys(tmp_path: Path) -> None:
    keys = []
    for _ in range(2):
        with DemoFolder(tmp_path / "demo") as folder:
            (folder.path / "link").symlink_to(tmp_path)
            folder.write(own_texts(3))
            keys.append(folder.key("web-chat"))
            assert (folder.path / "secrets" / "web-chat.key").stat().st_mode & 0o077 == 0
    assert keys[0] != keys[1]
    assert tmp_path.is_dir()
