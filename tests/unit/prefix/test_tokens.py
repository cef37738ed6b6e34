"""Tokens of log-likelihood requests, by lm-eval's rules."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hpcq.core.errors import WorkFailed
from hpcq.evaluate.prefix.tokenization import ask, asks_of, encode_pairs

BEGIN = 9


class Tokenizer:
    """One token a character, except that 'ab' is one token; every text that is not plain begins with token 7."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str], *, plain: bool) -> list[list[int]]:
        """Tokenize, and remember what."""
        self.asked += texts
        return [[7] * (not plain) + [ord(letter) for letter in text.replace("ab", "#")] for text in texts]


def _letters(tokens: Sequence[int]) -> str:
    return "".join(map(chr, tokens))


def test_spaces_that_end_a_context_begin_the_continuation() -> None:
    """A token that spans the border belongs to the continuation only where it begins with the moved spaces."""
    ((context, continuation),) = encode_pairs([("Q:  ", "x")], Tokenizer(), BEGIN)

    assert (_letters(context), _letters(continuation)) == ("\x07Q:", "  x")


def test_a_token_across_the_border_counts_as_context() -> None:
    """As many tokens as the context has alone are the context, even if the last one reaches into the continuation."""
    ((context, continuation),) = encode_pairs([("Qa", "bc")], Tokenizer(), BEGIN)

    assert (_letters(context), _letters(continuation)) == ("\x07Qa", "c")


def test_an_empty_context_is_the_prefix_token() -> None:
    """Without a context the prefix token stands for it, once, and no special token is added."""
    pairs = encode_pairs([("", "xy"), ("", "\ty")], Tokenizer(), BEGIN)

    assert pairs == [([BEGIN], [ord("x"), ord("y")]), ([BEGIN], [ord("y")])]


def test_each_text_is_tokenized_once() -> None:
    """The context that four choices share is handed to the tokenizer once."""
    tokenizer = Tokenizer()

    encode_pairs([("Question", f" {choice}") for choice in "ABCD"], tokenizer, BEGIN)

    assert sorted(tokenizer.asked) == ["Question", *(f"Question {choice}" for choice in "ABCD")]


def test_what_is_too_long_loses_its_beginning() -> None:
    """A model of five positions reads the last six tokens but one; the continuation stays whole."""
    (asked,) = asks_of([([1, 2, 3, 4, 5, 6], [7, 8])], max_length=5)

    assert asked.tokens.tolist() == [3, 4, 5, 6, 7, 8]
    assert (asked.first, asked.read) == (3, 5)


@pytest.mark.parametrize(("context", "continuation"), [([], [1]), ([1], []), ([1], [1, 2, 3, 4])])
def test_what_cannot_be_scored_is_refused(context: list[int], continuation: list[int]) -> None:
    """Nothing to score, nothing to score it from, or more to score than the model has positions: a sentence says it."""
    with pytest.raises(WorkFailed, match="cannot be scored"):
        ask(context, continuation, max_length=3)
