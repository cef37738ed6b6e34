"""Facts of a variant for its marks: counts of its responses by task and group, attributes of segments, checkpoint."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any

from hpcq.core.checkpoint_files import METADATA_FILE
from hpcq.core.work_records import Calibration
from hpcq.evaluate.calibration_overlap import overlap_counts
from hpcq.evaluate.item_labels import count_unlabeled_items
from hpcq.evaluate.request_set import RequestSet
from hpcq.evaluate.shown_items import count_shown_items
from hpcq.store import Index, Score
from hpcq.verify.marks import TaskFacts, VariantFacts
from hpcq.verify.responses import add_counts, count_responses

CHECKPOINT_FACTS = "checkpoint_facts"
"""Attribute of segments: what `hpcq.json` says about fallbacks and experts, as JSON. The checkpoint may be deleted."""


def marked_facts(checkpoint: Path) -> Mapping[str, Any]:
    """Return the part of a checkpoint's `hpcq.json` from which marks are derived."""
    return {name: value for name, value in checkpoint_metadata(checkpoint).items() if name in ("fallbacks", "experts")}


def variant_facts(
    index: Index, request_set: RequestSet, checkpoint: Path, calibration: Calibration | None = None
) -> VariantFacts:
    """Return the facts of the variant with the responses in `index` and the checkpoint in the folder `checkpoint`.

    Args:
        index: Its responses.
        request_set: Its requests.
        checkpoint: Folder of the checkpoint.
        calibration: Its calibration set; None: it has none, or it is unknown.
    """
    leaves = {table.task: count_responses(table.columns) for table in index.tables}
    overlaps = _overlaps(request_set, calibration) if calibration else {}
    for task in request_set.built_tasks:
        for name, leaf in task.leaves.items():
            if name in leaves:
                found = (count_shown_items(leaf), count_unlabeled_items(leaf), overlaps.get(name, TaskFacts()))
                leaves[name] = add_counts((leaves[name], *found))
    groups = {
        name: add_counts(leaves[leaf] for leaf in members if leaf in leaves)
        for task in request_set.built_tasks
        for name, members in task.members.items()
    }
    segments = tuple(segment.provenance for segment in index.segments)
    recorded = next((text for one in segments if (text := one.get(CHECKPOINT_FACTS))), "{}")
    return VariantFacts(
        segments=segments,
        checkpoint=checkpoint_metadata(checkpoint) or json.loads(str(recorded)),
        tasks={**leaves, **groups},
    )


@lru_cache(maxsize=8)
def _overlaps(request_set: RequestSet, calibration: Calibration) -> Mapping[str, TaskFacts]:
    """Return the overlaps of all tasks with a calibration text, once for all variants with the same requests."""
    leaves = {name: leaf for task in request_set.built_tasks for name, leaf in task.leaves.items()}
    return overlap_counts(calibration, leaves) if leaves else {}


def with_undefined_scores(facts: VariantFacts, scores: Iterable[Score]) -> VariantFacts:
    """Return the facts with the number of metrics of each task that are NaN or infinite."""
    undefined = Counter(score.task for score in scores if not isfinite(score.value))
    tasks = {name: replace(facts.tasks.get(name, TaskFacts()), undefined_scores=undefined[name]) for name in undefined}
    return replace(facts, tasks={**facts.tasks, **tasks})


def checkpoint_metadata(folder: Path) -> Mapping[str, Any]:
    """Return the content of `hpcq.json` in `folder`; empty if there is none."""
    path = folder / METADATA_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
