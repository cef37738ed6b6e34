"""HTML and SVG elements. All text and all attributes are escaped, and invisible characters are shown by their codes."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass

from hpcq.report.clean_text import RIGHT_TO_LEFT_RUN, isolated

LONGEST_TEXT = 4000
"""Characters of one text; the middle of a longer one is left out."""

_KEPT_IN_ANSWERS = "\n\t\xa0\u200c\u200d\u3000"
"""Characters without a glyph that texts of models contain for good reasons."""

_WITHOUT_END = ("br", "col", "input")


@dataclass(frozen=True)
class Html:
    """Source that is complete and escaped."""

    source: str

    def __bool__(self) -> bool:
        """Whether there is any source."""
        return bool(self.source)


Content = Html | str | int | None
"""A part of an element: source, or text to be escaped; None is left out."""

Attribute = str | int | float | bool | None
"""Value of an attribute. True: without a value. None and False: left out."""

NOTHING = Html("")


def visible(text: str, *, kept: str = "\n") -> str:
    r"""Return `text` with the codes of its invisible characters: '\x1b', '\u202e'.

    These are control characters, those that change the direction of text, halves of surrogate pairs, and blanks other
    than a space.

    Args:
        text: Any text.
        kept: Invisible characters that stay.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in kept else one.encode("unicode_escape").decode() for one in text)


def shortened(text: str, length: int) -> str:
    """Return `text`; beyond `length` characters, its beginning and its end, and how many characters are left out."""
    if len(text) <= length:
        return text
    half = length // 2
    return f"{text[:half]} [… {len(text) - 2 * half:,} characters …] {text[-half:]}"


_RAW_TEXT = frozenset({"title", "desc", "text", "option"})
"""Elements that contain only text: right-to-left words are isolated by characters, not by <bdi>."""


def _content_text(text: str, *, is_raw: bool) -> str:
    """Return `text` as source of an element, with right-to-left words isolated from what is next to them."""
    source = escape(text)
    if source.isascii():
        return source
    return isolated(source) if is_raw else RIGHT_TO_LEFT_RUN.sub(r"<bdi>\g<0></bdi>", source)


def escape(text: str) -> str:
    """Return `text` as source of an element or of a quoted attribute."""
    return html.escape(visible(shortened(text, LONGEST_TEXT)))


def answer_text(text: str) -> Html:
    """Return the text of a model as source: tabs, joiners and wide blanks stay, other invisible characters do not."""
    return Html(html.escape(visible(shortened(text, LONGEST_TEXT), kept=_KEPT_IN_ANSWERS)))


def tag(name: str, *content: Content, **attributes: Attribute) -> Html:
    """Return an element.

    Args:
        name: Name of the element.
        content: Its parts.
        attributes: Their names are written with '-' for '_'. A '_' at the end is removed: `class_`.
    """
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{_attribute(key, value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _WITHOUT_END:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{join(content, is_raw=name in _RAW_TEXT).source}</{name}>")


def _attribute(name: str, value: str | float) -> str:
    """Return the source of a value; of one that is read or shown, with right-to-left words isolated."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    source = escape(str(value))
    return isolated(source) if name in ("aria_label", "title") else source


def join(parts: Iterable[Content], separator: str = "", *, is_raw: bool = False) -> Html:
    """Return the parts one after another.

    Args:
        parts: The parts.
        separator: Source between them.
        is_raw: Whether the element that contains them can have no elements.
    """
    return Html(
        separator.join(
            part.source if isinstance(part, Html) else _content_text(str(part), is_raw=is_raw)
            for part in parts
            if part is not None
        )
    )
