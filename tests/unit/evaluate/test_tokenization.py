"""Tokenization of request pairs, compared with lm-eval's own."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.model import TemplateLM

from hpcq.evaluate.prefix.tokenization import UnscorableError, encode_pairs

TEXTS = st.text(alphabet="ab \n", max_size=8)
PREFIX = ord("b")


def _tokens(text: str, *, without_special_tokens: bool) -> list[int]:
    """Return one token per character, but one for 'ab' and one for ' a'; the special token is 7, at the beginning."""
    joined = text.replace("ab", "#").replace(" a", "@")
    return [7] * (not without_special_tokens) + [ord(letter) for letter in joined]


class _Recorder(TemplateLM):
    """lm-eval's tokenization, which returns the tokens as the answer."""

    eot_token_id = PREFIX

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:  # noqa: FBT001
        return _tokens(string, without_special_tokens=add_special_tokens is False)

    def _loglikelihood_tokens(self, requests: list, **_: object) -> list:
        return [tuple(pair) for _, *pair in requests]

    def loglikelihood_rolling(self, requests: object, **_: object) -> list:
        raise AssertionError(requests)

    def generate_until(self, requests: object, **_: object) -> list:
        raise AssertionError(requests)


def _encode(texts: Sequence[str], *, without_special_tokens: bool) -> list[list[int]]:
    return [_tokens(text, without_special_tokens=without_special_tokens) for text in texts]


@settings(max_examples=300)
@given(st.lists(st.tuples(TEXTS, TEXTS.filter(bool)), max_size=6))
def test_pairs_are_tokenized_as_lm_eval_does(pairs: list[tuple[str, str]]) -> None:
    """Contexts and continuations, with empty and blank ones, get the same tokens as from lm-eval's own code.

    lm-eval fails later for an answer without a token; hpcq refuses it at once.
    """
    instances = [SimpleNamespace(args=pair) for pair in pairs]

    expected = _Recorder().loglikelihood(instances, disable_tqdm=True)

    if all(continuation for _, continuation in expected):
        assert encode_pairs(pairs, _encode, PREFIX) == expected
    else:
        with pytest.raises(UnscorableError):
            encode_pairs(pairs, _encode, PREFIX)
