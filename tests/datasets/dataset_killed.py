"""Makes a Dataset and stands still at a given moment, to be killed there: FOLDER MOMENT."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from dataset_samples import Place

from drivetrain.adapters.objects import FileObjects
from drivetrain.datasets import FromFile

MOMENTS = ("staged", "half", "written")
"""Rows stand in the working folder; a file of them is half in the store; the files are there and no manifest."""


class Halting(FileObjects):
    """A store that stops for ever at a moment of a creation."""

    def __init__(self, root: Path, moment: str) -> None:
        super().__init__(root)
        self._moment = moment

    def put_file(self, path: str, source: Path) -> None:
        if self._moment == "staged":
            _halt()
        if self._moment == "half":
            with self._whole(path, new=False) as half:
                half.write(source.read_bytes()[:100])
                half.flush()
                _halt()
        super().put_file(path, source)

    def put(self, path: str, content: bytes, *, new: bool = False) -> None:
        _halt()


def _halt() -> None:
    print("halted", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    place = Place(Path(sys.argv[1]))
    datasets = place.over(Halting(place.store, sys.argv[2]))
    datasets.create("golden", FromFile(place.file("killed.csv", "id,name\n1,secret-of-the-killed\n")))
