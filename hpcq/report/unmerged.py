"""Rows of variants and tasks that the merged results do not have yet: no variant of the plan is without its row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hpcq.catalog.tasks import find_task
from hpcq.report.failed_variants import VariantFailure
from hpcq.report.rows import Row
from hpcq.store import Results


def missing_reasons(
    run: str, plan_document: Mapping[str, Any], results: Results, failures: Mapping[str, VariantFailure]
) -> dict[str, VariantFailure]:
    """Return `failures`, and that of each variant of which nothing failed, but which the results do not have.

    Args:
        run: Name of the run.
        plan_document: Content of plan.json.
        results: Merged results.
        failures: Why variants have missing responses.
    """
    merged = {one.variant: _merged_tasks(one.provenance) for one in results.variants}
    found = dict(failures)
    for unit in plan_document["units"]:
        tasks = merged.get(unit["variant"], set())
        if unit["variant"] and unit["tasks"] and tasks is not None and not tasks.issuperset(unit["tasks"]):
            reason = f"its responses are not in the merged results; run `hpcq merge {run}`"
            found.setdefault(unit["variant"], VariantFailure(unit=unit["id"], state="not merged", reason=reason))
    return found


def _merged_tasks(provenance: Mapping[str, Any]) -> set[str] | None:
    """Return the names of the tasks that were merged; None: the results do not name them."""
    recorded = provenance.get("tasks")
    return {task["name"] for task in json.loads(str(recorded))} if recorded else None


def unmerged_rows(
    run: str, plan_document: Mapping[str, Any], results: Results, reasons: Mapping[str, VariantFailure]
) -> list[Row]:
    """Return a row without value for each task of the variants that the results do not have."""
    merged = {one.variant for one in results.variants}
    units = {unit["variant"]: unit for unit in plan_document["units"] if unit["variant"] and unit["tasks"]}
    return [
        _row(run, unit, task, reasons.get(name))
        for name, unit in units.items()
        if name not in merged
        for task in unit["tasks"]
    ]


def _row(run: str, unit: Mapping[str, Any], name: str, reason: VariantFailure | None) -> Row:
    task = find_task(name)
    return Row(
        run=run,
        variant=unit["variant"],
        model=unit["model"],
        scheme=unit["scheme"],
        tool=unit.get("tool") or "",  # plans of earlier versions do not have it
        backend=unit["backend"],
        task=name,
        metric=task.metric if task else "",
        filter=task.filter if task else "",
        value=None,
        stderr=None,
        n=0,
        is_main=task is not None,
        model_revision=unit.get("model_revision"),
        model_digest=unit.get("model_digest"),
        failure=reason,
    )
