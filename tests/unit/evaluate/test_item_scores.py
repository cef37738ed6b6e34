"""Item scores from lm-eval's samples."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcq.evaluate.item_scores import task_items
from hpcq.store import RequestKey, Score

KEYS = {number: RequestKey("t", "1", number, 0, 0, f"{number:032x}") for number in range(3)}


def sample(number: int, filter_: str = "none", **metrics: Any) -> dict[str, Any]:
    """Return what lm-eval logs of an item."""
    return {"doc_id": number, "target": f"answer {number}", "filter": filter_, **metrics}


def metric_score(name: str, value: float, filter_: str = "none") -> Score:
    """Return a score of three items."""
    return Score(task="t", metric=name, filter=filter_, value=value, stderr=None, n=3)


def test_a_list_of_results_per_item_counts_with_its_length() -> None:
    """IFEval's accuracy of instructions: the items have several instructions each, and all instructions count alike."""
    samples = [sample(0, inst=[True, False]), sample(1, inst=[True]), sample(2, inst=[False, False, False])]
    table = task_items("t", samples, [metric_score("inst", 2 / 6)], KEYS)
    assert table is not None
    assert table.values["inst", "none"].tolist() == [[1.0, 2.0], [1.0, 1.0], [0.0, 3.0]]
    assert table.target.tolist() == [-1, -1, -1]


def test_a_score_that_is_no_mean_has_no_items() -> None:
    """F1 and BLEU are computed from all items together; what their items hold does not give the score."""
    samples = [sample(number, f1=float(number), bleu=("a", "b")) for number in range(3)]
    assert task_items("t", samples, [metric_score("f1", 0.7), metric_score("bleu", 12.0)], KEYS) is None


def test_filters_are_apart_and_the_order_of_samples_does_not_matter() -> None:
    """GSM8K has two filters; lm-eval logs all items of one, then all of the other."""
    samples = [
        *(sample(number, "strict", exact_match=float(number == 0)) for number in (2, 0, 1)),
        *(sample(number, "flexible", exact_match=1.0) for number in (1, 2, 0)),
    ]
    scores = [metric_score("exact_match", 1 / 3, "strict"), metric_score("exact_match", 1.0, "flexible")]
    table = task_items("t", samples, scores, KEYS)
    assert table is not None
    assert table.values["exact_match", "strict"][:, 0].tolist() == [1.0, 0.0, 0.0]
    assert np.array_equal(table.values["exact_match", "flexible"], np.ones((3, 2)))
