"""A vocabulary that the tokenizers library cannot load is found in tokenizer.json, with the token or the key."""

from __future__ import annotations

from typing import Any

import pytest

from hpcq.catalog.tokenizer_file import largest_token, vocabulary_problem

BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
UNIGRAM = {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]], "unk_id": 0}


@pytest.mark.parametrize(
    "model",
    [
        BPE,
        {**BPE, "merges": ["a b"]},
        {**BPE, "merges": []},
        {**BPE, "dropout": None},
        {"vocab": BPE["vocab"], "merges": BPE["merges"]},
        {**BPE, "vocab": {"a": 0, "##b": 1, "ab": 2}, "merges": [["a", "##b"]], "continuing_subword_prefix": "##"},
        {**BPE, "vocab": {"a": 0, "b": 1, "ab": 1}},
        UNIGRAM,
        {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
    ],
)
def test_a_vocabulary_that_the_library_loads_has_no_problem(model: dict[str, Any]) -> None:
    """tokenizers 0.23 loads each of these, also old files without a type and with merges as texts."""
    assert vocabulary_problem({"model": model}) is None


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({}, "has no vocabulary (no key model)"),
        ({"model": None}, "has no vocabulary (no key model)"),
        (
            {"model": {**BPE, "type": "Nonsense"}},
            "has a vocabulary of the type 'Nonsense', which tokenizers does not support",
        ),
        ({"model": {"type": "BPE"}}, "has no vocabulary (model.vocab is missing or empty)"),
        ({"model": {**BPE, "vocab": {}}}, "has no vocabulary (model.vocab is missing or empty)"),
        ({"model": {**BPE, "type": "Unigram"}}, "has a vocabulary of the type 'Unigram', but in the form of another"),
        ({"model": {**UNIGRAM, "type": "BPE"}}, "has a vocabulary of the type 'BPE', but in the form of another type"),
        ({"model": {**BPE, "vocab": {"a": "0"}}}, "has an invalid id for the token 'a': '0'"),
        ({"model": {**BPE, "vocab": {"a": -1}}}, "has an invalid id for the token 'a': -1"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}}}, "has no merges (no key model.merges)"),
        ({"model": {**BPE, "merges": ["a b c"]}}, "has an invalid merge: 'a b c'"),
        ({"model": {**BPE, "merges": [["a", "x"]]}}, "has the merge ['a', 'x'], but its vocabulary lacks 'x'"),
        (
            {"model": {**BPE, "dropout": 0.1}},
            "splits every text at random (model.dropout is 0.1): set it to null",
        ),
        ({"model": {**BPE, "merges": [["b", "a"]]}}, "has the merge ['b', 'a'], but its vocabulary lacks 'ba'"),
    ],
)
def test_a_vocabulary_that_the_library_refuses_is_found(content: dict[str, Any], problem: str) -> None:
    """The library's own errors name neither file nor key.

    Observed: units failed with an Exception without a class, such as "expected `,` or `}` at line 1 column 16".
    """
    assert (vocabulary_problem(content) or "").startswith(problem)


def test_the_largest_token_is_that_of_the_own_vocabulary() -> None:
    """Added tokens, which may lie beyond the model's embeddings, do not count."""
    assert largest_token({"model": BPE, "added_tokens": [{"id": 9, "content": "<image>"}]}) == 2
    assert largest_token({"model": UNIGRAM}) == 1
    assert largest_token([]) is None
