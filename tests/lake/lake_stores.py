"""Places that a lake may stand at, for the conformance suites: a folder, and a real S3-compatible server."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import duckdb

from drivetrain.adapters.lake_places import LakePlace, lake_place
from drivetrain.adapters.mirror import Mirror
from drivetrain.adapters.objects import FileObjects, StoreObjects

SECRET = "wJalrXUtnFEMI-K7MDENG-never-shown"
START_S = 60.0
STARTED = re.compile(rb"Running on http://127\.0\.0\.1:(\d+)")


@dataclass
class Store:
    """One empty lake; every `open` is another reader or writer of it."""

    url: str
    options: dict[str, str]
    root: Path
    """Below it stands whatever this machine holds: the lake's folder, or the mirror."""
    is_remote: bool

    def open(self, **more: Any) -> LakePlace:
        return lake_place(self.url, self.options, folder=self.root / "lake", mirror=self.root / "mirror", **more)

    def beside(self) -> FileObjects | StoreObjects:
        """The tables' files, as another program sees them."""
        if not self.is_remote:
            return FileObjects(self.root / "lake" / "tables")
        return StoreObjects(f"{self.url}/tables", self.options, Mirror(self.root / "none"), "none")

    def listed(self) -> list[str]:
        """Every file of the tables."""
        return sorted(one.path for one in self.beside().entries(""))


class S3Server:
    """An S3-compatible server on loopback, in a process of its own."""

    def __init__(self) -> None:
        self.port = 0
        """Its own, once `wait` has ended."""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        # It takes a free port by itself: one that was free a moment ago may be somebody else's.
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", "0"],
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        self._buckets = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait(self) -> None:
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            found = STARTED.search(os.pread(self._said.fileno(), 1 << 16, 0))
            if found is not None:
                self.port = int(found[1])
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/moto-api/", timeout=START_S):
                    return
            time.sleep(0.05)
        raise AssertionError("the S3 server did not start")

    def store(self, root: Path, *, endpoint: str = "") -> Store:
        self._buckets += 1
        bucket = f"lake-{self._buckets}"
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/{bucket}", method="PUT")):
            pass
        return Store(f"s3://{bucket}/of/ours", s3_options(endpoint or self.url), root, True)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._said.close()


def s3_options(endpoint: str) -> dict[str, str]:
    return {
        "endpoint": endpoint,
        "region": "us-east-1",
        "access_key_id": "AKIAOFTHETESTS",
        "secret_access_key": SECRET,
    }


@contextlib.contextmanager
def http_server(answer: Callable[[BaseHTTPRequestHandler, bytes], None]) -> Iterator[str]:
    """A server that answers every request as `answer` does; its url."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def any(self) -> None:
            answer(self, self.rfile.read(int(self.headers.get("content-length", 0))))

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = any

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(request: BaseHTTPRequestHandler, body: bytes, port: int) -> tuple[int, dict[str, str], bytes]:
    """What the server at `port` says to a request that was meant for it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)
    try:
        connection.request(request.command, request.path, body, dict(request.headers.items()))
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def forward(request: BaseHTTPRequestHandler, body: bytes, port: int) -> None:
    """Answers a request as the server at `port` does."""
    status, headers, said = ask(request, body, port)
    request.send_response_only(status)
    for name, value in headers.items():
        if name.lower() not in ("transfer-encoding", "connection", "content-length"):
            request.send_header(name, value)
    length = headers.get("Content-Length", "0") if request.command == "HEAD" else str(len(said))
    request.send_header("content-length", length)
    request.end_headers()
    request.wfile.write(said)


def rows(query: str) -> Any:
    """Arrow rows of a query."""
    from arro3.core import Table

    with duckdb.connect() as connection:
        return Table.from_arrow(connection.sql(query))


def read(place: LakePlace, table: str, select: str = "*", **which: Any) -> list[tuple[Any, ...]]:
    """The rows of a table, as a query engine reads its files."""
    found = place.tables.files(table, **which)
    assert found is not None
    if not found.paths:
        return []
    with duckdb.connect() as connection:
        return connection.execute(
            f"select {select} from read_parquet(?, union_by_name=true, hive_partitioning=?, hive_types_autocast=false)",
            [list(found.paths), bool(found.partition_by)],
        ).fetchall()


def is_readable_in(root: Path, marker: str) -> list[str]:
    """Files below `root` in which `marker` can be read: in their bytes, or in a Parquet file's rows or statistics."""
    found = []
    for path in (one for one in root.rglob("*") if one.is_file()):
        inside = marker.encode() in path.read_bytes()
        if not inside and path.name.endswith(".parquet"):
            with duckdb.connect() as connection:
                held = connection.execute("select * from read_parquet(?)", [str(path)]).fetchall()
                held += connection.execute("select * from parquet_metadata(?)", [str(path)]).fetchall()
            inside = marker in str(held)
        if inside:
            found.append(str(path.relative_to(root)))
    return found
