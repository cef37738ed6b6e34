"""Tokens: log-likelihood requests as lm-eval 0.4.13 tokenizes and truncates them, each text tokenized once.

Knows lm-eval's rules (`TemplateLM._encode_pair`, `TemplateLM.loglikelihood`, `HFLM._loglikelihood_tokens`) and imports
nothing of it; must not know which tokenizer it is handed, nor the tree.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

import numpy as np

from hpcq.core.errors import WorkFailed
from hpcq.evaluate.prefix.radix_tree import Ask

Pair = tuple[Sequence[int], Sequence[int]]
"""Tokens of a context, and of its continuation."""


class Encode(Protocol):
    """Tokenizes many texts at once: the fast tokenizers use all cores for that."""

    def __call__(self, texts: Sequence[str], *, plain: bool) -> Sequence[Sequence[int]]:
        """The tokens of each text. plain: without special tokens; else with those that the model's settings add."""


def encode_pairs(pairs: Sequence[tuple[str, str]], encode: Encode, prefix_token: int) -> list[Pair]:
    """The tokens of each (context, continuation).

    A context is tokenized alone, and again with its continuation, of which it may become a part: the continuation is
    whatever follows as many tokens as the context has alone. Spaces that end a context begin the continuation. An empty
    context is `prefix_token`.
    """
    wholes = [_moved(context, continuation) for context, continuation in pairs if context]
    found = _encoded({text for begin, rest in wholes for text in (begin, begin + rest)}, encode, plain=False)
    plain = _encoded({continuation for context, continuation in pairs if not context}, encode, plain=True)
    encoded: list[Pair] = []
    for context, continuation in pairs:
        if context:
            begin, rest = _moved(context, continuation)
            tokens = found[begin]
            encoded.append((tokens, found[begin + rest][len(tokens) :]))
            continue
        tokens = plain[continuation]
        begins_so = bool(tokens) and tokens[0] == prefix_token
        encoded.append((tokens[:1], tokens[1:]) if begins_so else ([prefix_token], tokens))
    return encoded


def _moved(context: str, continuation: str) -> tuple[str, str]:
    """Both with the spaces between them at the beginning of the second."""
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continuation


def _encoded(texts: Collection[str], encode: Encode, *, plain: bool) -> dict[str, Sequence[int]]:
    ordered = sorted(texts)
    return dict(zip(ordered, encode(ordered, plain=plain), strict=True)) if ordered else {}


def ask(context: Sequence[int], continuation: Sequence[int], max_length: int) -> Ask:
    """The ask of one pair: a model of `max_length` positions reads its last so many tokens but one.

    Raises:
        WorkFailed: lm-eval cannot ask this either.
    """
    if not context or not continuation or len(continuation) > max_length:
        raise WorkFailed(
            f"A request of {len(context)} tokens of context and {len(continuation)} of continuation cannot be scored:"
            f" it needs one of each, and a continuation within the model's {max_length} tokens."
        )
    tokens = np.array([*context, *continuation][-(max_length + 1) :], np.int32)
    return Ask(tokens=tokens, continuation=len(continuation))


def asks_of(pairs: Iterable[Pair], max_length: int) -> list[Ask]:
    """The ask of each pair."""
    return [ask(context, continuation, max_length) for context, continuation in pairs]
