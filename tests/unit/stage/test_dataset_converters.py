"""Conversion of packaged records to the documents that lm-eval's task definitions read. The records are invented."""

from __future__ import annotations

import pytest

from hpcq.stage.dataset_converters import (
    arc_challenge,
    gsm8k,
    hellaswag,
    ifeval,
    split_context,
    truthfulqa_mc1,
    winogrande,
)


def test_arc_holds_out_the_last_128() -> None:
    """ARC's last 128 records are training documents, and no record is in both splits."""
    records = [
        {
            "task_id": f"ARC/{i}",
            "question": f"Q{i}?",
            "choices": ["x", "y", "z"],
            "labels": ["A", "B", "C"],
            "answer": "B",
        }
        for i in range(130)
    ]
    splits = arc_challenge(records)
    assert splits["test"][1] == {
        "id": "ARC/1",
        "question": "Q1?",
        "choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]},
        "answerKey": "B",
    }
    assert [document["id"] for document in splits["train"]] == [f"ARC/{i}" for i in range(2, 130)]
    assert len(splits["test"]) == 2


@pytest.mark.parametrize(
    ("context", "complete", "unfinished"),
    [
        ("A dog runs. It stops at a wall. the owner", "A dog runs. It stops at a wall.", "the owner"),
        ("Is it on? all in all everyone", "Is it on?", "all in all everyone"),
        (". a cook in a white hat", ".", "a cook in a white hat"),
        (
            '[header] How to dive [title] Wait. [step] Posts 3.5 " apart.',
            '[header] How to dive [title] Wait. [step] Posts 3.5 " apart.',
            "",
        ),
    ],
)
def test_a_context_is_split_before_its_unfinished_sentence(context: str, complete: str, unfinished: str) -> None:
    """The unfinished last sentence is ctx_b; if the last sentence is complete, ctx_b is empty."""
    assert split_context(context) == (complete, unfinished)


def test_hellaswag_holds_out_every_fifth() -> None:
    """Every fifth HellaSwag record is a training document, the label is a string, and the index is from the id."""
    records = [
        {
            "id": f"hellaswag-val-{i:05}",
            "activity_label": "Diving",
            "ctx": "He dives. he",
            "endings": ["a", "b"],
            "expected_index": 1,
        }
        for i in range(10)
    ]
    splits = hellaswag(records)
    assert [document["ind"] for document in splits["train"]] == [4, 9]
    assert [document["ind"] for document in splits["validation"]] == [0, 1, 2, 3, 5, 6, 7, 8]
    assert splits["train"][0]["label"] == "1"
    assert (splits["train"][0]["ctx_a"], splits["train"][0]["ctx_b"]) == ("He dives.", "he")


def test_winogrande_numbers_its_answers() -> None:
    """WinoGrande's answers are '1' and '2', and its last 128 records are training documents."""
    records = [
        {"sentence": f"{i} _ won.", "choices": ["Ann", "Bea"], "labels": ["A", "B"], "answer": "AB"[i % 2]}
        for i in range(130)
    ]
    splits = winogrande(records)
    assert splits["validation"] == [
        {"sentence": "0 _ won.", "option1": "Ann", "option2": "Bea", "answer": "1"},
        {"sentence": "1 _ won.", "option1": "Ann", "option2": "Bea", "answer": "2"},
    ]
    assert len(splits["train"]) == 128


def test_truthfulqa_labels_its_choices() -> None:
    """TruthfulQA's true choice has label 1 and the others 0; all choices are kept."""
    record = {"question": "Why?", "choices": ["So.", "No.", "Hm."], "labels": ["A", "B", "C"], "answer": "A"}
    expected = {"question": "Why?", "mc1_targets": {"choices": ["So.", "No.", "Hm."], "labels": [1, 0, 0]}}
    assert truthfulqa_mc1([record]) == {"validation": [expected]}


def test_gsm8k_training_documents_are_not_test_documents() -> None:
    """GSM8K's solved records are training documents with their reasoning, and are not in the test split."""
    records = [{"question": "1 + 1?", "answer": "2"}, {"question": "10 * 100?", "answer": "1,000"}]
    solved = [{"prompt": "1 + 1?", "upstream_answer": "Add.\n#### 2"}]
    assert gsm8k(records, solved) == {
        "test": [{"question": "10 * 100?", "answer": "#### 1,000"}],
        "train": [{"question": "1 + 1?", "answer": "Add.\n#### 2"}],
    }


def test_ifeval_keys_are_numbers() -> None:
    """IFEval's key is an integer, and its only split is 'train'."""
    record = {
        "task_id": "IFEval/1000",
        "prompt": "Sing.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    }
    assert ifeval([record])["train"][0] == {
        "key": 1000,
        "prompt": "Sing.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    }
