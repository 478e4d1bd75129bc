"""`[ledger]` and `[lake]` of drivetrain.toml: where records are kept, and for how long."""

from __future__ import annotations

import re
from pathlib import Path

from drivetrain.core.declarations import RETENTIONS
from drivetrain.project.problems import shown
from drivetrain.project.secrets import REFERENCE_HELP, is_reference
from drivetrain.project.snapshot import LakeSettings, LedgerSettings, SecretRef
from drivetrain.project.tables import Table

LEDGER_KEYS = ("folder", "keys_folder", "retention", "payload_days", "segment_bytes_max")
LAKE_KEYS = ("url", "options", "keep_days", "roll_every_s", "roll_records", "history_s")
KEEP_DAYS_MOST = 36_500
"""A century."""
_LAKE_URL = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?:/[A-Za-z0-9._=/-]*)?")
_SECRET_OPTION = re.compile(r"secret|token|password|access_key(?!_id)", re.IGNORECASE)


def read_ledger(table: Table) -> LedgerSettings:
    """What is said, and else the defaults; every mistake is noted."""
    table.only(LEDGER_KEYS)
    defaults = LedgerSettings()
    folder = table.text("folder", defaults.folder)
    keys_folder = table.text("keys_folder", defaults.keys_folder)
    if Path(keys_folder) == Path(folder) or Path(folder) in Path(keys_folder).parents:
        table.note(
            "keys_folder", "lies in the data folder, so that a copy of the data would carry its keys.",
            value=shown(keys_folder), do='Write for example "keys".',
        )  # fmt: skip
    return LedgerSettings(
        folder=folder,
        keys_folder=keys_folder,
        retention=table.choice("retention", RETENTIONS, defaults.retention),
        payload_days=table.whole("payload_days", defaults.payload_days, most=36_500),
        segment_bytes_max=table.whole("segment_bytes_max", defaults.segment_bytes_max, least=64 * 1024, most=2**32),
    )


def read_lake(table: Table) -> LakeSettings:
    """What is said, and else the defaults; every mistake is noted."""
    table.only(LAKE_KEYS)
    defaults = LakeSettings()
    url = table.text("url")
    if url and not _LAKE_URL.fullmatch(url):
        value = "" if "@" in url else shown(url)
        table.note("url", "is no place for a lake.", value=value, do='Write "s3://BUCKET/PREFIX", or nothing.')
    options: dict[str, str | SecretRef] = {}
    for name, given in table.table("options").values.items():
        if not isinstance(given, str):
            table.table("options").note(name, "must be text in quotes.")
        elif is_reference(given):
            options[name] = SecretRef(given)
        elif _SECRET_OPTION.search(name):
            table.table("options").note(
                name, "is a secret; a secret never stands in a file of the project.", do=REFERENCE_HELP
            )
        else:
            options[name] = given
    keep = table.whole("keep_days", 0, most=KEEP_DAYS_MOST) if "keep_days" in table else None
    return LakeSettings(
        url=url,
        options=options,
        keep_days=keep,
        roll_every_s=table.whole("roll_every_s", defaults.roll_every_s, most=86_400),
        roll_records=table.whole("roll_records", defaults.roll_records, most=1_000_000),
        history_s=table.whole("history_s", defaults.history_s, least=0, most=365 * 86_400),
    )
