"""Tokenization of log-likelihood requests by lm-eval's rules."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hpcq.core.errors import WorkerError
from hpcq.evaluate.prefix.tokenization import UnscorableError, encode_pairs, token_request, token_requests

BEGIN = 9


class Tokenizer:
    """One token per character, but 'ab' is one token; token 7 is the special token at the beginning of a text."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, texts: Sequence[str], *, without_special_tokens: bool) -> list[list[int]]:
        """Tokenize and record the texts."""
        self.texts += texts
        special = [] if without_special_tokens else [7]
        return [special + [ord(letter) for letter in text.replace("ab", "#")] for text in texts]


def _letters(tokens: Sequence[int]) -> str:
    return "".join(map(chr, tokens))


def test_trailing_spaces_of_a_context_move_to_the_continuation() -> None:
    """The spaces at the end of a context become the beginning of the continuation."""
    ((context, continuation),) = encode_pairs([("Q:  ", "x")], Tokenizer(), BEGIN)

    assert (_letters(context), _letters(continuation)) == ("\x07Q:", "  x")


def test_a_token_across_the_boundary_counts_as_context() -> None:
    """A context of n tokens alone gets the first n tokens, even if the last one reaches into the continuation."""
    ((context, continuation),) = encode_pairs([("Qa", "bc")], Tokenizer(), BEGIN)

    assert (_letters(context), _letters(continuation)) == ("\x07Qa", "c")


def test_an_empty_context_is_the_prefix_token() -> None:
    """An empty context becomes the prefix token, once, without an additional special token."""
    pairs = encode_pairs([("", "xy"), ("", "\ty")], Tokenizer(), BEGIN)

    assert pairs == [([BEGIN], [ord("x"), ord("y")]), ([BEGIN], [ord("y")])]


def test_each_text_is_tokenized_once() -> None:
    """A context that four choices share is tokenized once."""
    tokenizer = Tokenizer()

    encode_pairs([("Question", f" {choice}") for choice in "ABCD"], tokenizer, BEGIN)

    assert sorted(tokenizer.texts) == ["Question", *(f"Question {choice}" for choice in "ABCD")]


def test_long_requests_are_truncated_from_the_left() -> None:
    """For a model of five positions, the last six tokens remain; the model reads five of them."""
    (request,) = token_requests([([1, 2, 3, 4, 5, 6], [7, 8])], max_length=5)

    assert request.tokens.tolist() == [3, 4, 5, 6, 7, 8]
    assert (request.first_logit, request.input_length) == (3, 5)


@pytest.mark.parametrize(("context", "continuation"), [([], [1]), ([1], []), ([1], [1, 2, 3, 4])])
def test_unscorable_requests_are_refused(context: list[int], continuation: list[int]) -> None:
    """An empty context or continuation, or a continuation longer than the model's positions, is an error."""
    with pytest.raises(WorkerError, match="cannot be scored"):
        token_request(context, continuation, max_length=3)


@pytest.mark.parametrize("pair", [("Question", ""), ("", "")])
def test_an_answer_without_a_token_is_refused(pair: tuple[str, str]) -> None:
    """Its score would be zero, the best one."""
    with pytest.raises(UnscorableError, match="the answer '' has no token of its own") as caught:
        encode_pairs([("Question", " A"), pair], Tokenizer(), BEGIN)
    assert caught.value.texts == pair
