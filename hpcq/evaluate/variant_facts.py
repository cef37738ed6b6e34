"""Facts of a variant for its marks: counts of its responses by task and group, attributes of segments, checkpoint."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

from hpcq.core.checkpoint_files import METADATA_FILE
from hpcq.evaluate.request_set import RequestSet
from hpcq.store import Index, Score
from hpcq.verify.marks import TaskFacts, VariantFacts
from hpcq.verify.responses import add_counts, count_responses


def variant_facts(index: Index, request_set: RequestSet, checkpoint: Path) -> VariantFacts:
    """Return the facts of the variant with the responses in `index` and the checkpoint in the folder `checkpoint`."""
    leaves = {table.task: count_responses(table.columns) for table in index.tables}
    groups = {
        name: add_counts(leaves[leaf] for leaf in members if leaf in leaves)
        for task in request_set.built_tasks
        for name, members in task.members.items()
    }
    return VariantFacts(
        segments=tuple(segment.provenance for segment in index.segments),
        checkpoint=checkpoint_metadata(checkpoint),
        tasks={**leaves, **groups},
    )


def with_undefined_scores(facts: VariantFacts, scores: Iterable[Score]) -> VariantFacts:
    """Return the facts with the number of metrics of each task that are NaN or infinite."""
    undefined = Counter(score.task for score in scores if not isfinite(score.value))
    tasks = {name: replace(facts.tasks.get(name, TaskFacts()), undefined_scores=undefined[name]) for name in undefined}
    return replace(facts, tasks={**facts.tasks, **tasks})


def checkpoint_metadata(folder: Path) -> Mapping[str, Any]:
    """Return the content of `hpcq.json` in `folder`; empty if there is none."""
    path = folder / METADATA_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
