"""Families of continuations: few prompts, and scores that are those of whole prompts, whatever an engine kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from hpcq.evaluate.backends.vllm.continuations import MOST_NEXT_TOKENS, Family, Prompt, Tokens, Told

VOCABULARY = 3


def logprob(prefix: Sequence[int], token: int) -> float:
    """A made-up model: what it says of a token depends on all tokens before it."""
    return -1.0 - int(hashlib.sha256(repr((tuple(prefix), token)).encode()).hexdigest()[:3], 16)


def told(prefix: Sequence[int], token: int) -> Told:
    """What is told of a token, with the likeliest of the vocabulary."""
    return Told(logprob(prefix, token), max(logprob(prefix, other) for other in range(VOCABULARY)))


def engine(prompt: Prompt, cached: int) -> tuple[dict[int, Told], dict[int, Told]]:
    """What an engine tells that keeps the first `cached` tokens of a prompt, where it may read them."""
    first = max(prompt.scored, cached + 1) if prompt.shares else prompt.scored
    own = {place: told(prompt.tokens[:place], prompt.tokens[place]) for place in range(first, len(prompt.tokens))}
    return own, {token: told(prompt.tokens, token) for token in prompt.next_tokens}


tokens = st.integers(0, VOCABULARY - 1)
contexts = st.lists(tokens, min_size=1, max_size=6).map(tuple)
continuations = st.lists(st.lists(tokens, max_size=6).map(tuple), min_size=1, max_size=8)


@given(contexts, continuations, st.none() | st.integers(1, 6), st.data())
def test_scores_are_those_of_whole_prompts(
    context: Tokens, rests: list[Tokens], least: int | None, data: st.DataObject
) -> None:
    """Shared or not, however much of each prompt came from a cache, a score is the sum over all of its tokens."""
    family = Family(context, rests, least_shared=least or 1, is_plain=least is None)
    for asked in (family.prompts, family.untold):
        for prompt in asked():
            cached = data.draw(st.integers(0, len(prompt.tokens) - 1))
            family.learn(prompt, *engine(prompt, cached))
    assert family.untold() == []
    for rest in rests:
        score = family.score(rest)
        expected = [told(context + rest[:place], token) for place, token in enumerate(rest)]
        assert score is not None
        assert score.loglikelihood == sum(one.logprob for one in expected)
        assert score.is_greedy == all(one.logprob == one.best for one in expected)


@given(contexts, continuations)
def test_nothing_is_asked_twice(context: Tokens, rests: list[Tokens]) -> None:
    """The prompts of a family differ, all begin with its context, and none reads a continuation's last token."""
    prompts = Family(context, rests, least_shared=1).prompts()
    read = [prompt.tokens for prompt in prompts]
    assert len(set(read)) == len(read)
    assert {context + rest[:-1] for rest in rests if rest} | ({context} if any(rests) else set()) == set(read)


def test_choices_of_one_token_are_one_prompt() -> None:
    """Four letters after a question are asked with the question alone, and none of its own tokens is asked for."""
    [prompt] = Family((5, 6, 7), [(1,), (2,), (3,), (4,)], least_shared=2).prompts()
    assert prompt == Prompt(tokens=(5, 6, 7), scored=4, next_tokens=(1, 2, 3, 4))
    assert not prompt.asks_of_itself


def test_a_short_context_has_no_prompt_of_its_own() -> None:
    """A context too short to be kept is computed with its continuation, in one prompt."""
    [prompt] = Family((5,), [(1, 2, 3)], least_shared=32).prompts()
    assert prompt == Prompt(tokens=(5, 1, 2), scored=1, next_tokens=(3,))


def test_many_choices_are_asked_in_parts() -> None:
    """More next tokens than an engine takes in one prompt are asked in several."""
    prompts = Family((5, 6), [(number,) for number in range(250)], least_shared=1).prompts()
    assert [len(prompt.next_tokens) for prompt in prompts] == [MOST_NEXT_TOKENS, MOST_NEXT_TOKENS, 50]


def test_equal_logits_are_greedy() -> None:
    """A token as likely as the likeliest counts as greedy, as in lm-eval."""
    family = Family((5, 6), [(1,)], least_shared=1)
    [prompt] = family.prompts()
    family.learn(prompt, {}, {1: Told(-0.7, -0.7)})
    score = family.score((1,))
    assert score is not None
    assert score.is_greedy


def test_no_continuation_is_certain() -> None:
    """An empty continuation asks nothing, has log-likelihood 0 and is greedy, as in lm-eval."""
    family = Family((5, 6), [()], least_shared=1)
    assert family.prompts() == family.untold() == []
    assert family.score(()) == (0.0, True)
