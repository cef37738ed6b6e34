"""One report from one or more runs: reads their results and plans, and asks for one of the formats."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcq.core.errors import RunIncomplete
from hpcq.report.formats import WRITERS, Report
from hpcq.report.published import beside_published, studies_named
from hpcq.report.rows import Row, make_rows
from hpcq.report.table import ACROSS, make_table
from hpcq.store import Results, read_results

FEW_ITEMS = 1000


@dataclass(frozen=True, kw_only=True)
class MergedRun:
    """What is read of a run: its name, its merged results, and the document of its plan."""

    name: str
    results: Path
    document: Mapping[str, Any]


def make_report(runs: Sequence[MergedRun], *, output_format: str = "text", compare: str | None = None) -> str:
    """The scores of `runs` as text in one of the formats of WRITERS.

    `compare` names a study, or 'published' for any; None: those that the runs' manifests name.

    Raises:
        RunIncomplete: a run has no merged results yet, or is a rehearsal, which has no scores.
        UserInputError: no such study to compare with.
    """
    runs = _distinct(runs)
    names = ", ".join(run.name for run in runs)
    studies = _studies(runs, compare)
    rows: list[Row] = []
    runs_of_note: dict[str, list[str]] = {}
    for run in runs:
        results = read_results(run.results)
        rows += _rows_of(run, results)
        for note in dict.fromkeys(_notes_of(run, results)):
            runs_of_note.setdefault(note, []).append(run.name)
    if not rows:
        raise RunIncomplete(f"{names}: nothing can be scored yet.")
    notes = [note if len(noted) == len(runs) else f"{', '.join(noted)}: {note}" for note, noted in runs_of_note.items()]
    if any(row.n < FEW_ITEMS for row in rows):
        notes.append("Few items (n): a difference below about twice the standard error says nothing about the scheme.")
    across = sorted({f"{row.scheme} by {row.backend}" for row in rows if row.is_across_backends})
    if across:
        notes.append(
            f"{ACROSS} {', '.join(across)}, and what it is compared with by another back end: kernels and roundings"
            " differ, too."
        )
    if studies:
        rows, told = beside_published(rows, studies)
        notes += told
    table = make_table(
        rows,
        title=f"{names}: score \N{PLUS-MINUS SIGN} standard error (difference from unquantized), percent",
        notes=notes,
    )
    return WRITERS[output_format](Report(runs=names, rows=rows, table=table))


def _distinct(runs: Sequence[MergedRun]) -> list[MergedRun]:
    """Each run once, however often it is named; runs that share a name are called by their folders."""
    once = {run.results.resolve(): run for run in runs}.values()
    count = Counter(run.name for run in once)
    return [run if count[run.name] == 1 else dataclasses.replace(run, name=str(run.results.parent)) for run in once]


def _studies(runs: Sequence[MergedRun], compare: str | None) -> tuple[str, ...]:
    if compare is not None:
        return studies_named(compare, place="--compare")
    named = [
        study
        for run in runs
        for name in run.document.get("compare", ())
        for study in studies_named(name, place=f"{run.name}: report.compare")
    ]
    return tuple(dict.fromkeys(named))


def _rows_of(run: MergedRun, results: Results) -> list[Row]:
    if any(variant.provenance.get("rehearsal") for variant in results.variants):
        raise RunIncomplete(
            f"{run.name}: this was a rehearsal with synthetic responses "
            f"({results.merge['found']} of {results.merge['expected']} merged); it has no scores."
        )
    units = run.document["units"]
    return make_rows(
        dataclasses.replace(results, run=run.name),
        order=list(dict.fromkeys(unit["variant"] for unit in units if unit["variant"])),
        task_order=list(dict.fromkeys(task for unit in units for task in unit["tasks"])),
    )


def _notes_of(run: MergedRun, results: Results) -> list[str]:
    merge = results.merge
    notes = list(run.document.get("notes", ()))
    if merge["missing"]:
        notes.append(
            f"{merge['missing']} of {merge['expected']} responses are missing: tasks without them have no score."
        )
    if merge["conflicts"]:
        notes.append(f"{merge['conflicts']} requests have two different responses: see `hpcq merge {run.name}`.")
    return notes
