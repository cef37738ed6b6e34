"""Families: log-likelihood requests of one context, the few prompts that answer them all, and what the answers tell.

Knows tokens alone; must not know texts, tasks or vLLM.

A prompt for the context asks for the first token of every continuation; one for the context and all but the last token
of a continuation asks for the rest of it. An engine that keeps what it has computed computes the context once. But it
tells nothing of a token that it did not compute itself, so what one prompt was not told is taken from its siblings:

    context ───── first tokens asked         told by the prompt "context": x, y
       ├─ x a ─── b asked                    told by "context x a":        a, b
       └─ x a ─── c asked                    told by "context x a":        c (and a, unless it came from the cache)

A continuation of which a token remains untold is asked in full, from an engine that reads nothing kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Tokens = tuple[int, ...]
MOST_NEXT_TOKENS = 100
"""Asked for in one prompt; vLLM 0.32 takes 128."""


class Told(NamedTuple):
    """Of one token: its log-probability, and that of the likeliest token at its place."""

    logprob: float
    best: float


class Score(NamedTuple):
    """Of a continuation: its log-likelihood, and whether each of its tokens was the likeliest, alone or with others."""

    loglikelihood: float
    is_greedy: bool


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What to compute: `tokens`, of which those from `scored` on are to be told, and each of `next_tokens` as the next.

    shares: whether what the engine keeps of other prompts may be read.
    """

    tokens: Tokens
    scored: int
    next_tokens: Tokens = ()
    shares: bool = True

    @property
    def asks_of_itself(self) -> bool:
        """Whether any of its own tokens is to be told."""
        return self.scored < len(self.tokens)


@dataclass(slots=True)
class _Place:
    """After some tokens of a continuation: what is told of the last of them, and where others lead."""

    told: Told | None = None
    nexts: dict[int, _Place] = field(default_factory=dict)


class Family:
    """One context and its continuations. is_plain: each continuation is asked in full, and nothing is shared.

    least_shared: tokens below which a context is not worth a prompt of its own.
    """

    def __init__(
        self, context: Tokens, continuations: Iterable[Tokens], *, least_shared: int, is_plain: bool = False
    ) -> None:
        self._context = context
        self._continuations = tuple(dict.fromkeys(continuation for continuation in continuations if continuation))
        self._least_shared = least_shared
        self._is_plain = is_plain
        self._root = _Place()

    def prompts(self) -> list[Prompt]:
        """What to ask first; the context comes before what begins with it."""
        if self._is_plain:
            return [self._in_full(continuation) for continuation in self._continuations]
        nexts: dict[Tokens, dict[int, None]] = {}
        asks_context = len(self._context) >= self._least_shared
        if asks_context:
            nexts[()] = dict.fromkeys(continuation[0] for continuation in self._continuations)
        for continuation in sorted(self._continuations):
            nexts.setdefault(continuation[:-1], {})[continuation[-1]] = None
        # The first token is told by the context's own prompt, where there is one.
        scored = len(self._context) + int(asks_context)
        return [
            Prompt(tokens=self._context + tail, scored=scored, next_tokens=part)
            for tail, tokens in nexts.items()
            for part in _parts(tuple(tokens))
        ]

    def learn(self, prompt: Prompt, own: Mapping[int, Told], nexts: Mapping[int, Told]) -> None:
        """Take what was told. own: of the prompt's tokens, by position; nexts: of what might follow it, by token."""
        place = self._root
        for position in range(len(self._context), len(prompt.tokens)):
            place = place.nexts.setdefault(prompt.tokens[position], _Place())
            place.told = own.get(position, place.told)
        for token, told in nexts.items():
            place.nexts.setdefault(token, _Place()).told = told

    def untold(self) -> list[Prompt]:
        """What to ask when all that was asked is answered: the continuations of which a token is still untold."""
        return [self._in_full(one) for one in self._continuations if self.score(one) is None]

    def score(self, continuation: Tokens) -> Score | None:
        """None as long as a token is untold."""
        found = list(self._path(continuation))
        told = [one for one in found if one is not None]
        if len(told) < len(continuation):
            return None
        return Score(float(sum(one.logprob for one in told)), all(one.logprob >= one.best for one in told))

    def _in_full(self, continuation: Tokens) -> Prompt:
        return Prompt(tokens=self._context + continuation, scored=len(self._context), shares=False)

    def _path(self, continuation: Sequence[int]) -> Iterator[Told | None]:
        place: _Place | None = self._root
        for token in continuation:
            place = place.nexts.get(token) if place else None
            yield place.told if place else None


def _parts(tokens: Tokens) -> Iterator[Tokens]:
    for start in range(0, len(tokens), MOST_NEXT_TOKENS):
        yield tokens[start : start + MOST_NEXT_TOKENS]
