"""Report of one or more runs: read results and plans, compare, and format."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcq.core.errors import RunIncompleteError
from hpcq.core.work_records import default_compute_dtype
from hpcq.report.failed_variants import VariantFailure
from hpcq.report.formats import FORMATTERS, Report
from hpcq.report.published import add_published_scores, find_studies
from hpcq.report.rows import Row, make_rows
from hpcq.report.table import CROSS_BACKEND_MARK, make_table
from hpcq.store import Results, read_results

FEW_ITEMS = 1000


@dataclass(frozen=True, kw_only=True)
class MergedRun:
    """Input of a report.

    Attributes:
        name: Name of the run.
        results: Path of `results.h5`.
        plan_document: Content of `plan.json`.
        failures: Why variants have missing responses, by variant.
    """

    name: str
    results: Path
    plan_document: Mapping[str, Any]
    failures: Mapping[str, VariantFailure] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ComparedRows:
    """Scores of one or more runs, with baselines and published scores.

    Attributes:
        names: Names of the runs, separated by commas.
        rows: One row per variant, task, metric and filter.
        notes: Sentences that belong to the scores.
    """

    names: str
    rows: Sequence[Row]
    notes: Sequence[str]


def make_report(
    runs: Sequence[MergedRun], *, output_format: str = "text", compare: str | None = None, width: int | None = None
) -> str:
    """Return the scores of `runs` as text.

    Args:
        runs: The runs; a run that is given twice is shown once.
        output_format: A key of `FORMATTERS`.
        compare: A study with published scores, or 'published' for all studies; None for those in the manifests.
        width: Columns of the terminal that the text must fit; None: as wide as the table.

    Raises:
        RunIncompleteError: A run has no merged results yet, or its responses are synthetic.
        UserInputError: The catalog has no such study.
    """
    compared = report_rows(runs, compare=compare)
    table = make_table(
        compared.rows,
        title=f"{compared.names}: score \N{PLUS-MINUS SIGN} standard error (difference from unquantized), percent",
        notes=compared.notes,
    )
    return FORMATTERS[output_format](Report(runs=compared.names, rows=compared.rows, table=table, width=width))


def report_rows(runs: Sequence[MergedRun], *, compare: str | None = None) -> ComparedRows:
    """Return the scores of `runs` as rows, with the arguments and errors of `make_report`."""
    runs = _unique_runs(runs)
    names = ", ".join(run.name for run in runs)
    studies = _studies_to_compare(runs, compare)
    rows: list[Row] = []
    runs_of_note: dict[str, list[str]] = {}
    for run in runs:
        results = read_results(run.results)
        rows += _rows_of(run, results)
        for note in dict.fromkeys(_notes_of(run, results)):
            runs_of_note.setdefault(note, []).append(run.name)
    if not any(row.value is not None or row.is_withheld for row in rows):
        failures = [failure.sentence for run in runs for failure in run.failures.values()]
        raise RunIncompleteError("\n".join([f"{names}: no task is complete enough to be scored yet.", *failures]))
    notes = [
        note if len(noting) == len(runs) else f"{', '.join(noting)}: {note}" for note, noting in runs_of_note.items()
    ]
    if any(row.value is not None and row.n < FEW_ITEMS for row in rows):
        notes.append("Few items (n): a difference below about twice the standard error is not significant.")
    cross_backend = sorted({f"{row.scheme} by {row.backend}" for row in rows if row.is_cross_backend})
    if cross_backend:
        notes.append(
            f"{CROSS_BACKEND_MARK} {', '.join(cross_backend)}: evaluated with another backend than the baseline."
            " Kernels and rounding differ, too."
        )
    if studies:
        rows, published_notes = add_published_scores(rows, studies)
        notes += published_notes
    return ComparedRows(names=names, rows=rows, notes=notes)


def _unique_runs(runs: Sequence[MergedRun]) -> list[MergedRun]:
    """Remove duplicate runs; different runs with the same name are named by their folders."""
    unique = {run.results.resolve(): run for run in runs}.values()
    count = Counter(run.name for run in unique)
    return [run if count[run.name] == 1 else dataclasses.replace(run, name=str(run.results.parent)) for run in unique]


def _studies_to_compare(runs: Sequence[MergedRun], compare: str | None) -> tuple[str, ...]:
    if compare is not None:
        return find_studies(compare, place="--compare")
    named = [
        study
        for run in runs
        for name in run.plan_document.get("compare", ())
        for study in find_studies(name, place=f"{run.name}: report.compare")
    ]
    return tuple(dict.fromkeys(named))


def _rows_of(run: MergedRun, results: Results) -> list[Row]:
    if any(variant.provenance.get("rehearsal") for variant in results.variants):
        raise RunIncompleteError(
            f"{run.name}: the responses are synthetic "
            f"({results.merge['found']} of {results.merge['expected']} merged), so this run has no scores."
        )
    units = run.plan_document["units"]
    # A model that was repaired after its unit had failed is another variant; the last merge may have the earlier one.
    planned = {unit["variant"] for unit in units}
    return make_rows(
        dataclasses.replace(
            results, run=run.name, variants=tuple(one for one in results.variants if one.variant in planned)
        ),
        variant_order=list(dict.fromkeys(unit["variant"] for unit in units if unit["variant"])),
        task_order=list(dict.fromkeys(task for unit in units for task in unit["tasks"])),
        failures=run.failures,
    )


def _notes_of(run: MergedRun, results: Results) -> list[str]:
    merge = results.merge
    notes = list(run.plan_document.get("notes", ()))
    if merge["missing"]:
        notes.append(
            f"{merge['missing']} of {merge['expected']} responses are missing: the affected tasks have no score."
        )
    if merge["conflicts"]:
        notes.append(f"{merge['conflicts']} requests have conflicting responses: see `hpcq merge {run.name}`.")
    if any(variant.marks is None for variant in results.variants):
        notes.append(f"merged by an earlier version, which did not verify the responses: run `hpcq merge {run.name}`.")
    return [*notes, *_compute_dtype_notes(results)]


def _compute_dtype_notes(results: Results) -> Iterator[str]:
    """Yield which variants were computed in another type than their scheme implies: `evaluate.dtype` was set."""
    others: dict[str, list[str]] = {}
    for variant in results.variants:
        provenance = variant.provenance
        weights, dtype = (
            json.loads(str(provenance.get("recipe") or "{}")).get("weights"),
            str(provenance.get("dtype") or ""),
        )
        if weights and dtype and dtype != default_compute_dtype(weights):
            others.setdefault(dtype, []).append(str(provenance["scheme"]))
    for dtype, schemes in others.items():
        names = "all variants" if len(schemes) == len(results.variants) else ", ".join(dict.fromkeys(schemes))
        yield f"Computed in {dtype} (evaluate.dtype): {names}. The name of a scheme is the type of its weights."
