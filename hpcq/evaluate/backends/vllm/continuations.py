"""Log-likelihoods of all continuations of one context with few vLLM prompts, despite prefix caching.

One prompt for the context requests the first token of every continuation. One prompt for the context and all but the
last token of a continuation requests the rest of it. With a prefix cache, the engine computes the context once. But an
engine returns no log-probability of a token that it read from the cache, so those are taken from the other prompts:

    context ───── requests the first tokens  returned by the prompt "context": x, y
       ├─ x a ─── requests b                 returned by "context x a":        a, b
       └─ x a ─── requests c                 returned by "context x a":        c (and a, unless read from the cache)

A continuation with a token that no prompt returned is requested in full, without reading the prefix cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Tokens = tuple[int, ...]
MAX_NEXT_TOKENS = 100
"""Maximum next tokens requested with one prompt; vLLM 0.32 accepts 128 (`logprob_token_ids`)."""


class TokenLogprob(NamedTuple):
    """Log-probabilities of one token, and of the likeliest token at its position."""

    logprob: float
    best_logprob: float


class Score(NamedTuple):
    """Log-likelihood of a continuation, and whether each of its tokens was the likeliest (ties count)."""

    loglikelihood: float
    is_greedy: bool


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt for the engine.

    Attributes:
        tokens: What the engine reads.
        first_scored: Position of the first of `tokens` whose log-probability is requested.
        next_tokens: Tokens whose log-probability as the next token is requested.
        use_prefix_cache: Whether the engine may read the prefix cache.
    """

    tokens: Tokens
    first_scored: int
    next_tokens: Tokens = ()
    use_prefix_cache: bool = True

    @property
    def needs_prompt_logprobs(self) -> bool:
        """Whether the log-probability of any of `tokens` is requested."""
        return self.first_scored < len(self.tokens)


@dataclass(slots=True)
class _TrieNode:
    """A prefix of the continuations: log-probability of its last token (None: missing), and longer prefixes."""

    logprob: TokenLogprob | None = None
    children: dict[int, _TrieNode] = field(default_factory=dict)


class ContinuationGroup:
    """One context and its continuations.

    Args:
        context: Tokens of the context.
        continuations: Tokens of each continuation.
        min_shared_tokens: A shorter context gets no prompt of its own.
        is_unshared: Each continuation is requested in full, without reading the prefix cache.
    """

    def __init__(
        self, context: Tokens, continuations: Iterable[Tokens], *, min_shared_tokens: int, is_unshared: bool = False
    ) -> None:
        self._context = context
        self._continuations = tuple(dict.fromkeys(continuation for continuation in continuations if continuation))
        self._min_shared_tokens = min_shared_tokens
        self._is_unshared = is_unshared
        self._root = _TrieNode()

    def prompts(self) -> list[Prompt]:
        """Return the first prompts to send; the context precedes the prompts that begin with it."""
        if self._is_unshared:
            return [self._full_prompt(continuation) for continuation in self._continuations]
        nexts: dict[Tokens, dict[int, None]] = {}
        has_context_prompt = len(self._context) >= self._min_shared_tokens
        if has_context_prompt:
            nexts[()] = dict.fromkeys(continuation[0] for continuation in self._continuations)
        for continuation in sorted(self._continuations):
            nexts.setdefault(continuation[:-1], {})[continuation[-1]] = None
        # The context's own prompt, if there is one, returns the first token of every continuation.
        first_scored = len(self._context) + int(has_context_prompt)
        return [
            Prompt(tokens=self._context + tail, first_scored=first_scored, next_tokens=part)
            for tail, tokens in nexts.items()
            for part in _split(tuple(tokens))
        ]

    def record(
        self, prompt: Prompt, prompt_logprobs: Mapping[int, TokenLogprob], next_logprobs: Mapping[int, TokenLogprob]
    ) -> None:
        """Record the engine's results for `prompt`.

        Args:
            prompt: One that `prompts` or `missing_prompts` returned.
            prompt_logprobs: Of the prompt's own tokens, by position.
            next_logprobs: Of the tokens that may follow the prompt, by token.
        """
        node = self._root
        for position in range(len(self._context), len(prompt.tokens)):
            node = node.children.setdefault(prompt.tokens[position], _TrieNode())
            node.logprob = prompt_logprobs.get(position, node.logprob)
        for token, logprob in next_logprobs.items():
            node.children.setdefault(token, _TrieNode()).logprob = logprob

    def missing_prompts(self) -> list[Prompt]:
        """Return a full prompt for each continuation that still has a token without a log-probability."""
        missing = [continuation for continuation in self._continuations if self.score(continuation) is None]
        return [self._full_prompt(continuation) for continuation in missing]

    def score(self, continuation: Tokens) -> Score | None:
        """Return the score of a continuation; None while the log-probability of a token is missing."""
        found = [token for token in self._logprobs_along(continuation) if token is not None]
        if len(found) < len(continuation):
            return None
        is_greedy = all(token.logprob >= token.best_logprob for token in found)
        return Score(float(sum(token.logprob for token in found)), is_greedy)

    def _full_prompt(self, continuation: Tokens) -> Prompt:
        return Prompt(tokens=self._context + continuation, first_scored=len(self._context), use_prefix_cache=False)

    def _logprobs_along(self, continuation: Sequence[int]) -> Iterator[TokenLogprob | None]:
        node: _TrieNode | None = self._root
        for token in continuation:
            node = node.children.get(token) if node else None
            yield node.logprob if node else None


def _split(tokens: Tokens) -> Iterator[Tokens]:
    for start in range(0, len(tokens), MAX_NEXT_TOKENS):
        yield tokens[start : start + MAX_NEXT_TOKENS]
