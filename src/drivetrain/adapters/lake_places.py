"""Where a project's lake stands: its tables and files, from the url and the options of `[lake]`.

By default a folder; `s3://bucket/prefix` is an S3-compatible store. Below either, `tables/` and `files/`. Called by
whoever wires a lake; nothing is opened or asked before the first use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from drivetrain.adapters.delta import DeltaTables
from drivetrain.adapters.mirror import MIRROR_BYTES_MAX, Mirror
from drivetrain.adapters.objects import (
    CONNECT_S_MAX,
    REQUEST_S_MAX,
    RETRIES_MAX,
    RETRY_S_MAX,
    FileObjects,
    StoreObjects,
    checked_options,
)
from drivetrain.core.errors import DrivetrainError

_NAMES = {
    "endpoint": "AWS_ENDPOINT_URL",
    "region": "AWS_REGION",
    "access_key_id": "AWS_ACCESS_KEY_ID",
    "secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
    "allow_http": "AWS_ALLOW_HTTP",
    "virtual_hosted_style_request": "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
    "skip_signature": "AWS_SKIP_SIGNATURE",
    "unsigned_payload": "AWS_UNSIGNED_PAYLOAD",
}
"""Our options as the table library calls them."""


class LakePlace(NamedTuple):
    """A lake's tables, and the files beside them."""

    tables: DeltaTables
    objects: FileObjects | StoreObjects
    raw: FileObjects | StoreObjects
    """The files that the tables consist of: `calls/_delta_log/...`."""
    copies: Path
    """Where those stand on this disk: themselves, or what was fetched of them."""
    folder: Path | None
    """Of a lake in a folder; None: it stands in an object store."""


def lake_place(
    url: str,
    options: Mapping[str, str],
    *,
    folder: Path,
    mirror: Path,
    mirror_bytes_max: int = MIRROR_BYTES_MAX,
    now_s: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> LakePlace:
    """The lake at `url`; where it is empty, in `folder`.

    options: of an object store, with secrets resolved. mirror: folder for copies of a remote lake's files.
    Raises: DrivetrainError.
    """
    scheme = urlsplit(url).scheme if "://" in url else ""
    if scheme == "s3":
        copies = Mirror(mirror, bytes_max=mirror_bytes_max, now_s=now_s)
        return _in_store(url.rstrip("/"), options, copies, mirror / "tables", now_s=now_s, sleep=sleep)
    if scheme not in ("", "file"):
        raise DrivetrainError(
            f"`url` under [lake] begins with `{scheme}://`, which no lake stands at.",
            do="Write `s3://bucket/prefix` (for any S3-compatible store), a folder, or leave it out.",
        )
    if options:
        raise DrivetrainError(
            "[lake.options] are of an object store, but the lake stands in a folder.",
            do='Write `url = "s3://bucket/prefix"` under [lake], or remove the options.',
        )
    return _in_folder(folder if not url else Path(url.removeprefix("file://")), now_s, sleep)


def _in_folder(root: Path, now_s: Callable[[], float], sleep: Callable[[float], None]) -> LakePlace:
    root = Path(root.absolute())
    if unquote(str(root)) != str(root):
        # The table library takes `%20` in a path for a space, and then writes in one folder and reads in another.
        raise DrivetrainError(
            f"A lake cannot stand in {root}: the path holds a `%` with two digits behind it.",
            do="Rename the folder, or name another by `url` under [lake].",
        )
    tables = root / "tables"
    raw = FileObjects(tables)
    return LakePlace(
        tables=DeltaTables(raw, uri=str(tables), locks=root / "locks", now_s=now_s, sleep=sleep),
        objects=FileObjects(root / "files"),
        raw=raw,
        copies=tables,
        folder=root,
    )


def _in_store(
    url: str,
    options: Mapping[str, str],
    mirror: Mirror,
    copies: Path,
    *,
    now_s: Callable[[], float],
    sleep: Callable[[float], None],
) -> LakePlace:
    address = urlsplit(url)
    is_plain = all(part not in ("", ".", "..") for part in address.path.split("/")[1:])
    if not address.netloc or "@" in address.netloc or address.query or address.fragment or not is_plain:
        # Not shown: what stands before an `@` is a password.
        raise DrivetrainError(
            "`url` under [lake] is not like `s3://bucket/prefix`.",
            do="Write the bucket and a path only; credentials belong under [lake.options], by reference.",
        )
    said = checked_options(options)
    storage = {
        **{_NAMES[name]: value for name, value in said.items()},
        # A commit is a PUT that fails where the version is there: no other lock is needed.
        "AWS_CONDITIONAL_PUT": "etag",
        "timeout": f"{REQUEST_S_MAX}s",
        "connect_timeout": f"{CONNECT_S_MAX}s",
        "max_retries": str(RETRIES_MAX),
        "retry_timeout": f"{RETRY_S_MAX}s",
    }
    raw = StoreObjects(f"{url}/tables", options, mirror, "tables")
    return LakePlace(
        tables=DeltaTables(raw, uri=f"{url}/tables", storage=storage, now_s=now_s, sleep=sleep),
        objects=StoreObjects(f"{url}/files", options, mirror, "files"),
        raw=raw,
        copies=copies,
        folder=None,
    )
