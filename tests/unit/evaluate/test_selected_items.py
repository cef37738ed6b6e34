"""Selected items of lm-eval's tasks: the documents keep their numbers, and only they are answered and scored."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq.core.errors import UserInputError
from hpcq.core.item_selection import ItemSelection
from hpcq.core.work_records import Task
from hpcq.evaluate.lm_eval_tasks import BuiltTask, build_tasks
from hpcq.evaluate.scoring import score
from hpcq.store import Response


def built(items: Path, selection: ItemSelection | None, shots: int | None = None) -> BuiltTask:
    """Build arc_challenge."""
    (found,) = build_tasks([Task(name="arc_challenge", data_path=str(items), items=selection, num_fewshot=shots)])
    return found


def test_selected_items_are_those_of_the_whole_task(arc_items: Path) -> None:
    """Their requests have the same keys; lm-eval's metrics are over them alone."""
    whole = {request.key for request in built(arc_items, None).requests()}
    chosen = built(arc_items, ItemSelection(listed=(("arc_challenge", "1-2,8"),)))
    keys = [request.key for request in chosen.requests()]
    assert set(keys) == {key for key in whole if key.doc_id in (1, 2, 8)}
    answers = {
        key: Response(
            loglikelihood=-1.0 if key.request_index == key.doc_id % 3 and key.doc_id != 8 else -99.0, is_greedy=False
        )
        for key in keys
    }
    scores = {one.metric: one for one in score([chosen], answers).scores}
    assert scores["acc"].value == pytest.approx(2 / 3)
    assert scores["acc"].n == 3


def test_prompts_with_examples_equal_those_of_the_selection(arc_items: Path) -> None:
    """A sample with the first documents has the prompts of a limit: examples are drawn document after document."""
    first = ItemSelection(listed=(("arc_challenge", "0-3"),))
    limited = build_tasks([Task(name="arc_challenge", data_path=str(arc_items), limit=4, num_fewshot=2)])[0]
    assert [one.arguments for one in built(arc_items, first, shots=2).requests()] == [
        one.arguments for one in limited.requests()
    ]


@pytest.mark.parametrize(
    ("selection", "sentence"),
    [
        (ItemSelection(listed=(("arc_challenge", "9"),)), "arc_challenge has no item 9: its items are 0 to 8"),
        (ItemSelection(listed=(("piqa", "0"),)), "arc_challenge has no subtask 'piqa'"),
        (ItemSelection(sample=0, is_of_task=True), r"tasks\.options\.arc_challenge\.sample\.n: no item of"),
    ],
)
def test_items_that_do_not_exist(arc_items: Path, selection: ItemSelection, sentence: str) -> None:
    """They are refused before a model is loaded."""
    with pytest.raises(UserInputError, match=sentence):
        built(arc_items, selection)
