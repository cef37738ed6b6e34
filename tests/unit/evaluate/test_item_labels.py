"""Items whose label is none of their choices: lm-eval counts every answer to them as wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcq.core.task_definitions import digest_of_definitions
from hpcq.core.work_records import Task
from hpcq.evaluate.item_labels import count_unlabeled_items
from hpcq.evaluate.lm_eval_tasks import build_tasks
from hpcq.verify.marks import MarkKind, VariantFacts, derive_marks

DEFINITION = """task: own_task
dataset_path: json
dataset_kwargs:
  data_files:
    test: rows.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: label
doc_to_choice: "{{choices}}"
"""


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([0, 1, 1], None),
        ([0, -1, 1], MarkKind.WRONG_LABELS),
        ([0, 2, 1], MarkKind.WRONG_LABELS),
        ([0, None, 1], MarkKind.WRONG_LABELS),
        ([-1, -1, -1], MarkKind.NO_LABELS),
    ],
)
def test_items_without_a_valid_label_are_counted(
    tmp_path: Path, labels: list[int | None], kind: MarkKind | None
) -> None:
    """If no item has one, the task has no score: the labels of the split are hidden, and lm-eval's score is 0."""
    rows = [{"question": "Is it?", "choices": ["yes", "no"], "label": label} for label in labels]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.yaml").write_text(DEFINITION)
    digest = digest_of_definitions([tmp_path])
    (built,) = build_tasks([Task(name="own_task", definitions=digest, definition_folders=(str(tmp_path),))])
    facts = count_unlabeled_items(built.leaves["own_task"])
    found = [(mark.kind, mark.affected, mark.total) for mark in derive_marks(VariantFacts(tasks={"own_task": facts}))]
    count = sum(label not in (0, 1) for label in labels)
    assert found == ([] if kind is None else [(kind, count, len(labels))])
