r"""LaTeX tables that compile as they are: they need booktabs and graphicx, fit \textwidth and the height of a page.

Wide tables are split into blocks of columns, and long ones into several floats. Notes are below the table. The source
is for pdfLaTeX, XeLaTeX and LuaLaTeX.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from hpcq.core.frozen import dataclass
from hpcq.report.column_blocks import column_blocks
from hpcq.report.table import Column, Table

WIDTH = 108
r"""Characters of a line. About 85 of \small text fit the text width of an article; more are reduced to 7 points."""
LINES = 38
"""Lines of a float: of an article's 43 lines, without the caption and the space around the table."""
_NOTE_WIDTH = 110
r"""Characters of \footnotesize text in a line."""
_BLOCK_LINES = 3
"""Height of the headings and rules of a block, in lines."""

_PREAMBLE = r"""% Tables of hpcq. Add to the preamble: \usepackage{booktabs,graphicx}
% Characters that pdfLaTeX's fonts do not have are shown by their code points.
\providecommand{\hpcqchar}[2]{\ifdefined\Umathcode#1\else{\ttfamily #2}\fi}
% A table that is wider than the text is reduced to its width.
\providecommand{\hpcqfit}[1]{\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{#1}}"""

_SYMBOLS = {
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{DAGGER}": r"\dag{}",
    "\N{DOUBLE DAGGER}": r"\ddag{}",
    "\N{SECTION SIGN}": r"\S{}",
    "\N{MINUS SIGN}": r"$-$",
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "\N{ALMOST EQUAL TO}": r"$\approx$",
    "\N{DOWNWARDS ARROW}": r"$\downarrow$",
    "\N{UPWARDS ARROW}": r"$\uparrow$",
    "\N{RIGHTWARDS ARROW}": r"$\rightarrow$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{LESS-THAN OR EQUAL TO}": r"$\leq$",
    "\N{GREATER-THAN OR EQUAL TO}": r"$\geq$",
    "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
    "\N{RIGHT SINGLE QUOTATION MARK}": "{'}",
    "\N{NO-BREAK SPACE}": "~",
    # At the start of a line both would be an argument of the preceding line's `\\`.
    "[": "{[}",
    "*": "{*}",
}
_MARK = re.compile(r"\\\^\{\}([A-Z?,]+)(?![A-Za-z])")
"""Symbol of a mark, after its escape."""
_LIGATURE = re.compile(r"(?<=[-`'!?,<>])(?=[-`',<>])")
"""Between two characters that TeX would join."""
_LETTERS = re.compile("[\N{LATIN CAPITAL LETTER A WITH GRAVE}-\N{LATIN SMALL LETTER Y WITH DIAERESIS}]")
_NOT_IN_FONTS = frozenset("\N{MULTIPLICATION SIGN}\N{DIVISION SIGN}ÐÞðþ")
"""Characters in the range of `_LETTERS` that LaTeX's default fonts do not have."""


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Part of a float: LaTeX source, and its height in lines."""

    source: str
    height: float


def latex_tables(tables: Sequence[Table]) -> str:
    """Return the tables as LaTeX floats, after the definitions that they need."""
    return "\n".join([_PREAMBLE, *(line for table in tables for line in _floats(table))]) + "\n"


def escape(text: str) -> str:
    """Return LaTeX that shows `text`: no character of it is a command, an active character or part of a ligature."""
    from tabulate import LATEX_ESCAPE_RULES

    found = "".join(LATEX_ESCAPE_RULES.get(character, character) for character in _LIGATURE.sub("\0", text))
    # A zero-width group: `--` and the like would be typeset as one character.
    shown = "".join(map(_typeset, found))
    return _MARK.sub(r"\\textsuperscript{\1}", shown)


def _typeset(character: str) -> str:
    if character == "\0":
        return "{}"
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    if character.isascii() or (_LETTERS.fullmatch(character) and character not in _NOT_IN_FONTS):
        return character
    return rf"\hpcqchar{{{character}}}{{U+{ord(character):04X}}}"


def _floats(table: Table) -> Iterator[str]:
    """Yield the floats of a table. Each has as many blocks and notes as fit a page."""
    content: list[str] = []
    height, caption = 0.0, escape(table.title)
    for piece in (*_blocks(table), *map(_note, table.notes)):
        if content and height + piece.height > LINES:
            yield _float(content, caption)
            content, height, caption = [], 0.0, escape(f"{table.title} (continued)")
        content.append(piece.source)
        height += piece.height
    yield _float(content, caption)


def _float(content: Sequence[str], caption: str) -> str:
    body = "\n\\par\\smallskip\n".join(content)
    return "\n".join(
        [r"\begin{table}", r"\centering\small", rf"\caption{{{caption}}}", r"\par\smallskip", body, r"\end{table}"]
    )


def _note(sentence: str) -> _Piece:
    source = rf"\parbox{{\linewidth}}{{\footnotesize\raggedright {escape(sentence)}}}"
    return _Piece(source=source, height=0.85 * (1 + len(sentence) // _NOTE_WIDTH) + 0.3)


def _blocks(table: Table) -> Iterator[_Piece]:
    """Yield the table in blocks of columns that fit the width, and of lines that fit a page."""
    rows = LINES - _BLOCK_LINES
    for block in column_blocks(table, WIDTH):
        columns = [table.columns[at] for at in block]
        for start in range(0, max(1, len(table.lines)), rows):
            lines = tuple(tuple(line[at] for at in block) for line in table.lines[start : start + rows])
            part = replace(table, columns=tuple(columns), lines=lines)
            left = sum(at < table.left_columns for at in block)
            yield _Piece(source=_tabular(part, left), height=len(lines) + _BLOCK_LINES)


def _tabular(table: Table, left: int) -> str:
    alignment = "l" * left + "r" * (len(table.columns) - left)
    lines = [
        rf"\hpcqfit{{\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        *_heading(table.columns),
        r"\midrule",
        *(_line(map(escape, cells)) for cells in table.lines),
        r"\bottomrule",
        r"\end{tabular}}",
    ]
    return "\n".join(lines)


def _heading(columns: Sequence[Column]) -> Iterator[str]:
    """Yield the names, and the details in a second line."""
    yield _line(escape(column.name) for column in columns)
    if any(column.detail for column in columns):
        yield _line(escape(column.detail) for column in columns)


def _line(cells: Iterator[str]) -> str:
    return " & ".join(cells) + r" \\"
