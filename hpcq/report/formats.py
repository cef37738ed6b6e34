"""Formatters: one function per output format that turns a report into text."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import json
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tabulate import LATEX_ESCAPE_RULES, tabulate

from hpcq.report.rows import Row
from hpcq.report.table import COST_COLUMNS, Column, Table
from hpcq.report.text_tables import GAP, natural_widths, ruled_table

TEXT_WIDTH = 120
"""Title and notes are wrapped at this width, or at that of the terminal if it is narrower."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Input of a formatter.

    Attributes:
        runs: Names of the runs, separated by commas.
        rows: All scores.
        table: The main scores, pivoted.
        width: Columns of the terminal that the text must fit; None: as wide as the table.
    """

    runs: str
    rows: Sequence[Row]
    table: Table
    width: int | None = None


Formatter = Callable[[Report], str]


def format_text(report: Report) -> str:
    """Format as plain text. On a terminal, columns beyond its width are continued in a further block below."""
    table = report.table
    out = _wrapped(table.title, report.width)
    for block in _blocks(table, report.width):
        has_details = any(table.columns[at].detail for at in block)
        headings = [_heading(table.columns[at], with_detail=has_details) for at in block]
        lines = [[line[at] for at in block] for line in table.lines]
        out += ["", *ruled_table(headings, lines, width=report.width)]
    if table.notes:
        out += ["", *(line for note in table.notes for line in _wrapped(note, report.width))]
    return "\n".join(out) + "\n"


def _heading(column: Column, *, with_detail: bool) -> str:
    # rich moves shorter headings down: a blank line keeps all names in the first line.
    return f"{column.name}\n{column.detail or ' '}" if with_detail else column.name


def _blocks(table: Table, width: int | None) -> list[list[int]]:
    """Split the columns into blocks that fit `width`. Each starts with the variant; cost columns stay together."""
    widths = natural_widths([[_heading(column, with_detail=True) for column in table.columns], *table.lines])

    def fits(block: Sequence[int]) -> bool:
        return width is None or sum(widths[at] for at in block) + GAP * (len(block) - 1) <= width

    first_cost = len(widths) - len(COST_COLUMNS)
    costs = list(range(first_cost, len(widths)))
    blocks = [[0]]
    for group in (*([at] for at in range(1, first_cost)), *([costs] if fits([0, *costs]) else ([at] for at in costs))):
        if len(blocks[-1]) > 1 and not fits(blocks[-1] + group):
            blocks.append([0])
        blocks[-1] += group
    return blocks


def _wrapped(sentence: str, width: int | None) -> list[str]:
    return textwrap.wrap(
        sentence,
        min(width or TEXT_WIDTH, TEXT_WIDTH),
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _tabulated(table: Table, table_format: str) -> str:
    """Return the table in one of tabulate's formats: the first column to the left, the others to the right."""
    alignment = ("left", *["right"] * (len(table.columns) - 1))
    return str(tabulate(table.lines, table.headings, table_format, colalign=alignment, disable_numparse=True))


_MARKDOWN = re.compile(r"[\\`*|~]|<(?=\S)|&(?=#?\w+;)|\](?=[(\[])|(?<!\w)_|_(?!\w)")
"""What Markdown would read as markup in a name. An underscore between two letters is not."""


def _escape_markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", text)


def format_markdown(report: Report) -> str:
    """Format as a GitHub-flavoured Markdown table, followed by the notes as a list."""
    table = dataclasses.replace(
        report.table,
        columns=tuple(Column(name=_escape_markdown(heading)) for heading in report.table.headings),
        lines=tuple(tuple(map(_escape_markdown, line)) for line in report.table.lines),
    )
    title = _escape_markdown(table.title)
    lines = [
        f"### {title}",
        "",
        _tabulated(table, "pipe"),
        "",
        *(f"- {_escape_markdown(note)}" for note in table.notes),
    ]
    return "\n".join(lines) + "\n"


def format_csv(report: Report) -> str:
    """Format all rows with all fields as CSV (RFC 4180), not the pivoted table."""
    output = io.StringIO()
    writer = csv.DictWriter(output, fieldnames=[field.name for field in dataclasses.fields(Row)])
    writer.writeheader()
    for row in report.rows:
        marks = "; ".join(mark.sentence for mark in row.marks)
        writer.writerow({**row.as_json(), "marks": marks, "failure": row.failure.sentence if row.failure else None})
    return output.getvalue()


_LATEX_SYMBOLS = str.maketrans(
    {
        "\N{PLUS-MINUS SIGN}": r"$\pm$",
        "\N{DAGGER}": r"\dag{}",
        "\N{MINUS SIGN}": r"$-$",
        "\N{EN DASH}": "--",
        # At the start of a line both would be an argument of the preceding line's `\\`.
        "[": "{[}",
        "*": "{*}",
    }
)
"""Applied after tabulate has escaped LaTeX's special characters."""
_LATEX_MARK = re.compile(r"\\\^\{\}([A-Z?,]+)(?![A-Za-z])")
"""Symbol of a mark, as tabulate escapes it."""


def format_latex(report: Report) -> str:
    """Format as a LaTeX table (booktabs) with title and notes in the caption."""
    caption = " ".join((report.table.title, *report.table.notes))
    # Undocumented, but the rules by which tabulate escapes the cells.
    escaped_caption = "".join(LATEX_ESCAPE_RULES.get(character, character) for character in caption)
    lines = [
        r"\begin{table}",
        rf"\caption{{{escaped_caption}}}",
        _tabulated(report.table, "latex_booktabs"),
        r"\end{table}",
    ]
    without_ligatures = re.sub("-(?=-)", "-{}", "\n".join(lines))
    return _LATEX_MARK.sub(r"\\textsuperscript{\1}", without_ligatures.translate(_LATEX_SYMBOLS)) + "\n"


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem}"
    "table{border-collapse:collapse}th,td{padding:.3rem .8rem;text-align:right;border-bottom:1px solid #ddd}"
    "th:first-child,td:first-child{text-align:left}td{font-variant-numeric:tabular-nums}"
)


def format_html(report: Report) -> str:
    """Format as one HTML page without scripts or external links."""
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in report.table.notes)
    title = html.escape(report.table.title)
    # Aligned by the style sheet; tabulate escapes the cells.
    table = tabulate(report.table.lines, report.table.headings, tablefmt="html", stralign=None, disable_numparse=True)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n<style>{_STYLE}</style>\n'
        f"<h1>{title}</h1>\n{table}\n<ul>{notes}</ul>\n</html>\n"
    )


def format_json(report: Report) -> str:
    """Format as the JSON document of `report --json` (a contract)."""
    document = {
        "schema": 1,
        "run": report.runs,
        "notes": list(report.table.notes),
        "rows": [row.as_json() for row in report.rows],
    }
    return json.dumps(document, indent=2) + "\n"


FORMATTERS: Mapping[str, Formatter] = {
    "text": format_text,
    "md": format_markdown,
    "csv": format_csv,
    "latex": format_latex,
    "html": format_html,
    "json": format_json,
}
