"""Formatters: one function per output format that turns a report into text."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any

from hpcq.core.frozen import dataclass
from hpcq.report.add_comparisons import SuiteResult
from hpcq.report.clean_text import clean_table, csv_cell, isolated, valid_unicode
from hpcq.report.column_blocks import column_blocks, heading
from hpcq.report.fidelity import ChoiceFidelity
from hpcq.report.panel import PanelFidelity
from hpcq.report.rows import Row
from hpcq.report.run_files import RunFiles
from hpcq.report.table import Column, Table
from hpcq.report.text_tables import ruled_table

if TYPE_CHECKING:
    from hpcq.report.gate import GateResult
    from hpcq.report.page.content import PageContent

TEXT_WIDTH = 120
"""Title and notes are wrapped at this width, or at that of the terminal if it is narrower."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Input of a formatter.

    Attributes:
        runs: Names of the runs, separated by commas.
        rows: All scores.
        suites: Mean differences of variants over their tasks.
        answers: A sentence per variant: what the comparison with its baseline shows.
        table: The main scores, pivoted.
        differences: Differences from the baselines; None if nothing was compared.
        fidelity: Fidelity of variants on multiple-choice tasks.
        closeness: Their table; None if there is none.
        panels: Fidelity of variants on the fidelity panel.
        panel_closeness: Their table; None if there is none.
        more: Further tables.
        documents: Further fields of the JSON document.
        gate: What a gate says; None: there is none.
        checks: Its table.
        sources: Where the page reads provenance, plans, attempts, and items that changed.
        width: Columns of the terminal that the text must fit; None: as wide as the table.
    """

    runs: str
    rows: Sequence[Row]
    table: Table
    suites: Sequence[SuiteResult] = ()
    answers: Sequence[str] = ()
    differences: Table | None = None
    fidelity: Sequence[ChoiceFidelity] = ()
    closeness: Table | None = None
    panels: Sequence[PanelFidelity] = ()
    panel_closeness: Table | None = None
    more: Sequence[Table] = ()
    documents: Mapping[str, Any] = field(default_factory=dict)
    gate: GateResult | None = None
    checks: Table | None = None
    sources: Sequence[RunFiles] = ()
    width: int | None = None

    @property
    def tables(self) -> tuple[Table, ...]:
        """All tables, in their order, with clean texts."""
        tables = (self.table, self.differences, self.panel_closeness, self.closeness, self.checks, *self.more)
        return tuple(map(clean_table, filter(None, tables)))


Formatter = Callable[[Report], str]


def format_text(report: Report) -> str:
    """Format as plain text. On a terminal, columns beyond its width are continued in a further block below."""
    out = [line for answer in report.answers for line in _wrapped(answer, report.width)]
    for table in report.tables:
        out += [*([""] if out else []), *_wrapped(table.title, report.width)]
        for block in column_blocks(table, report.width):
            has_details = any(table.columns[at].detail for at in block)
            headings = [heading(table.columns[at], with_detail=has_details) for at in block]
            lines = [[line[at] for at in block] for line in table.lines]
            left = sum(at < table.left_columns for at in block)
            out += ["", *ruled_table(headings, lines, left=left, width=report.width)]
        if table.notes:
            out += ["", *(line for note in table.notes for line in _wrapped(note, report.width))]
    return isolated("\n".join(out)) + "\n"


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
    from tabulate import tabulate

    alignment = ["left" if at < table.left_columns else "right" for at in range(len(table.columns))]
    return str(tabulate(table.lines, table.headings, table_format, colalign=alignment, disable_numparse=True))


_MARKDOWN = re.compile(r"[\\`*|~]|<(?=\S)|&(?=#?\w+;)|\](?=[(\[])|(?<!\w)_|_(?!\w)")
"""What Markdown would read as markup in a name. An underscore between two letters is not."""


def _escape_markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", text)


def _markdown_item(sentence: str) -> str:
    """Return an item of a list. A sentence that begins with a sign or a number is no list of its own, or heading."""
    return re.sub(r"^(\d*)([-+#=>.)])", r"\1\\\2", _escape_markdown(sentence))


def format_markdown(report: Report) -> str:
    """Format as GitHub-flavoured Markdown: the answers, then the tables, each followed by its notes as a list."""
    lines = [f"- {_markdown_item(answer)}" for answer in report.answers]
    for table in report.tables:
        escaped = dataclasses.replace(
            table,
            columns=tuple(Column(name=_escape_markdown(heading)) for heading in table.headings),
            lines=tuple(tuple(map(_escape_markdown, line)) for line in table.lines),
        )
        lines += [
            *([""] if lines else []),
            f"### {_escape_markdown(table.title)}",
            "",
            _tabulated(escaped, "pipe"),
            "",
            *(f"- {_markdown_item(note)}" for note in table.notes),
        ]
    return isolated("\n".join(lines)) + "\n"


def format_csv(report: Report) -> str:
    """Format all rows with all fields as CSV (RFC 4180), not the pivoted table."""
    output = io.StringIO()
    documents = [
        {
            **row.as_json(),
            "marks": "; ".join(mark.sentence for mark in row.marks),
            "published_protocol": "; ".join(row.published_protocol),
            "failure": row.failure.sentence if row.failure else None,
            **_panel_columns(report, row),
        }
        for row in report.rows
    ]
    writer = csv.DictWriter(output, fieldnames=list(documents[0]))
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in document.items()} for document in documents)
    return output.getvalue()


def _panel_columns(report: Report, row: Row) -> dict[str, float | None]:
    """Return the variant's fidelity on the panel; nothing if no variant has read one."""
    if not report.panels:
        return {}
    own = next((one for one in report.panels if (one.run, one.variant) == (row.run, row.variant)), None)
    names = ("divergence", "agreement", "perplexity_ratio")
    found = {name: getattr(own, name) if own else None for name in names}
    return {
        f"panel_{name}{suffix}": getattr(estimate, end) if estimate else None
        for name, estimate in found.items()
        for suffix, end in (("", "value"), ("_low", "low"), ("_high", "high"))
    }


