"""Text of `plan` about the smallest differences that the planned items can show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hpcq.report.text_tables import aligned_columns


def detectable_lines(document: Mapping[str, Any], width: int | None) -> Iterator[str]:
    """Yield what each task can show, and what the margin of the report needs; nothing without known tasks.

    Args:
        document: The JSON document of the plan.
        width: Columns of the terminal; None: unlimited.
    """
    tasks = document["detectable"]
    if not tasks:
        return
    from hpcq.plan.detectable import items_needed

    percents = [one["changed_percent"] for one in tasks[0]["differences"]]
    yield "smallest differences from unquantized that the items show (probability 80 %), points:"
    heading = ("  task", "items", *(f"if {percent:g} % of them change" for percent in percents))
    cells = ((f"  {task['task']}", f"{task['n']}", *_points(task)) for task in tasks)
    yield from aligned_columns([heading, *cells], width=width)
    margin = document["margin_points"]
    needed = " or ".join(f"{items_needed(margin, percent)}" for percent in percents)
    yield f"items per task for a difference of {margin:g} points (report.margin_points): {needed}"


def _points(task: Mapping[str, Any]) -> Iterator[str]:
    for one in task["differences"]:
        yield f"{one['points']:.1f}"
