"""Few rows from many, each with its weight: what a sample says of the whole is then what the whole says.

Stratified: every stratum gives as many rows as every other, or all that it has, so that what is rare is seen. In a
stratum of N rows of which n are taken each is taken with chance n/N and carries weight N/n: weights add up to the rows
that there were. Which rows: those whose key hashes lowest under the seed, so that the same rows give the same sample.
"""

# ruff: noqa: S608 - cells are named by position, and every name or text from outside is quoted

from __future__ import annotations

from collections.abc import Sequence

from drivetrain.core.datasets import SampleV1, SchemaV1
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.sql import literal
from drivetrain.datasets.staging import Bench

STRATA_MAX = 10_000
"""More is a column of ids, and no stratum."""


def sample(bench: Bench, schema: SchemaV1, wanted: SampleV1, key: Sequence[str]) -> SampleV1:
    """`kept` becomes the sample, with the column `w`. key: columns that tell rows apart; none: all of them.

    Raises: DrivetrainError.
    """
    names = [one.name for one in schema.columns]
    if wanted.rows < 1:
        raise DrivetrainError(f"A sample of {wanted.rows} rows is none.", do="Write --sample with 1 or more.")
    if wanted.by and wanted.by not in names:
        raise DrivetrainError(f"There is no column `{wanted.by}` to sample by.", do=did_you_mean(wanted.by, names))
    total = int(bench.one("SELECT count(*) FROM kept"))
    stratum = f"v{names.index(wanted.by)}" if wanted.by else "0"
    sizes = list(bench.rows(f"SELECT {stratum}, count(*) FROM kept GROUP BY 1 ORDER BY 2, 1 LIMIT {STRATA_MAX + 1}"))
    if len(sizes) > STRATA_MAX:
        raise DrivetrainError(
            f"Column `{wanted.by}` has more than {STRATA_MAX:,} values: it makes no strata.",
            do="Sample by a column with few values, or by a number of rows.",
        )
    if wanted.rows < min(len(sizes), total):
        raise DrivetrainError(
            f"A sample of {wanted.rows} rows leaves some of the {len(sizes)} values of `{wanted.by}` without any.",
            do=f"Take at least {len(sizes)}.",
        )
    taken = allotted([size for _, size in sizes], wanted.rows)
    bench.connection.execute(f"CREATE TABLE sizes AS SELECT {stratum} AS stratum, count(*) AS n FROM kept GROUP BY 1")
    shares = ", ".join(f"({place + 1}, {share})" for place, share in enumerate(taken))
    bench.connection.execute(
        "CREATE TABLE strata AS SELECT stratum, n, taken "
        "FROM (SELECT *, row_number() OVER (ORDER BY n, stratum) AS turn FROM sizes) "
        f"JOIN (VALUES {shares}) AS shares(place, taken) ON turn = place"
    )
    cells = ", ".join(f"coalesce(CAST(v{names.index(one)} AS VARCHAR), chr(0))" for one in (key or names))
    dice = f"sha256(concat_ws(chr(31), {literal(str(wanted.seed))}, {cells}))"
    bench.connection.execute(
        f"CREATE TABLE sampled AS SELECT k.*, s.n / s.taken AS w FROM "
        f"(SELECT *, {stratum} AS stratum, row_number() OVER (PARTITION BY {stratum} ORDER BY {dice}, r) AS turn "
        f"FROM kept) AS k JOIN strata AS s ON k.stratum IS NOT DISTINCT FROM s.stratum WHERE k.turn <= s.taken"
    )
    bench.connection.execute("DROP TABLE kept")
    bench.connection.execute("CREATE TABLE kept AS SELECT * EXCLUDE (stratum, turn) FROM sampled ORDER BY r")
    return SampleV1(rows=int(bench.one("SELECT count(*) FROM kept")), seed=wanted.seed, by=wanted.by, of=total)


def allotted(sizes: Sequence[int], rows: int) -> list[int]:
    """How many of each stratum, smallest first: an equal share of what is left, or all that it has."""
    left = min(rows, sum(sizes))
    taken = []
    for place, size in enumerate(sizes):
        share = min(size, left // (len(sizes) - place))
        taken.append(share)
        left -= share
    return taken
