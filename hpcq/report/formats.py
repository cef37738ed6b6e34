"""Formatters: one function per output format that turns a report into text."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hpcq.report.rows import Row
from hpcq.report.table import COST_COLUMNS, Table

TEXT_WIDTH = 120
GAP = "  "


@dataclass(frozen=True, kw_only=True)
class Report:
    """Input of a formatter.

    Attributes:
        runs: Names of the runs, separated by commas.
        rows: All scores.
        table: The main scores, pivoted.
    """

    runs: str
    rows: Sequence[Row]
    table: Table


Formatter = Callable[[Report], str]


def format_text(report: Report) -> str:
    """Format as aligned plain text. Columns beyond TEXT_WIDTH are continued in a further block below."""
    table = report.table
    names, details = [column.name for column in table.columns], [column.detail for column in table.columns]
    widths = [max(map(len, cells)) for cells in zip(names, details, *table.lines, strict=True)]
    out = [*_wrapped(table.title), ""]
    for block in _blocks(widths):
        rule = "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * _width(widths, block)
        headings = [names, details] if any(details[at] for at in block) else [names]
        out += [_aligned(line, widths, block) for line in headings]
        out += [rule, *(_aligned(line, widths, block) for line in table.lines), rule]
    return "\n".join([*out, *(line for note in table.notes for line in _wrapped(note))]) + "\n"


def _blocks(widths: Sequence[int]) -> list[list[int]]:
    """Split the columns into blocks of TEXT_WIDTH: each starts with the variant; the cost columns stay together."""
    costs = len(widths) - len(COST_COLUMNS)
    blocks = [[0]]
    for group in (*([at] for at in range(1, costs)), list(range(costs, len(widths)))):
        if len(blocks[-1]) > 1 and _width(widths, blocks[-1] + group) > TEXT_WIDTH:
            blocks.append([0])
        blocks[-1] += group
    return blocks


def _width(widths: Sequence[int], block: Sequence[int]) -> int:
    return sum(widths[at] for at in block) + len(GAP) * (len(block) - 1)


def _aligned(line: Sequence[str], widths: Sequence[int], block: Sequence[int]) -> str:
    cells = (line[at].rjust(widths[at]) if at else line[at].ljust(widths[at]) for at in block)
    return GAP.join(cells).rstrip()


def _wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, TEXT_WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def format_markdown(report: Report) -> str:
    """Format as a GitHub-flavoured Markdown table, followed by the notes as a list."""
    lines = [
        f"### {report.table.title}",
        "",
        "| " + " | ".join(map(_markdown_cell, report.table.headings)) + " |",
        "|---|" + "---:|" * (len(report.table.columns) - 1),
        *("| " + " | ".join(map(_markdown_cell, line)) + " |" for line in report.table.lines),
        "",
        *(f"- {note}" for note in report.table.notes),
    ]
    return "\n".join(lines) + "\n"


def _markdown_cell(cell: str) -> str:
    return cell.replace("|", "\\|")


def format_csv(report: Report) -> str:
    """Format all rows with all fields as CSV (RFC 4180), not the pivoted table."""
    output = io.StringIO()
    writer = csv.DictWriter(output, fieldnames=[field.name for field in dataclasses.fields(Row)])
    writer.writeheader()
    writer.writerows(row.as_json() for row in report.rows)
    return output.getvalue()


_LATEX = str.maketrans(
    {
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        "\N{PLUS-MINUS SIGN}": r"$\pm$",
        "\N{DAGGER}": r"\dag{}",
        "\N{MINUS SIGN}": r"$-$",
        "\N{EN DASH}": "--",
    }
)


def format_latex(report: Report) -> str:
    """Format as a LaTeX table (booktabs) with title and notes in the caption."""
    body = [
        " & ".join(cell.translate(_LATEX) for cell in line) + r" \\"
        for line in (report.table.headings, *report.table.lines)
    ]
    caption = " ".join((report.table.title, *report.table.notes)).translate(_LATEX)
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{caption}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(report.table.columns) - 1)}}}",
            r"\toprule",
            body[0],
            r"\midrule",
            *body[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem}"
    "table{border-collapse:collapse}th,td{padding:.3rem .8rem;text-align:right;border-bottom:1px solid #ddd}"
    "th:first-child,td:first-child{text-align:left}td{font-variant-numeric:tabular-nums}"
)


def format_html(report: Report) -> str:
    """Format as one HTML page without scripts or external links."""
    head = "".join(f"<th scope=col>{html.escape(cell)}</th>" for cell in report.table.headings)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in report.table.lines
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in report.table.notes)
    title = html.escape(report.table.title)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n<style>{_STYLE}</style>\n'
        f"<h1>{title}</h1>\n<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"
        f"<ul>{notes}</ul>\n</html>\n"
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
