"""Evidence of a page: provenance, plans and attempts of the runs, and items that changed."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from hpcq.core.attempts import AttemptRecord, read_attempts
from hpcq.core.frozen import dataclass
from hpcq.report.page.changed_items import ChangedItems, RowKey, changed_items
from hpcq.report.rows import Row
from hpcq.report.run_files import RunFiles
from hpcq.store.results import ResultsFile, open_results, read_results


@dataclass(frozen=True, kw_only=True)
class RunEvidence:
    """Evidence of one run.

    Attributes:
        name: Name of the run.
        results: Path of `results.h5`.
        inputs: Digest over all inputs of the merge.
        provenance: Provenance of the merge.
        merge: Counts of the merge.
        variants: Provenance by variant.
        plan_document: Content of `plan.json`.
        attempts: All attempts, by unit.
    """

    name: str
    results: str = ""
    inputs: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    merge: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    plan_document: Mapping[str, Any] = field(default_factory=dict)
    attempts: Mapping[str, Sequence[AttemptRecord]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Evidence of all runs.

    Attributes:
        runs: By run.
        changed: Items that changed, by row.
        groups: Tasks of each group of tasks.
    """

    runs: Sequence[RunEvidence] = ()
    changed: Mapping[RowKey, ChangedItems] = field(default_factory=dict)
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)


def read_evidence(runs: Sequence[RunFiles], rows: Sequence[Row]) -> Evidence:
    """Return the evidence of the runs.

    Args:
        runs: The runs, with the names in the rows; none: there is no evidence.
        rows: Rows with their comparisons.

    Raises:
        StorageError: A file cannot be read.
    """
    if not runs:
        return Evidence()
    with contextlib.ExitStack() as stack:
        files = {run.name: stack.enter_context(open_results(run.results)) for run in runs}
        return Evidence(
            runs=[_read_run(run) for run in runs], changed=changed_items(rows, files), groups=_groups(rows, files)
        )


def _read_run(run: RunFiles) -> RunEvidence:
    results = read_results(run.results)
    return RunEvidence(
        name=run.name,
        results=str(run.results),
        inputs=results.inputs,
        provenance=results.provenance,
        merge=results.merge,
        variants={one.variant: one.provenance for one in results.variants},
        plan_document=run.plan_document,
        attempts=read_attempts(run.attempts) if run.attempts and run.attempts.is_dir() else {},
    )


def _groups(rows: Sequence[Row], files: Mapping[str, ResultsFile]) -> dict[str, Sequence[str]]:
    """Return the tasks of each group."""
    groups: dict[str, Sequence[str]] = {}
    for run, variant in dict.fromkeys((row.run, row.variant) for row in rows if row.value is not None):
        for one in files[run].item_tables(variant).groups:
            groups.setdefault(one.group, tuple(sorted(one.shares)))
    return groups
