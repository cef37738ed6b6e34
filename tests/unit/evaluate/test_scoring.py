"""Scores from generated responses, by lm-eval's own evaluator."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from lm_eval.api.group import AggMetricConfig, Group

from hpcq.core.errors import RunIncompleteError
from hpcq.core.work_records import Task
from hpcq.evaluate.lm_eval_tasks import BuiltTask, build_tasks
from hpcq.evaluate.scoring import StoreLM, score
from hpcq.store import RequestKey, Response

GOLD = [number % 3 for number in range(9)]


def _built(items: Path, name: str = "arc_challenge", limit: int | None = None) -> BuiltTask:
    (built,) = build_tasks([Task(name=name, data_path=str(items), limit=limit)])
    return built


def _answers(built: BuiltTask, right: int) -> dict[RequestKey, Response]:
    """Return responses that answer the first `right` documents correctly and the others incorrectly."""
    answers = {}
    for request in built.requests():
        document, index = request.key.doc_id, request.key.request_index
        chosen = GOLD[document] if document < right else (GOLD[document] + 1) % 3
        answers[request.key] = Response(loglikelihood=-1.0 if index == chosen else -500.0, is_greedy=False)
    return answers


def test_accuracy_is_the_share_of_right_answers(arc_items: Path) -> None:
    """Six of nine right give acc 2/3, with lm-eval's standard error of a mean, over nine documents."""
    built = _built(arc_items)

    scores = {one.metric: one for one in score([built], _answers(built, 6)).scores}

    assert set(scores) == {"acc", "acc_norm"}
    assert scores["acc"].value == pytest.approx(6 / 9)
    assert scores["acc"].stderr == pytest.approx((6 / 9 * 3 / 9 / 8) ** 0.5)
    assert (scores["acc"].filter, scores["acc"].n) == ("none", 9)


def test_the_right_choice_of_winogrande_is_the_index_that_scoring_uses(tmp_path: Path) -> None:
    """Its target is a text, and its choices are contexts: the index is in place of the text of the item."""
    answers = ["1", "2", "2", "1"]
    rows = [
        {"sentence": f"The trophy {at} did not fit because _ was large.", "option1": "it", "option2": "they",
         "answer": answer}
        for at, answer in enumerate(answers)
    ]  # fmt: skip
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    built = _built(tmp_path, "winogrande")
    right = {
        request.key: Response(
            loglikelihood=-1.0 if request.key.request_index == int(answers[request.key.doc_id]) - 1 else -9.0,
            is_greedy=False,
        )
        for request in built.requests()
    }
    scored = score([built], right)
    assert {one.value for one in scored.scores} == {1.0}
    assert scored.items.tasks[0].target.tolist() == [0, 1, 1, 0]


def test_scoring_twice_gives_the_same_digits(arc_items: Path) -> None:
    """A task can be built once and scored for several variants: no response of one affects the score of another."""
    built = _built(arc_items)
    good, bad = _answers(built, 9), _answers(built, 0)

    first, other, again = (score([built], one).scores for one in (good, bad, good))

    assert first == again
    assert [one.value for one in first] == [1.0, 1.0]
    assert [one.value for one in other] == [0.0, 0.0]


def test_an_incomplete_task_is_not_scored(arc_items: Path) -> None:
    """A task with one missing response has no score."""
    built = _built(arc_items)
    answers = _answers(built, 9)
    del answers[built.requests()[-1].key]

    assert score([built], answers).scores == []


def test_the_limit_is_scored(arc_items: Path) -> None:
    """With a limit of five, a score counts the first five documents."""
    built = _built(arc_items, limit=5)

    assert {(one.value, one.n) for one in score([built], _answers(built, 4)).scores} == {(0.8, 5)}


def test_a_request_without_response_is_an_error(arc_items: Path) -> None:
    """The model that answers from the store raises for a request without a response."""
    built = _built(arc_items)
    lm = StoreLM({}, built.versions)

    with pytest.raises(RunIncompleteError, match="There is no response to RequestKey"):
        lm.loglikelihood(built.leaves["arc_challenge"].instances)


def test_groups_are_means_weighted_by_size(arc_items: Path, tmp_path: Path) -> None:
    """A group's score is the size-weighted mean of its leaves; with an incomplete leaf the group has no score."""
    few = tmp_path / "few"
    few.mkdir()
    row = '{"question": "Why?", "mc1_targets": {"choices": ["So.", "Not so."], "labels": [1, 0]}}\n'
    (few / "validation.jsonl").write_text(row * 3)
    large, small = _built(arc_items), _built(few, name="truthfulqa_mc1")
    leaves = {**large.leaves, **small.leaves}
    group = Group(name="both", aggregate_metric_list=[AggMetricConfig(metric="acc", weight_by_size=True)])
    for leaf in leaves.values():
        group.add(leaf)
    both = replace(large, leaves=leaves, groups={"both": group})
    wrong = {
        request.key: Response(loglikelihood=-5.0 if request.key.request_index == 0 else -1.0, is_greedy=False)
        for request in small.requests()
    }
    answers = {**_answers(large, 9), **wrong}

    scored = score([both], answers)
    items = scored.items
    whole = {one.task: one for one in scored.scores if one.metric == "acc"}
    del answers[small.requests()[0].key]
    part = {one.task for one in score([both], answers).scores}
    (shares,) = items.groups

    assert (shares.group, shares.metric, shares.shares) == (
        "both",
        "acc",
        {"arc_challenge": 9 / 12, "truthfulqa_mc1": 3 / 12},
    )
    assert whole["both"].value == pytest.approx(9 / 12)
    assert whole["both"].n == 12
    assert part == {"arc_challenge"}


def test_items_give_the_score(arc_items: Path) -> None:
    """Each item has its value, the index of its right choice, and the digest of its first request."""
    built = _built(arc_items)
    scored = score([built], _answers(built, 6))
    (table,) = scored.items.tasks

    assert table.doc_id.tolist() == list(range(9))
    assert table.target.tolist() == GOLD
    assert table.values["acc", "none"].tolist() == [[float(number < 6), 1.0] for number in range(9)]
    first = {request.key.doc_id: request.key.digest for request in built.requests() if request.key.request_index == 0}
    assert [digest.decode() for digest in table.digest] == [first[number] for number in range(9)]
