"""Whose the rows of an eval are that came from Calls.

A Dataset that grew from Calls often names nobody, but its rows are what somebody said. What is asked and answered of
them goes under that person's key, so that an erasure of the person takes it along. Called by the wiring of runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from drivetrain.core.ids import is_call_id
from drivetrain.evals.cases import Case
from drivetrain.evals.growing import CALL_ID
from drivetrain.lake.lake import Lake


def owned(cases: Sequence[Case], lake: Lake) -> list[Case]:
    """The cases, each that has no subject under the user of the Call that it came from.

    Costs one question to the lake, where any came from one. Raises: DrivetrainError.
    """
    ids = sorted({id_ for one in cases if (id_ := _call_of(one))})
    if not ids:
        return list(cases)
    with lake.reading(("calls",)) as connection:
        asked = 'SELECT call_id, "user" FROM calls WHERE list_contains(?, call_id)'
        users = {str(call_id): str(user or "") for call_id, user in connection.execute(asked, [ids]).fetchall()}
    return [
        msgspec.structs.replace(one, subject=users[_call_of(one)]) if users.get(_call_of(one)) else one for one in cases
    ]


def _call_of(case: Case) -> str:
    """The Call that a row of nobody's came from; empty where none is named."""
    call_id = case.values.get(CALL_ID)
    return call_id if not case.subject and isinstance(call_id, str) and is_call_id(call_id) else ""
