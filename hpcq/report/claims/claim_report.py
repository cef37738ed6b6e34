"""Claims in reports: evaluation over the rows of a report or over published tables, and their table."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hpcq.catalog.published_tables import STUDY, misprints
from hpcq.core.sentences import one_line
from hpcq.report.baselines import RequestSettings
from hpcq.report.claims.claim import Claim, ClaimVerdict, Direction, Value
from hpcq.report.claims.claim_file import read_claims
from hpcq.report.claims.claim_scores import ClaimScore, published_claim_scores, row_claim_scores
from hpcq.report.claims.evaluate import ClaimLine, ClaimResult, evaluate_claims, suite_lines
from hpcq.report.formats import FORMATTERS, Report
from hpcq.report.number_formats import MISSING
from hpcq.report.row_items import RowItems
from hpcq.report.rows import Row
from hpcq.report.statistics.comparison import bonett_price_error
from hpcq.report.statistics.intervals import standard_error
from hpcq.report.table import MINUS, Column, Table

_HEADINGS = ("claim", "scores", "pairs", "models", "mean difference", "p", "verdict")
_LEGEND = (
    "Pairs and models: those that agree with the claim, of all; the others do not, or are equal. Mean: over the models,"
    " with 95 % interval. Six models or more: sign test over the models, interval from their scatter. Fewer: from the"
    " standard errors of the scores, so it is about these models only. Cannot tell: p of 5 % or more, or no standard"
    " errors. A claim holds if it does in all suites, and fails if it does in one."
)
_UNPAIRED = (
    "Published scores have no items: standard errors are upper bounds, as if every score had its own sample of the"
    " items."
)


def row_claims(
    claims: Sequence[Claim],
    rows: Sequence[Row],
    items: RowItems,
    *,
    recipes: Mapping[tuple[str, str], str],
    settings: Mapping[tuple[str, str], RequestSettings],
) -> list[ClaimResult]:
    """Evaluate claims over the main scores of a report.

    Args:
        claims: The claims.
        rows: Rows of the report.
        items: Reads the items of the rows.
        recipes: By run and variant: JSON document of the scheme.
        settings: By run and variant: what determines the requests.
    """
    return evaluate_claims(claims, row_claim_scores(rows, recipes, settings), _PairedErrors(items))


class _PairedErrors:
    """Standard errors of differences of scores of the same items, in percent."""

    def __init__(self, items: RowItems) -> None:
        self._items = items

    def __call__(self, first: ClaimScore, second: ClaimScore) -> float | None:
        """Return the error; None: the items are not stored, or not the same."""
        if first.row is None or second.row is None:
            return None
        own, other = (
            self._items.find(row.run, row.variant, row.task, (row.metric, row.filter))
            for row in (first.row, second.row)
        )
        if own is None or other is None or not own.has_items_of(other):
            return None
        spread = standard_error(own.influences - other.influences, own.strata)
        error = spread.error if spread else 0.0
        if own.is_binary and other.is_binary:  # not 0 if no item differs
            gained, lost = int((own.values > other.values).sum()), int((own.values < other.values).sum())
            error = max(error, bonett_price_error(gained, lost, len(own)))
        return 100 * error or None


def claims_table(results: Sequence[ClaimResult], subject: str, *, is_published: bool = False) -> Table:
    """Return the table of the claims.

    Args:
        results: The claims with their verdicts.
        subject: What was evaluated: names of runs, or a study.
        is_published: The scores are those of a study.
    """
    lines = tuple(tuple(map(one_line, line)) for result in results for line in _claim_lines(result))
    compared = [line for result in results for line in suite_lines(result)]
    cross, marked = sum(line.cross_backend for line in compared), sum(line.marked for line in compared)
    return Table(
        title=f"Claims, evaluated on the scores of {subject}",
        columns=tuple(Column(name=name) for name in _HEADINGS),
        lines=lines,
        notes=(
            *(one_line(f"{result.claim.name}: {result.claim.text}") for result in results),
            _LEGEND,
            *((_UNPAIRED,) if is_published else ()),
            *((f"{cross} pairs were evaluated by different back ends.",) if cross else ()),
            *((f"{marked} pairs have a score with a mark: see the table of scores.",) if marked else ()),
            *(f"Misprint in the study: {one.sentence}" for one in (misprints() if is_published else ())),
        ),
        left_columns=2,
    )


def _claim_lines(result: ClaimResult) -> Iterator[tuple[str, ...]]:
    """Yield the verdict of a claim, followed by its suites and exceptions."""
    shown = [line for line in result.lines if not line.task or line.is_exception]
    if not shown:
        yield (result.claim.name, "no pairs", *[MISSING] * 4, str(ClaimVerdict.CANNOT_TELL))
        return
    if len(shown) > 1:
        yield (result.claim.name, "", "", "", "", "", str(result.verdict))
    for line in shown:
        name = "" if len(shown) > 1 else result.claim.name
        label = f"{line.task} (exception)" if line.is_exception else line.suite
        yield (name, label, *line_cells(result.claim, line))


def line_cells(claim: Claim, line: ClaimLine) -> tuple[str, ...]:
    """Return counts, mean with interval, p-value and verdict of a line."""
    digits = 1 if claim.value is Value.SCORE else 2
    has_counts = claim.direction is not Direction.DIFFERENT or claim.margin > 0
    return (
        f"{line.agreeing} of {line.pairs}" if has_counts else str(line.pairs),
        f"{line.agreeing_models} of {line.models}" if has_counts else str(line.models),
        _mean(line, digits),
        MISSING if line.p_value is None else "<0.001" if line.p_value < 0.001 else f"{line.p_value:.2g}",  # noqa: PLR2004
        _exception_verdict(line.verdict) if line.is_exception else str(line.verdict),
    )


def _exception_verdict(verdict: ClaimVerdict) -> str:
    """Return what the verdict of the claim on an exception says about the exception."""
    words = {ClaimVerdict.HOLDS: "no exception: holds", ClaimVerdict.FAILS: "exception: fails"}
    return words.get(verdict, str(verdict))


def _mean(line: ClaimLine, digits: int) -> str:
    mean = _signed(line.mean, digits)
    if line.low is None or line.high is None:
        return mean
    return f"{mean} ({_signed(line.low, digits)} to {_signed(line.high, digits)})"


def _signed(number: float, digits: int) -> str:
    text = f"{number:+.{digits}f}"
    return text[1:] if not float(text) else text.replace("-", MINUS)


def claims_document(results: Sequence[ClaimResult]) -> list[dict[str, Any]]:
    """Return the claims as plain JSON types: all suites and tasks."""
    return [
        {
            "claim": result.claim.name,
            "text": result.claim.text,
            "verdict": str(result.verdict),
            "lines": [dataclasses.asdict(line) for line in result.lines],
        }
        for result in results
    ]


def published_results(source: str) -> list[ClaimResult]:
    """Evaluate claims on the published tables.

    Args:
        source: A study, 'published', or a file with claims.
    """
    return evaluate_claims(read_claims(source), published_claim_scores())


def published_claims_report(source: str, *, output_format: str, width: int | None) -> str:
    """Return a report of claims on the published tables, in one of the formats of reports.

    Raises:
        UserInputError: There is no such file, or it has an invalid claim.
    """
    results = published_results(source)
    if output_format == "csv":
        return _csv(results)
    table = claims_table(results, STUDY, is_published=True)
    report = Report(runs=STUDY, rows=(), table=table, documents={"claims": claims_document(results)}, width=width)
    return FORMATTERS[output_format](report)


def _csv(results: Sequence[ClaimResult]) -> str:
    output = io.StringIO()
    names = ["claim", *(field.name for field in dataclasses.fields(ClaimLine))]
    writer = csv.DictWriter(output, fieldnames=names)
    writer.writeheader()
    for result in results:
        writer.writerows({"claim": result.claim.name, **dataclasses.asdict(line)} for line in result.lines)
    return output.getvalue()
