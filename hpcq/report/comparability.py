"""Tasks whose requests differ between the runs of a report: their scores share a column, but are not comparable."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from hpcq.report.baselines import RequestSettings, settings_difference
from hpcq.report.line import Line
from hpcq.report.rows import Row
from hpcq.report.table import NOT_COMPARABLE_MARK


def with_comparability(rows: Sequence[Row], settings: Mapping[Line, RequestSettings]) -> list[Row]:
    """Return the rows, with `not_comparable` set where the requests differ from those of the first run with the task.

    Args:
        rows: Rows of all runs of the report.
        settings: Settings of the requests, by run and variant.
    """
    first: dict[str, Row] = {}
    differences: dict[tuple[str, str, str], str | None] = {}
    found = []
    for row in rows:
        reference = first.setdefault(row.task, row) if row.value is not None else first.get(row.task, row)
        key = (row.run, row.variant, row.task)
        if key not in differences:
            known = (row.run, row.variant) in settings and (reference.run, reference.variant) in settings
            differs = row.value is not None and row.run != reference.run and known
            differences[key] = settings_difference(row, reference, settings) if differs else None
        problem = differences[key]
        found.append(dataclasses.replace(row, not_comparable=problem) if problem else row)
    return found


def comparability_notes(rows: Sequence[Row]) -> list[str]:
    """Return a note per task with scores of different requests."""
    problems = dict.fromkeys((row.task, row.not_comparable) for row in rows if row.is_main and row.not_comparable)
    return [
        f"{NOT_COMPARABLE_MARK} {task}: do not compare its scores across runs, because {problem}."
        for task, problem in problems
    ]