def format_latex(report: Report) -> str:
    """Format as LaTeX tables (booktabs), each with its title as caption and its notes below."""
    from hpcq.report.latex import latex_tables

    return latex_tables(report.tables)


def format_html(report: Report) -> str:
    """Format as one HTML file that needs no network, with plots and the evidence of the scores."""
    from hpcq.report.page.make_page import make_page

    return make_page(page_content(report))


def page_content(report: Report) -> PageContent:
    """Return the input of the page and of the figures, read from the runs.

    Raises:
        StorageError: A file cannot be read.
    """
    from hpcq.report.page.content import PageContent
    from hpcq.report.page.evidence import read_evidence

    return PageContent(
        runs=report.runs,
        rows=report.rows,
        table=clean_table(report.table),
        suites=report.suites,
        answers=report.answers,
        fidelity=report.fidelity,
        closeness=clean_table(report.closeness) if report.closeness else None,
        panels=report.panels,
        panel_closeness=clean_table(report.panel_closeness) if report.panel_closeness else None,
        checks=clean_table(report.checks) if report.checks else None,
        more=tuple(map(clean_table, report.more)),
        evidence=read_evidence(report.sources, report.rows),
    )


def format_json(report: Report) -> str:
    """Format as the JSON document of `report --json` (a contract)."""
    document = {
        "schema": 1,
        "run": report.runs,
        "notes": list(report.table.notes),
        "answers": list(report.answers),
        "rows": [row.as_json() for row in report.rows],
        "suites": [dataclasses.asdict(suite) for suite in report.suites],
        "fidelity": [dataclasses.asdict(one) for one in report.fidelity],
        **({"fidelity_panel": [dataclasses.asdict(one) for one in report.panels]} if report.panels else {}),
        **report.documents,
        **({"gate": report.gate.as_json()} if report.gate else {}),
    }
    return json.dumps(valid_unicode(document), indent=2) + "\n"


FORMATTERS: Mapping[str, Formatter] = {
    "text": format_text,
    "md": format_markdown,
    "csv": format_csv,
    "latex": format_latex,
    "html": format_html,
    "json": format_json,
}
