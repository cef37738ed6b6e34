"""Items that their own few-shot examples show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcq.core.work_records import Task
from hpcq.evaluate.lm_eval_tasks import build_tasks
from hpcq.evaluate.shown_items import count_shown_items


def item(number: int) -> dict[str, object]:
    """An item of ARC."""
    return {
        "id": str(number),
        "question": f"Which of these numbers is equal to {number} plus one?",
        "choices": {"text": [str(number), str(number + 1)], "label": ["A", "B"]},
        "answerKey": "B",
    }


@pytest.mark.parametrize(("examples", "shots", "shown"), [((7,), 1, 1), ((9,), 1, 0), ((7,), 0, 0)])
def test_an_item_among_its_own_examples_is_counted(
    tmp_path: Path, examples: tuple[int, ...], shots: int, shown: int
) -> None:
    """lm-eval leaves it out only if the examples come from the evaluated split."""
    for split, numbers in (("train", examples), ("test", (7, 8))):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(item(number)) + "\n" for number in numbers))
    (built,) = build_tasks([Task(name="arc_challenge", num_fewshot=shots, data_path=str(tmp_path))])
    counts = count_shown_items(built.leaves["arc_challenge"])
    assert (counts.shown_items, counts.items) == (shown, 2 if shots else 0)
