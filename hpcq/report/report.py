"""One report from one or more runs: reads their results and plans, and asks for one of the formats."""

from __future__ import annotations

from collections.abc import Sequence

from hpcq.errors import RunIncomplete
from hpcq.report.formats import WRITERS, Report
from hpcq.report.published import beside_published, studies_named
from hpcq.report.rows import Row, make_rows
from hpcq.report.table import make_table
from hpcq.runs import RunRecord
from hpcq.store import read_results

FEW_ITEMS = 1000


def make_report(records: Sequence[RunRecord], *, output_format: str = "text", compare: str | None = None) -> str:
    """The scores of `records`' runs as text in one of the formats of WRITERS.

    Raises:
        RunIncomplete: a run has no merged results yet, or is a rehearsal, which has no scores.
        UserInputError: no such study to compare with.
    """
    rows: list[Row] = []
    notes: list[str] = []
    studies = studies_named(compare) if compare else ()
    for record in records:
        rows += _rows_of(record)
        notes += [note for note in _notes_of(record) if note not in notes]
    if not rows:
        raise RunIncomplete(f"{', '.join(record.layout.name for record in records)}: nothing can be scored yet.")
    if any(row.n < FEW_ITEMS for row in rows):
        notes.append("Few items (n): a difference below about twice the standard error says nothing about the scheme.")
    if studies:
        rows, told = beside_published(rows, studies)
        notes += told
    names = ", ".join(record.layout.name for record in records)
    table = make_table(
        rows,
        title=f"{names}: score \N{PLUS-MINUS SIGN} standard error (difference from unquantized), percent",
        notes=notes,
    )
    return WRITERS[output_format](Report(runs=names, rows=rows, table=table))


def _rows_of(record: RunRecord) -> list[Row]:
    results = read_results(record.layout.results)
    if any(variant.provenance.get("rehearsal") for variant in results.variants):
        raise RunIncomplete(
            f"{record.layout.name}: this was a rehearsal with synthetic responses "
            f"({results.merge['found']} of {results.merge['expected']} merged); it has no scores."
        )
    units = record.document["units"]
    return make_rows(
        results,
        order=list(dict.fromkeys(unit["variant"] for unit in units if unit["variant"])),
        task_order=list(dict.fromkeys(task for unit in units for task in unit["tasks"])),
    )


def _notes_of(record: RunRecord) -> list[str]:
    merge = read_results(record.layout.results).merge
    notes = list(record.document.get("notes", ()))
    if merge["missing"]:
        notes.append(
            f"{merge['missing']} of {merge['expected']} responses are missing: tasks without them have no score."
        )
    if merge["conflicts"]:
        notes.append(
            f"{merge['conflicts']} requests have two different responses: see `hpcq merge {record.layout.name}`."
        )
    return notes
