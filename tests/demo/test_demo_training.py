"""The demo's training by itself: what stands in the folder afterwards, and what is said where there is no model."""

from __future__ import annotations

import msgspec
import pytest

from drivetrain.cli.demo_folder import DemoFolder
from drivetrain.cli.demo_texts import Texts, own_texts
from drivetrain.cli.demo_training import COMMANDS, LIBRARIES, NoModel, train_in
from drivetrain.core.errors import DrivetrainError
from drivetrain.project import load


def no_word(_text: str) -> None:
    pass


def few(texts: Texts, each: int, intents: int) -> Texts:
    """`each` training texts of so many intents."""
    kept = [[one for one in texts.training if one.intent == name][:each] for name in texts.intents[:intents]]
    return msgspec.structs.replace(texts, training=tuple(one for some in kept for one in some))


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> DemoFolder:
    return DemoFolder(tmp_path_factory.mktemp("training") / "demo")


@pytest.mark.parametrize("missing", LIBRARIES)
def test_without_its_libraries_the_route_is_whole_and_says_how_to_get_them(folder: DemoFolder, missing: str) -> None:
    texts = own_texts(3)
    with folder:
        folder.write(texts)
        found = train_in(folder, texts, no_word, is_installed=lambda name: name != missing)
        assert isinstance(found, NoModel)
        assert 'pip install "drivetrain[train]"' in found.why
        route = load(folder.path).workflows["intent"].route
    assert [one.name for one in route] == ["wallet", "passcode", "closing", "efficient", "frontier"]
    assert "trained model comes" not in (folder.path / "workflows" / "intent.py").read_text()


@pytest.mark.slow
def test_too_few_texts_give_no_threshold_and_no_champion(folder: DemoFolder) -> None:
    texts = few(own_texts(3), each=5, intents=12)
    with folder:
        folder.write(texts)
        found = train_in(folder, texts, no_word)
        assert isinstance(found, NoModel)
        assert "no confidence keeps its errors below 2%" in found.why
        assert "rows cannot show an error" in found.why
        assert not load(folder.path).pinned


def test_a_training_that_fails_is_told_in_its_own_words(folder: DemoFolder) -> None:
    texts = few(own_texts(3), each=20, intents=1)
    with folder:
        folder.write(texts)
        with pytest.raises(DrivetrainError) as caught:
            train_in(folder, texts, no_word)
    assert "`intent` has 1 different values" in caught.value.what
    assert "%" not in caught.value.what, "no progress"
    assert "train.csv" in caught.value.do


def test_the_projects_readme_tells_the_commands_that_are_run(folder: DemoFolder) -> None:
    with folder:
        folder.write(own_texts(3))
        readme = (folder.path / "README.md").read_text()
    for command in COMMANDS:
        assert f"    drivetrain {' '.join(command)}\n" in readme
