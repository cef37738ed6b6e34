"""Tokenization of log-likelihood requests with lm-eval's rules (0.4.13), each text once.

The rules are those of `TemplateLM._encode_pair`, `TemplateLM.loglikelihood` and `HFLM._loglikelihood_tokens`. lm-eval
is not imported, and any tokenizer can be used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import repeat
from typing import Protocol

import numpy as np

from hpcq.core.errors import WorkerError
from hpcq.evaluate.prefix.radix_tree import TokenRequest

TextPair = tuple[str, str]
"""A context and its continuation."""
TokenPair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context, and of its continuation."""


class UnscorableError(WorkerError):
    """A request cannot be scored.

    Attributes:
        texts: Its context and continuation; None: unknown.
    """

    def __init__(self, message: str, texts: TextPair | None = None) -> None:
        super().__init__(message)
        self.texts = texts


class Encoder(Protocol):
    """Tokenizer of many texts at once, for which the fast tokenizers use all cores."""

    def __call__(self, texts: Sequence[str], *, without_special_tokens: bool) -> Sequence[Sequence[int]]:
        """Return the token ids of each text.

        Args:
            texts: The texts.
            without_special_tokens: Add no special tokens. If false, add those that the model's settings require.
        """


def encode_pairs(pairs: Sequence[tuple[str, str]], encode: Encoder, prefix_token: int) -> list[TokenPair]:
    """Return the token ids of each (context, continuation).

    A context is tokenized alone, and again together with its continuation. If the context alone has n tokens, the
    continuation is everything after the first n tokens of both. Spaces at the end of a context are moved to the
    continuation. An empty context becomes `prefix_token`.

    Raises:
        UnscorableError: A continuation has no token: it is empty, or the context's last token includes it.
    """
    moved = [_move_spaces(context, continuation) for context, continuation in pairs if context]
    texts = {text for context, continuation in moved for text in (context, context + continuation)}
    tokens_of = _encode_texts(texts, encode, without_special_tokens=False)
    without_context = {continuation for context, continuation in pairs if not context}
    bare_tokens_of = _encode_texts(without_context, encode, without_special_tokens=True)
    encoded: list[TokenPair] = []
    for context, continuation in pairs:
        if context:
            begin, rest = _move_spaces(context, continuation)
            tokens = tokens_of[begin]
            encoded.append((tokens, tokens_of[begin + rest][len(tokens) :]))
            continue
        tokens = bare_tokens_of[continuation]
        has_prefix_token = bool(tokens) and tokens[0] == prefix_token
        encoded.append((tokens[:1], tokens[1:]) if has_prefix_token else ([prefix_token], tokens))
    for pair, (_, scored) in zip(pairs, encoded, strict=True):
        if not scored:
            raise empty_answer_error(pair)
    return encoded


def empty_answer_error(texts: TextPair) -> UnscorableError:
    """Return the error of a request whose continuation has no token."""
    return UnscorableError(f"the answer {texts[1]!r} has no token of its own, so it has no score.", texts)


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    """Return both texts, with the spaces between them at the beginning of the second."""
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continuation


def _encode_texts(texts: Collection[str], encode: Encoder, *, without_special_tokens: bool) -> dict[str, Sequence[int]]:
    if not texts:
        return {}
    ordered = sorted(texts)
    return dict(zip(ordered, encode(ordered, without_special_tokens=without_special_tokens), strict=True))


def token_request(context: Sequence[int], continuation: Sequence[int], max_length: int) -> TokenRequest:
    """Return the request of one pair, truncated from the left to max_length + 1 tokens.

    The model reads all but the last of these, so `max_length` positions suffice.

    Raises:
        UnscorableError: a part is empty, or the continuation is too long; lm-eval cannot score this either.
    """
    if not context or not continuation or len(continuation) > max_length:
        raise UnscorableError(
            f"A request of {len(context)} tokens of context and {len(continuation)} of continuation cannot be scored:"
            f" it needs at least one of each, and a continuation of at most the model's {max_length} tokens."
        )
    cut = max(0, len(context) + len(continuation) - (max_length + 1))
    tokens = np.array([*context, *continuation][cut:], np.int32)
    return TokenRequest(tokens=tokens, continuation_length=len(continuation), cut_tokens=cut)


def token_requests(
    pairs: Iterable[TokenPair], max_length: int, texts: Iterable[TextPair | None] = repeat(None)
) -> list[TokenRequest]:
    """Return the request of each pair; `texts` are named in errors.

    Raises:
        UnscorableError: As `token_request`.
    """
    found = []
    for (context, continuation), text in zip(pairs, texts, strict=False):
        try:
            found.append(token_request(context, continuation, max_length))
        except UnscorableError as error:
            raise UnscorableError(str(error), text) from None
    return found
