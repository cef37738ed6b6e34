"""Text from names, ids and outputs of models, made safe for every format: one line, printable, of bounded length."""

from __future__ import annotations

import re
from dataclasses import replace

from hpcq.core.sentences import one_line
from hpcq.report.table import Column, Table

MAX_CELL, MAX_SENTENCE = 200, 4000
"""Characters of a cell, and of a title, a note or an answer. JSON and CSV have all characters."""

_FORMULA = ("=", "+", "-", "@", "\N{FULLWIDTH EQUALS SIGN}", "\N{FULLWIDTH PLUS SIGN}",
            "\N{FULLWIDTH HYPHEN-MINUS}", "\N{FULLWIDTH COMMERCIAL AT}")  # fmt: skip
"""Beginnings of cells that a spreadsheet computes (OWASP, CSV Injection)."""


_CONTROL = re.compile(
    r"[^\n\r\t\x20-\x7e\xa0-\u061b\u061d-\u200d\u2010-\u2027\u202f-\u2065\u206a-\ud7ff\ue000-\U0010ffff]"
)
"""Control characters, U+2028 and U+2029, characters that change the direction of text, and surrogates."""
_PICTURES = 0x2400


_RIGHT_TO_LEFT = "\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff"
"""Blocks of scripts that are written from right to left (DerivedBidiClass.txt)."""
RIGHT_TO_LEFT_RUN = re.compile(f"[{_RIGHT_TO_LEFT}]+(?:[ ._'-]?[{_RIGHT_TO_LEFT}]+)*")
"""Right-to-left words. Two blanks end a run: they are between two columns of a table."""


def isolated(text: str) -> str:
    """Return `text` with each run of right-to-left words isolated: it cannot reorder what is next to it.

    U+2068 and U+2069 are the marks that the Unicode Bidirectional Algorithm (3.1.2) has for names in other text.
    """
    return text if text.isascii() else RIGHT_TO_LEFT_RUN.sub("\u2068\\g<0>\u2069", text)


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(_PICTURES + code) if code < ord(" ") else found[0].encode("unicode_escape").decode()


def clean(text: str, limit: int = MAX_SENTENCE) -> str:
    """Return one printable line; what is cut is counted.

    Control characters, escape sequences of terminals, and halves of surrogate pairs become blanks. Marks that change
    the direction of text are shown by their codes.
    """
    line = one_line(text)
    return line if len(line) <= limit else f"{line[:limit]}\N{HORIZONTAL ELLIPSIS} ({len(line)} characters)"


def clean_table(table: Table) -> Table:
    """Return the table with clean texts."""
    return replace(
        table,
        title=clean(table.title),
        columns=tuple(
            Column(name=clean(one.name, MAX_CELL), detail=clean(one.detail, MAX_CELL)) for one in table.columns
        ),
        lines=tuple(tuple(clean(cell, MAX_CELL) for cell in line) for line in table.lines),
        notes=tuple(map(clean, table.notes)),
    )


def csv_cell(value: object) -> object:
    """Return a cell that spreadsheets and terminals show as it is. Line breaks and tabs stay.

    A text that a spreadsheet would compute gets an apostrophe before it. Control characters become their pictures
    (U+2400). Other characters without a glyph that act on text, and halves of surrogate pairs, become their codes.
    """
    if not isinstance(value, str):
        return value
    shown = _CONTROL.sub(_picture, value)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown


def valid_unicode(value: object) -> object:
    """Return JSON types without halves of surrogate pairs, which UTF-8 does not have."""
    if isinstance(value, str):
        if value.isascii():
            return value
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {valid_unicode(key): valid_unicode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [valid_unicode(item) for item in value]
    return value
