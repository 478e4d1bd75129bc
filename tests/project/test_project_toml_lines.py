"""Every key of a TOML file has its line, however the file is written."""

from __future__ import annotations

import json
import tomllib

from hypothesis import given
from hypothesis import strategies as st

from drivetrain.project.toml_lines import locate

TEXT = '''\
# a comment with [brackets] = and "quotes"
top = 1
"quoted key" . inner = 'x' # = ]

[a.b]   # [c]
text = """
[not.a.table]
key = 1 \\""" ""still"""
literal = \'\'\'
[nor.this] \'\'\'
date = 1979-05-27 07:32:00
list = [ 1, # one ]
  "two, ]", [
    3,
  ], { x = [
    4 ], y.z = 5 },
]

[[a.rows]]
n = 1
[a.rows.deep]
m = 1
[[a.rows]]

n = 2
[[a.rows.sub]]
k = 1
[["é \\u00e9".rows]]
v = 1\r
w = true
'''


def test_a_nasty_file() -> None:
    values, lines = tomllib.loads(TEXT), locate(TEXT)
    at = {path: TEXT.splitlines()[line - 1].strip() for path, line in lines.items()}
    assert at["top",] == "top = 1"
    assert lines["quoted key", "inner"] == 3
    assert (lines["a", "b", "text"], lines["a", "b", "literal"], lines["a", "b", "date"]) == (6, 9, 11)
    assert [lines["a", "b", "list", index] for index in range(4)] == [12, 13, 13, 15]
    assert (lines["a", "b", "list", 2, 0], lines["a", "b", "list", 3, "y", "z"]) == (14, 16)
    assert (lines["a", "rows", 0], lines["a", "rows", 1]) == (19, 23)
    assert (lines["a", "rows", 0, "deep", "m"], lines["a", "rows", 1, "sub", 0, "k"]) == (22, 27)
    assert lines["é é", "rows", 0, "w"] == 30
    assert set(_paths(values)) == set(lines)


def _paths(value: object, above: tuple[str | int, ...] = ()):
    if above:
        yield above
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths(inner, (*above, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _paths(inner, (*above, index))


KEYS = st.text(st.characters(codec="utf-8", exclude_characters="\x7f", exclude_categories=("Cc", "Cs")), max_size=4)
SCALARS = st.one_of(st.integers(-9, 9), st.booleans(), KEYS, st.floats(0, 1))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=12,
)


def _quoted(key: str) -> str:
    return json.dumps(key, ensure_ascii=False)


def _written(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(key)} = {_written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[\n" + "".join(f"  {_written(inner)}, # ]\n" for inner in value) + "]"
    return json.dumps(value, ensure_ascii=False)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_every_path_is_located(document: dict[str, object]) -> None:
    text = "\n# = [x]\n".join(f"{_quoted(key)} = {_written(value)}" for key, value in document.items())
    values = tomllib.loads(text)
    lines = locate(text)
    assert set(lines) == set(_paths(values))
    for path, line in lines.items():
        if isinstance(path[-1], str):
            assert _quoted(path[-1]) in text.split("\n")[line - 1]
