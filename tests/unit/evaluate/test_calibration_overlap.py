"""Items of benchmarks that share a long sequence of words with the calibration text."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcq.core.calibration_source import RANDOM_TOKENS
from hpcq.core.work_records import Calibration
from hpcq.evaluate.calibration_overlap import WORDS, overlap_counts, sequence_numbers
from hpcq.verify.marks import MarkKind, TaskFacts, VariantFacts, derive_marks

SENTENCE = "The quick brown fox jumps over the lazy dog while nine grey wolves watch it from the hill"


def calibration(folder: Path, *texts: Any, samples: int = 8, length: int = 512) -> Calibration:
    """Return a calibration set of these passages."""
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return Calibration(digest=None, samples=samples, sequence_length=length, path=str(path))


def task(*documents: Any) -> Any:
    """Return what is read of lm-eval's task: its Instances, one or more per document."""
    instances = [SimpleNamespace(doc_id=number, doc=one) for number, one in enumerate(documents) for _ in range(2)]
    return SimpleNamespace(instances=instances)


def counts(found: TaskFacts) -> tuple[int, int]:
    """Return the numbers of compared items and of those that overlap."""
    return found.compared_items, found.calibration_items


def test_items_with_thirteen_common_words_are_counted(tmp_path: Path) -> None:
    """Case and punctuation do not matter; twelve common words are not enough; an item counts once."""
    twelve = " ".join(SENTENCE.split()[:12])
    text = calibration(tmp_path, f"Before. {SENTENCE.upper()}! After.", "Another passage.")
    items = task(
        {"question": f"Complete, please: {SENTENCE.replace(' ', ', ')}", "choices": ["a", "b"]},
        {"question": "Which?", "choices": {"text": [SENTENCE, "something else"], "label": ["A", "B"]}},
        {"question": f"{twelve} and then a cat comes and sits down quietly"},
        {"question": twelve},  # too short to be compared
        {"question": 3, "answer": None},
    )
    assert counts(overlap_counts(text, {"a": items})["a"]) == (3, 2)


def test_chats_are_searched_and_passages_that_are_not_read_are_not(tmp_path: Path) -> None:
    """Messages of a chat count as text. A calibration that is too small to read a passage does not contain it."""
    items = {"a": task({"question": SENTENCE})}
    chats = calibration(tmp_path, [{"role": "user", "content": SENTENCE}], [{"role": "user", "content": "x"}])
    assert counts(overlap_counts(chats, items)["a"]) == (1, 1)
    texts = (f"Passage {number} of a long text. " * 9 for number in range(99))
    many = calibration(tmp_path, *texts, samples=1, length=9)
    assert counts(overlap_counts(many, items)["a"]) == (1, 0)


def test_without_a_text_nothing_is_claimed(tmp_path: Path) -> None:
    """Random tokens have no text, and a text that was removed cannot be compared: there are no counts."""
    items = {"a": task({"question": SENTENCE})}
    random = Calibration(digest=None, samples=1, sequence_length=8, source=RANDOM_TOKENS)
    removed = Calibration(digest=None, samples=1, sequence_length=8, path=str(tmp_path / "gone.jsonl"))
    assert overlap_counts(random, items) == {}
    assert overlap_counts(removed, items) == {}


@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=WORDS, max_size=60))
def test_equal_sequences_have_equal_numbers_and_others_do_not(words: list[str]) -> None:
    """The number of a sequence depends on its words and their order, and not on where it stands."""
    numbers = sequence_numbers(" ".join(words)).tolist()
    sequences = [tuple(words[start : start + WORDS]) for start in range(len(words) - WORDS + 1)]
    assert len(numbers) == len(sequences)
    assert len(set(zip(numbers, sequences, strict=True))) == len(set(numbers)) == len(set(sequences))


def test_a_score_of_overlapping_items_is_marked() -> None:
    """Reports mark the task with the number of items, and the unquantized model has no such mark."""
    facts = VariantFacts(
        tasks={"a": TaskFacts(compared_items=40, calibration_items=3), "b": TaskFacts(compared_items=9)}
    )
    [mark] = derive_marks(facts)
    assert (mark.kind, mark.task) == (MarkKind.CALIBRATION_OVERLAP, "a")
    assert "3 of 40 items" in mark.sentence
    assert derive_marks(VariantFacts(tasks={"a": TaskFacts()})) == ()


@pytest.mark.parametrize("value", ["", "one two three", "!?"])
def test_short_texts_have_no_sequences(value: str) -> None:
    """Fewer than 13 words are no sequence."""
    assert len(sequence_numbers(value)) == 0
