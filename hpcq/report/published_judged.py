"""MT-Bench scores of the study for the models and schemes of a report, which has no judged scores of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hpcq.catalog.published_judged import SUITES, JudgedScores, find_judged_scores
from hpcq.catalog.published_tables import STUDY
from hpcq.report.line import Line
from hpcq.report.rows import Row
from hpcq.report.table import Column, Table

_NOT_EVALUATED = "not evaluated"
_NOTES = ("Scores from 1 to 10 by the judge of the study. This report has none: hpcq does not evaluate MT-Bench yet.",)
_UNKNOWN_TOOL = ("These tables of the study do not name the tools that quantized the models.",)


def _found(suite: str, rows: Sequence[Row]) -> dict[Line, JudgedScores]:
    """Return the published scores of the variants that have any."""
    lines = {(row.run, row.variant): row for row in reversed(rows)}
    scores = {line: find_judged_scores(suite, row.model, row.scheme) for line, row in reversed(lines.items())}
    return {line: one for line, one in scores.items() if one is not None}


def judged_tables(rows: Sequence[Row], names: Mapping[Line, str]) -> tuple[Table, ...]:
    """Return the tables of turns and categories that have scores of these variants.

    Args:
        rows: Rows of the report.
        names: Name of each run and variant in the main table.
    """
    tables = []
    for suite in SUITES:
        found = _found(suite, rows)
        if found:
            headings = ("variant", "", *next(iter(found.values())).scores, "average")
            tables.append(
                Table(
                    title=f"{suite}: scores of this report and of {STUDY}",
                    columns=tuple(Column(name=name) for name in headings),
                    lines=tuple(line for key, one in found.items() for line in _lines(names[key], one)),
                    notes=_NOTES + (_UNKNOWN_TOOL if any(one.is_quantized for one in found.values()) else ()),
                    left_columns=2,
                )
            )
    return tuple(tables)


def _lines(name: str, published: JudgedScores) -> tuple[tuple[str, ...], tuple[str, ...]]:
    own = (_NOT_EVALUATED,) * (len(published.scores) + 1)
    values = (*published.scores.values(), published.average)
    return (name, "here", *own), ("", "published", *(f"{value:.2f}" for value in values))


def judged_documents(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the published scores as JSON types. `value` is the score of this report: None, because it has none."""
    return [
        {
            "run": run, "variant": variant, "suite": suite, "task": task, "value": None,
            "published_value": value, "published_source": STUDY,
        }
        for suite in SUITES
        for (run, variant), one in _found(suite, rows).items()
        for task, value in (*one.scores.items(), ("average", one.average))
    ]  # fmt: skip
