"""Line numbers of keys and list elements in TOML documents."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from hpcq.manifest.toml_document import key_lines
from hpcq.manifest.value_origin import KeyPath

DOCUMENT = '''\
# a comment with = and [brackets]
title = "x" # [not.a.table]

[table]
key = 1
"quoted key" = 2
'literal.key' = 3
dotted.inner . "deep.est" = 4
inline = { a = 1, b.c = [10, { d = "}" }] }
list = [
    1, # first, ] }
    "two ] # \\" not a comment",
    [3,
     4],
    { five = 5 },
]
text = """
[fake]
key = "x"
\\""" still ""inside"""""
after = 2026-01-01 07:32:00
literal = \'\'\'
it's 'here\'\'\'\'
last = 'c:\\'

[[rows]]
id = "first"
[rows.sub]
x = 1
[[rows.many]]
y = 1
[[rows.many]]
y = 2

[[rows]]
id = "second"
[[rows.many]]
y = 3
'''

EXPECTED = {
    ("title",): 2,
    ("table",): 4,
    ("table", "key"): 5,
    ("table", "quoted key"): 6,
    ("table", "literal.key"): 7,
    ("table", "dotted", "inner", "deep.est"): 8,
    ("table", "inline", "b", "c", 1, "d"): 9,
    ("table", "list"): 10,
    ("table", "list", 0): 11,
    ("table", "list", 1): 12,
    ("table", "list", 2): 13,
    ("table", "list", 2, 1): 14,
    ("table", "list", 3, "five"): 15,
    ("table", "text"): 17,
    ("table", "after"): 21,
    ("table", "literal"): 22,
    ("table", "last"): 24,
    ("rows", 0): 26,
    ("rows", 0, "id"): 27,
    ("rows", 0, "sub", "x"): 29,
    ("rows", 0, "many", 0, "y"): 31,
    ("rows", 0, "many", 1, "y"): 33,
    ("rows", 1): 35,
    ("rows", 1, "id"): 36,
    ("rows", 1, "many", 0, "y"): 38,
}


@pytest.mark.parametrize(("key_path", "line"), EXPECTED.items(), ids=str)
def test_each_kind_of_key_has_its_line(key_path: KeyPath, line: int) -> None:
    """Covers tables, arrays of tables, quoted and dotted keys, inline tables, lists and multi-line strings."""
    assert key_lines(DOCUMENT)[key_path] == line


def test_every_key_is_found_and_no_other() -> None:
    """The key paths with a line are exactly those that tomllib finds."""
    assert set(key_lines(DOCUMENT)) == set(_key_paths(tomllib.loads(DOCUMENT)))


_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)
_VALUES = st.recursive(
    st.booleans() | st.integers(-9, 9) | _TEXT | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(_TEXT, _VALUES, max_size=4), st.booleans())
def test_any_document_is_scanned_to_its_end(document: dict[str, Any], multiline: bool) -> None:  # noqa: FBT001
    """Every key path of a document that tomllib accepts has a line inside the document."""
    text = tomli_w.dumps(document, multiline_strings=multiline)
    lines = key_lines(text)
    assert set(lines) == set(_key_paths(tomllib.loads(text)))
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


def _key_paths(value: Any, before: KeyPath = ()) -> list[KeyPath]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, inner in items for path in [(*before, key), *_key_paths(inner, (*before, key))]]
