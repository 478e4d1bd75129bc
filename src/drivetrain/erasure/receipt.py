"""What an erasure found and did: what people see before it, and the receipt that the control log keeps for ever.

Neither the receipt nor what leads to it in the control log names the person: it has a keyed digest, the same for the
same person, that nobody without the project's keys can make.
"""

from __future__ import annotations

from typing import Any

import msgspec

ERASE = "erase"
"""The control log's kind of receipts; the subject is the digest."""


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """How much each place has of a subject."""

    keys: int = 0
    """Payload keys: with them every prompt, answer and feature that is encrypted under them goes."""
    calls: int = 0
    others_calls: int = 0
    """Calls of others whose tags or business key name them."""
    outcomes: int = 0
    spend: int = 0
    """Rows whose tags name them; the sums stay."""
    pushed: dict[str, int] = {}
    """Push source -> rows."""
    datasets: dict[str, int] = {}
    """`dataset:golden@3` -> rows."""
    quarantined: dict[str, int] = {}
    """`dataset:golden@3` -> values that violated its schema."""
    described: tuple[str, ...] = ()
    """Datasets whose query names them: it is not kept."""
    vectors: dict[str, int] = {}
    """Online table -> vectors."""
    eval_rows: int = 0
    """Rows of evals, and answers kept for their next run, that could be matched with them; the rows' scores stay."""
    accounts: int = 0
    """Counters of budgets and limits under their name; what was spent stays."""

    @property
    def any(self) -> bool:
        """Whether anybody has ever heard of them here."""
        return any(getattr(self, name) for name in self.__struct_fields__)


class Elsewhere(msgspec.Struct, frozen=True, kw_only=True):
    """What may still have something of them, and whose business that is."""

    models: tuple[str, ...] = ()
    """Artifacts made from Datasets that lost rows: they have learned from them, or report on them."""
    files: tuple[str, ...] = ()
    """Files of the project that feature views read."""
    sources: tuple[str, ...] = ()
    """Declared systems that stay outside."""
    exports: tuple[str, ...] = ()
    """Files that Datasets were exported to."""
    providers: tuple[str, ...] = ()
    """Whom their Calls were sent to."""
    unmarked: dict[str, int] = {}
    """Dataset -> rows in which a cell is their id, in a column that is not marked `subject`."""
    untold: tuple[str, ...] = ()
    """Datasets with personal columns, and none that says whose a row is."""
    unsaid: tuple[str, ...] = ()
    """Other Datasets in which no column says whose a row is: no row of theirs was looked for there."""
    entities: dict[str, tuple[str, ...]] = {}
    """Entity without `subject=True` -> what would be looked through if it had it: `features of view orders`."""
    aside: tuple[str, ...] = ()
    """Folders beside the data and the keys that a restore moved aside, or was cut off in making."""
    unreadable: tuple[str, ...] = ()
    """Datasets whose manifest or files are missing or damaged; what is left of them may have rows of anybody."""
    declared: tuple[str, ...] = ()
    """Files of the project that name them."""
    control_records: tuple[int, ...] = ()
    """Numbers of records in the control log that name them; they are chained and cannot be changed."""


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What was done."""

    erasure: str
    """16 hex digits."""
    digest: str
    """Of the subject, under the project's keys."""
    began_ns: int
    ended_ns: int
    places: Places
    answers: int = 0
    """Copies kept for Idempotency-Keys: nobody can tell whose they are, so all went; their keys stay known."""
    segments: int = 0
    """Of the ledger, that went; what others' they held is in the lake."""
    elsewhere: Elsewhere

    @property
    def body(self) -> dict[str, Any]:
        """Of its record in the control log: nothing in it names the person, nor a file that does."""
        told = msgspec.to_builtins(self)
        del told["digest"]
        return dict(told)
