"""Places of tables and files: a folder, and an S3-compatible server that one module starts once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lake_stores import S3Server, Store


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    started = S3Server()
    started.wait()
    yield started
    started.close()


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return Store("", {}, tmp_path, False)
    server: S3Server = request.getfixturevalue("server")
    return server.store(tmp_path)
