"""Groups of continuations: few prompts, and the scores of whole prompts, whichever tokens the engine has cached."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from hpcq.evaluate.backends.vllm.continuations import MAX_NEXT_TOKENS, ContinuationGroup, Prompt, TokenLogprob, Tokens

VOCABULARY = 3


def logprob(prefix: Sequence[int], token: int) -> float:
    """A synthetic model: the log-probability of a token depends on all tokens before it."""
    return -1.0 - int(hashlib.sha256(repr((tuple(prefix), token)).encode()).hexdigest()[:3], 16)


def token_logprob(prefix: Sequence[int], token: int) -> TokenLogprob:
    """The log-probabilities of a token, and of the likeliest one."""
    return TokenLogprob(logprob(prefix, token), max(logprob(prefix, other) for other in range(VOCABULARY)))


def engine(prompt: Prompt, cached: int) -> tuple[dict[int, TokenLogprob], dict[int, TokenLogprob]]:
    """The results of an engine with the first `cached` tokens of a prompt in its cache, if it may read the cache."""
    first = max(prompt.first_scored, cached + 1) if prompt.use_prefix_cache else prompt.first_scored
    own = {
        position: token_logprob(prompt.tokens[:position], prompt.tokens[position])
        for position in range(first, len(prompt.tokens))
    }
    return own, {token: token_logprob(prompt.tokens, token) for token in prompt.next_tokens}


tokens = st.integers(0, VOCABULARY - 1)
contexts = st.lists(tokens, min_size=1, max_size=6).map(tuple)
continuations = st.lists(st.lists(tokens, max_size=6).map(tuple), min_size=1, max_size=8)


@given(contexts, continuations, st.none() | st.integers(1, 6), st.data())
def test_scores_are_those_of_whole_prompts(
    context: Tokens, rests: list[Tokens], min_tokens: int | None, data: st.DataObject
) -> None:
    """Shared or not, and for any number of cached tokens, a score is the sum over all of its tokens."""
    group = ContinuationGroup(context, rests, min_shared_tokens=min_tokens or 1, is_unshared=min_tokens is None)
    for prompts in (group.prompts, group.missing_prompts):
        for prompt in prompts():
            cached = data.draw(st.integers(0, len(prompt.tokens) - 1))
            group.record(prompt, *engine(prompt, cached))
    assert group.missing_prompts() == []
    for rest in rests:
        score = group.score(rest)
        expected = [token_logprob(context + rest[:position], token) for position, token in enumerate(rest)]
        assert score is not None
        assert score.loglikelihood == sum(one.logprob for one in expected)
        assert score.is_greedy == all(one.logprob == one.best_logprob for one in expected)


@given(contexts, continuations)
def test_no_prompt_is_sent_twice(context: Tokens, rests: list[Tokens]) -> None:
    """The prompts of a group differ, all begin with its context, and none has a continuation's last token."""
    prompts = ContinuationGroup(context, rests, min_shared_tokens=1).prompts()
    read = [prompt.tokens for prompt in prompts]
    assert len(set(read)) == len(read)
    assert {context + rest[:-1] for rest in rests if rest} | ({context} if any(rests) else set()) == set(read)


def test_choices_of_one_token_are_one_prompt() -> None:
    """Four letters after a question need one prompt, the question, without log-probabilities of its own tokens."""
    [prompt] = ContinuationGroup((5, 6, 7), [(1,), (2,), (3,), (4,)], min_shared_tokens=2).prompts()
    assert prompt == Prompt(tokens=(5, 6, 7), first_scored=4, next_tokens=(1, 2, 3, 4))
    assert not prompt.needs_prompt_logprobs


def test_a_short_context_has_no_prompt_of_its_own() -> None:
    """A context too short for the cache is computed with its continuation, in one prompt."""
    [prompt] = ContinuationGroup((5,), [(1, 2, 3)], min_shared_tokens=32).prompts()
    assert prompt == Prompt(tokens=(5, 1, 2), first_scored=1, next_tokens=(3,))


def test_many_choices_are_split() -> None:
    """More next tokens than the engine accepts for one prompt are requested with several."""
    prompts = ContinuationGroup((5, 6), [(number,) for number in range(250)], min_shared_tokens=1).prompts()
    assert [len(prompt.next_tokens) for prompt in prompts] == [MAX_NEXT_TOKENS, MAX_NEXT_TOKENS, 50]


def test_equal_logits_are_greedy() -> None:
    """A token as likely as the likeliest counts as greedy, as in lm-eval."""
    group = ContinuationGroup((5, 6), [(1,)], min_shared_tokens=1)
    [prompt] = group.prompts()
    group.record(prompt, {}, {1: TokenLogprob(-0.7, -0.7)})
    score = group.score((1,))
    assert score is not None
    assert score.is_greedy


def test_no_continuation_is_certain() -> None:
    """An empty continuation needs no prompt, has log-likelihood 0 and is greedy, as in lm-eval."""
    group = ContinuationGroup((5, 6), [()], min_shared_tokens=1)
    assert group.prompts() == group.missing_prompts() == []
    assert group.score(()) == (0.0, True)
