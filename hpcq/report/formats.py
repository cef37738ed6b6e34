"""One writer a format, each from rows and the table to text. Knows no run, no file."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hpcq.report.rows import Row
from hpcq.report.table import Table


@dataclass(frozen=True, kw_only=True)
class Report:
    """What every writer gets: the runs' names, all rows, and the table of the main ones."""

    runs: str
    rows: Sequence[Row]
    table: Table


Writer = Callable[[Report], str]


def text(report: Report) -> str:
    """Plain aligned columns, for terminals and pipes alike."""
    grid = [report.table.columns, *report.table.lines]
    widths = [max(len(line[at]) for line in grid) for at in range(len(report.table.columns))]
    aligned = ["  ".join(_aligned(cell, widths[at], at) for at, cell in enumerate(line)).rstrip() for line in grid]
    rule = "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * max(map(len, aligned))
    return "\n".join([report.table.title, "", aligned[0], rule, *aligned[1:], rule, *report.table.notes]) + "\n"


def _aligned(cell: str, width: int, at: int) -> str:
    return cell.ljust(width) if at == 0 else cell.rjust(width)


def markdown(report: Report) -> str:
    """A GitHub-flavoured table; notes as a list below."""
    lines = [
        f"### {report.table.title}",
        "",
        "| " + " | ".join(map(_markdown_cell, report.table.columns)) + " |",
        "|---|" + "---:|" * (len(report.table.columns) - 1),
        *("| " + " | ".join(map(_markdown_cell, line)) + " |" for line in report.table.lines),
        "",
        *(f"- {note}" for note in report.table.notes),
    ]
    return "\n".join(lines) + "\n"


def _markdown_cell(cell: str) -> str:
    return cell.replace("|", "\\|")


def comma_separated(report: Report) -> str:
    """Every row with every field (not the pivoted table), RFC 4180."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=[field.name for field in dataclasses.fields(Row)])
    writer.writeheader()
    writer.writerows(row.as_json() for row in report.rows)
    return out.getvalue()


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
        "\N{MINUS SIGN}": r"$-$",
        "\N{EN DASH}": "--",
    }
)


def latex(report: Report) -> str:
    """A booktabs table with its notes as the caption."""
    body = [
        " & ".join(cell.translate(_LATEX) for cell in line) + r" \\"
        for line in (report.table.columns, *report.table.lines)
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


def hypertext(report: Report) -> str:
    """One page without scripts or links to elsewhere."""
    head = "".join(f"<th scope=col>{html.escape(cell)}</th>" for cell in report.table.columns)
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


def json_document(report: Report) -> str:
    """The document of `report --json` (a contract)."""
    document = {
        "schema": 1,
        "run": report.runs,
        "notes": list(report.table.notes),
        "rows": [row.as_json() for row in report.rows],
    }
    return json.dumps(document, indent=2) + "\n"


WRITERS: Mapping[str, Writer] = {
    "text": text,
    "md": markdown,
    "csv": comma_separated,
    "latex": latex,
    "html": hypertext,
    "json": json_document,
}
