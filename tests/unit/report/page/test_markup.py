"""Elements: escaped text, visible control characters, shortened texts."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from hpcq.report.page.markup import LONGEST_TEXT, Html, answer_text, join, shortened, tag, visible


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a & b", "'x'", "]]>"])
def test_text_and_attributes_are_read_back(text: str) -> None:
    """A parser reads the same text from an element and from an attribute: nothing becomes markup."""
    found = ElementTree.fromstring(tag("p", text, title=text).source)  # noqa: S314 (our own source)
    assert (found.text, found.get("title"), list(found)) == (text, text, [])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\u202eb", "a\\u202eb"),
        ("a\x00b\r", "a\\x00b\\r"),
        ("half \ud83d", "half \\ud83d"),
        ("\U000e0041", "\\U000e0041"),
        ("tab\tno-break\xa0space", "tab\\tno-break\\xa0space"),
        ("line\nאבג 日本 é", "line\nאבג 日本 é"),
    ],
)
def test_invisible_characters_are_shown(text: str, shown: str) -> None:
    """Control characters, overrides of the direction and halves of surrogate pairs are codes; letters are unchanged."""
    assert visible(text) == shown
    visible(text).encode("utf-8")


def test_texts_of_models_keep_their_layout() -> None:
    """Tabs, joiners of emoji and wide blanks stay in texts of models; what a terminal obeys does not."""
    assert answer_text("a\tb\u3000\u200d<\x1b\u202e").source == "a\tb\u3000\u200d&lt;\\x1b\\u202e"


def test_long_texts_are_shortened_with_their_length() -> None:
    """Of a text of 1 MB both ends are shown, and the number of characters between them."""
    text = "a" * 500_000 + "b" * 500_000
    found = tag("p", text).source
    assert len(found) < LONGEST_TEXT + 100
    assert "996,000 characters" in found
    assert found.startswith("<p>aaa")
    assert found.endswith("bbb</p>")
    assert shortened("short", 10) == "short"


def test_attributes() -> None:
    """Names have dashes, booleans have no value or are left out, and numbers at most two decimals."""
    made = tag("a", None, Html("<i></i>"), 5, class_="x", aria_label="y", open=True, hidden=False, x=1.2345, id=None)
    assert made.source == '<a class="x" aria-label="y" open x="1.23"><i></i>5</a>'
    assert tag("br").source == "<br>"
    assert join(["<", None, Html("-")], " ").source == "&lt; -"
