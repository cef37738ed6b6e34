"""Report of one or more runs: read results and plans, compare, and format."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcq.core.errors import RunIncompleteError
from hpcq.core.frozen import dataclass
from hpcq.core.work_records import PANEL_TASK, default_compute_dtype
from hpcq.report.add_comparisons import SuiteResult, add_comparisons
from hpcq.report.answer import answer_sentences
from hpcq.report.baselines import RequestSettings, baseline_notes, with_other_baselines
from hpcq.report.comparability import comparability_notes, with_comparability
from hpcq.report.comparison_table import comparison_table
from hpcq.report.failed_variants import VariantFailure
from hpcq.report.fidelity import ChoiceFidelity, choice_fidelity
from hpcq.report.fidelity_table import fidelity_table
from hpcq.report.formats import FORMATTERS, Report
from hpcq.report.line import Line
from hpcq.report.measured import measured_notes
from hpcq.report.panel import PanelFidelity, PanelProblem, panel_fidelity
from hpcq.report.panel_table import panel_table
from hpcq.report.prompt_facts import prompt_sentences
from hpcq.report.row_items import RowItems
from hpcq.report.rows import Row, make_rows
from hpcq.report.run_files import RunFiles
from hpcq.report.table import CROSS_BACKEND_MARK, VERDICT_SYMBOLS, Table, line_names, make_table
from hpcq.report.unmerged import missing_reasons, unmerged_rows
from hpcq.store.results import Results, open_results, read_results

if TYPE_CHECKING:
    from hpcq.report.claims.evaluate import ClaimResult
    from hpcq.report.gate import GatePolicy
    from hpcq.report.statistics.shared_items import Correlations

FEW_ITEMS = 1000
DEFAULT_MARGIN_POINTS = 1.0
"""Margin of runs that an earlier version planned."""


@dataclass(frozen=True, kw_only=True)
class MergedRun:
    """Input of a report.

    Attributes:
        name: Name of the run.
        results: Path of `results.h5`.
        plan_document: Content of `plan.json`.
        failures: Why variants have missing responses, by variant.
        attempts: Folder of the attempts; None: the page does not show them.
    """

    name: str
    results: Path
    plan_document: Mapping[str, Any]
    failures: Mapping[str, VariantFailure] = field(default_factory=dict)
    attempts: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ComparedRows:
    """Scores of one or more runs, with baselines and published scores.

    Attributes:
        names: Names of the runs, separated by commas.
        rows: One row per variant, task, metric and filter.
        suites: Mean differences of variants over their tasks.
        fidelity: Fidelity of variants on multiple-choice tasks.
        panels: Fidelity of variants on the fidelity panel.
        panel_problems: Variants that have read the panel and are not compared.
        notes: Sentences that belong to the scores.
        claims: Claims with their verdicts.
        correlations: By run and variant: correlations of the differences of tasks with the same items.
        studies: Studies with whose published scores the report compares.
        recipes: By run and variant: JSON document of the scheme.
    """

    names: str
    rows: Sequence[Row]
    notes: Sequence[str]
    suites: Sequence[SuiteResult]
    fidelity: Sequence[ChoiceFidelity]
    panels: Sequence[PanelFidelity] = ()
    panel_problems: Sequence[PanelProblem] = ()
    claims: Sequence[ClaimResult] = ()
    correlations: Mapping[Line, Correlations] = field(default_factory=dict)
    studies: Sequence[str] = ()
    recipes: Mapping[Line, str] = field(default_factory=dict)


def make_report(
    runs: Sequence[MergedRun],
    *,
    output_format: str = "text",
    compare: str | None = None,
    margin_points: float | None = None,
    claims: str | None = None,
    width: int | None = None,
) -> str:
    """Return the scores of `runs` as text.

    Args:
        runs: The runs; a run that is given twice is shown once.
        output_format: A key of `FORMATTERS`.
        compare: A study with published scores, or 'published' for all studies; None for those in the manifests.
        margin_points: Largest difference in percentage points that counts as equivalent; None for the manifest's.
        claims: A study with claims, 'published' for those of all studies, or a file; None for none. Without runs, they
            are evaluated on the published tables.
        width: Columns of the terminal that the text must fit; None: as wide as the table.

    Raises:
        RunIncompleteError: A run has no merged results yet, or its responses are synthetic.
        UserInputError: The catalog has no such study, or the claims are invalid.
    """
    if claims is not None and not runs:
        from hpcq.report.claims.claim_report import published_claims_report

        return published_claims_report(claims, output_format=output_format, width=width)
    report = build_report(runs, compare=compare, margin_points=margin_points, claims=claims, width=width)
    return FORMATTERS[output_format](report)


def build_report(
    runs: Sequence[MergedRun],
    *,
    compare: str | None = None,
    margin_points: float | None = None,
    claims: str | None = None,
    width: int | None = None,
    gate: GatePolicy | None = None,
) -> Report:
    """Return the input of all formatters, with the arguments and errors of `make_report`.

    Args:
        runs: As in `make_report`.
        compare: As in `make_report`.
        margin_points: As in `make_report`.
        claims: As in `make_report`.
        width: As in `make_report`.
        gate: Policy that the variants must pass.

    Raises:
        KeyedInputError: The policy selects no variant.
    """
    compared = report_rows(runs, compare=compare, margin_points=margin_points, claims=claims)
    names = line_names(compared.rows)
    gated = checks = None
    if gate:
        from hpcq.report.gate import evaluate_gate
        from hpcq.report.gate_table import gate_table

        gated = evaluate_gate(compared.rows, names, gate, compared.correlations)
        checks = gate_table(gated)
    table = make_table(
        compared.rows,
        title=f"{compared.names}: score \N{PLUS-MINUS SIGN} standard error (difference from unquantized), percent",
        notes=[*_verdict_legend(compared.rows), *compared.notes, *measured_notes(compared.rows, names)],
    )
    return Report(
        runs=compared.names,
        rows=compared.rows,
        suites=compared.suites,
        answers=tuple(answer_sentences(compared.rows, compared.suites, names)),
        table=table,
        differences=comparison_table(compared.rows, compared.suites, names),
        fidelity=compared.fidelity,
        closeness=fidelity_table(compared.fidelity, names),
        panels=compared.panels,
        panel_closeness=panel_table(compared.panels, names, compared.panel_problems),
        more=(*_implementations(compared, names), *_published_tables(compared, names), *_claims_tables(compared)),
        documents={**_judged_documents(compared), **_claims_documents(compared)},
        gate=gated,
        checks=checks,
        sources=[
            RunFiles(name=run.name, results=run.results, plan_document=run.plan_document, attempts=run.attempts)
            for run in _unique_runs(runs)
        ],
        width=width,
    )


def _implementations(compared: ComparedRows, names: Mapping[Line, str]) -> tuple[Table, ...]:
    from hpcq.report.implementations_table import implementations_table

    table = implementations_table(compared.rows, compared.recipes, compared.panels, names)
    return (table,) if table else ()


def _published_tables(compared: ComparedRows, names: Mapping[Line, str]) -> tuple[Table, ...]:
    if not compared.studies:
        return ()
    from hpcq.report.published_judged import judged_tables
    from hpcq.report.published_tables import published_tables

    return (*published_tables(compared.rows, names), *judged_tables(compared.rows, names))


def _judged_documents(compared: ComparedRows) -> dict[str, Any]:
    if not compared.studies:
        return {}
    from hpcq.report.published_judged import judged_documents

    return {"published_judged": judged_documents(compared.rows)}


def _claims_tables(compared: ComparedRows) -> tuple[Table, ...]:
    if not compared.claims:
        return ()
    from hpcq.report.claims.claim_report import claims_table

    return (claims_table(compared.claims, compared.names),)


def _claims_documents(compared: ComparedRows) -> dict[str, Any]:
    if not compared.claims:
        return {}
    from hpcq.report.claims.claim_report import claims_document

    return {"claims": claims_document(compared.claims)}


def _verdict_legend(rows: Sequence[Row]) -> Iterator[str]:
    shown = {row.paired.verdict for row in rows if row.paired and row.is_main}
    if shown:
        yield ", ".join(f"{symbol} {verdict}" for verdict, symbol in VERDICT_SYMBOLS.items() if verdict in shown) + "."


def report_rows(
    runs: Sequence[MergedRun],
    *,
    compare: str | None = None,
    margin_points: float | None = None,
    claims: str | None = None,
) -> ComparedRows:
    """Return the scores of `runs` as rows, with the arguments and errors of `make_report`."""
    runs = _unique_runs(runs)
    names = ", ".join(run.name for run in runs)
    studies = _studies_to_compare(runs, compare)
    rows: list[Row] = []
    settings: dict[Line, RequestSettings] = {}
    recipes: dict[Line, str] = {}
    runs_of_note: dict[str, list[str]] = {}
    for run in runs:
        results = read_results(run.results)
        rows += _rows_of(run, results)
        settings |= {(run.name, one.variant): RequestSettings.read(one.provenance) for one in results.variants}
        recipes |= {(run.name, one.variant): str(one.provenance.get("recipe") or "") for one in results.variants}
        for note in dict.fromkeys(_notes_of(run, results)):
            runs_of_note.setdefault(note, []).append(run.name)
    rows = with_comparability(with_other_baselines(rows, settings), settings)
    if not any(row.value is not None or row.is_withheld for row in rows):
        failures = [failure.sentence for run in runs for failure in run.failures.values() if failure.has_ended]
        raise RunIncompleteError("\n".join([f"{names}: no task is complete enough to be scored yet.", *failures]))
    notes = [
        note if len(noting) == len(runs) else f"{', '.join(noting)}: {note}" for note, noting in runs_of_note.items()
    ]
    notes += [*comparability_notes(rows), *baseline_notes(rows)]
    with contextlib.ExitStack() as stack:
        files = {run.name: stack.enter_context(open_results(run.results)) for run in runs}
        items = RowItems(files)
        scored = add_comparisons(rows, items, margin=_margin_points(runs, margin_points) / 100)
        fidelity = choice_fidelity(rows, items)
        panels, panel_problems = panel_fidelity(rows, files)
        evaluated = _claims(claims, rows, items, recipes, settings)
    rows = list(scored.rows)
    if any(row.delta is not None and row.n < FEW_ITEMS and row.paired is None for row in rows):
        notes.append(
            "Differences without a verdict are not tested. With few items (n), one that is smaller than about three"
            " standard errors can be chance."
        )
    cross_backend = sorted({f"{row.scheme} by {row.backend}" for row in rows if row.is_cross_backend})
    if cross_backend:
        notes.append(
            f"{CROSS_BACKEND_MARK} {', '.join(cross_backend)}: evaluated with another backend than the baseline."
            " Kernels and rounding differ, too."
        )
    if studies:
        from hpcq.report.published import add_published_scores

        rows, published_notes = add_published_scores(rows, studies, settings)
        notes += published_notes
    return ComparedRows(
        names=names,
        rows=rows,
        notes=notes,
        suites=scored.suites,
        fidelity=fidelity,
        panels=panels,
        panel_problems=panel_problems,
        claims=evaluated,
        correlations=scored.correlations,
        studies=studies,
        recipes=recipes,
    )


def _claims(
    source: str | None,
    rows: Sequence[Row],
    items: RowItems,
    recipes: Mapping[Line, str],
    settings: Mapping[Line, RequestSettings],
) -> list[ClaimResult]:
    if source is None:
        return []
    from hpcq.report.claims.claim_file import read_claims
    from hpcq.report.claims.claim_report import row_claims

    return row_claims(read_claims(source), rows, items, recipes=recipes, settings=settings)


def _margin_points(runs: Sequence[MergedRun], given: float | None) -> float:
    """Return the margin that was given, else the smallest of the manifests."""
    if given is not None:
        return given
    return min(float(run.plan_document.get("margin_points", DEFAULT_MARGIN_POINTS)) for run in runs)


def _unique_runs(runs: Sequence[MergedRun]) -> list[MergedRun]:
    """Remove duplicate runs; different runs with the same name are named by their folders."""
    unique = {run.results.resolve(): run for run in runs}.values()
    count = Counter(run.name for run in unique)
    return [run if count[run.name] == 1 else dataclasses.replace(run, name=str(run.results.parent)) for run in unique]


def _studies_to_compare(runs: Sequence[MergedRun], compare: str | None) -> tuple[str, ...]:
    named = [(f"{run.name}: report.compare", name) for run in runs for name in run.plan_document.get("compare", ())]
    if compare is None and not named:
        return ()
    from hpcq.report.published import find_studies  # it reads the catalog of models

    if compare is not None:
        return find_studies(compare, place="--compare")
    studies = [study for place, name in named for study in find_studies(name, place=place)]
    return tuple(dict.fromkeys(studies))


def _rows_of(run: MergedRun, results: Results) -> list[Row]:
    if any(variant.provenance.get("rehearsal") for variant in results.variants):
        raise RunIncompleteError(
            f"{run.name}: the responses are synthetic "
            f"({results.merge['found']} of {results.merge['expected']} merged), so this run has no scores."
        )
    units = run.plan_document["units"]
    planned = list(dict.fromkeys(unit["variant"] for unit in units if unit["variant"]))
    # The last merge may have variants of an earlier plan, and not yet those that were added.
    merged = dataclasses.replace(
        results, run=run.name, variants=tuple(one for one in results.variants if one.variant in planned)
    )
    reasons = missing_reasons(run.name, run.plan_document, merged, run.failures)
    rows = make_rows(
        merged,
        variant_order=planned,
        task_order=list(dict.fromkeys(task for unit in units for task in unit["tasks"])),
        failures=reasons,
    )
    rows += unmerged_rows(run.name, run.plan_document, merged, reasons)
    rows = [row for row in rows if row.task != PANEL_TASK]  # it has no score
    return sorted(rows, key=lambda row: planned.index(row.variant))


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
    prompts = prompt_sentences(results.variants)
    return [*notes, *prompts, *_compute_dtype_notes(results), *_class_notes(results), *_kernel_notes(results)]


def _kernel_notes(results: Results) -> Iterator[str]:
    """Yield which variants have responses from several kernels."""
    for variant in results.variants:
        kernels = str(variant.provenance.get("quantization_kernels") or "").split(", ")
        if len(kernels) > 1:
            yield (
                f"{variant.provenance['scheme']}: answered with several kernels ({', '.join(kernels)}). Rounding"
                " differs between kernels."
            )


def _class_notes(results: Results) -> Iterator[str]:
    """Yield which variants have responses from several GPU classes."""
    for variant in results.variants:
        classes = [name for name in str(variant.provenance.get("gpu_class") or "").split(", ") if name]
        if len(classes) > 1:
            yield (
                f"{variant.provenance['scheme']}: answered on several GPU classes ({', '.join(classes)}). Kernels and"
                " rounding differ between classes."
            )


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
