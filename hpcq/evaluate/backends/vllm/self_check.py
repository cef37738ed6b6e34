"""Start-up check of prefix sharing in vLLM: the same log-likelihoods with and without the prefix cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice

from hpcq.evaluate.backends.vllm.engine_loop import EngineLoop
from hpcq.evaluate.backends.vllm.engine_requests import PrefixSharing, Scores, score_pairs
from hpcq.evaluate.backends.vllm.tokenizer import Pair
from hpcq.evaluate.prefix.agreement import MAX_READ_TOKENS, Agreement, largest_difference

SAMPLE_TEXT = (
    "The mitochondrion is a part of the cell. It makes most of the chemical energy that the cell needs.\n"
    "Question: Which part of a cell makes most of its energy?\nAnswer: the mitochondrion\n\n"
    "Question: What do plants take from the air to make sugar, and what do they give back?\nAnswer:"
)


def rounding_type(dtype: str, *, is_quantized: bool) -> str:
    """Return the data type that determines rounding: kernels of quantized layers round like bfloat16."""
    return "bfloat16" if is_quantized else dtype


def last_tokens_read(pair: Pair) -> Pair:
    """Return the same text as a pair with a continuation of at most its last MAX_READ_TOKENS tokens."""
    context, continuation = pair
    moved = max(0, len(continuation) - MAX_READ_TOKENS)
    return (*context, *continuation[:moved]), continuation[moved:]


def sample_pairs(tokens: Sequence[int], block_size: int, max_tokens: int) -> list[Pair]:
    """Return (context, continuation) pairs like those of real tasks, made of `tokens`.

    There are two contexts with a common prefix, one of which ends at a block boundary of the cache. There are
    continuations of one and of several tokens, and two with a common prefix longer than a block, so that part of a
    continuation is read from the cache.

    Args:
        tokens: At least 6 tokens of a text.
        block_size: Tokens per block of the KV cache.
        max_tokens: The model's maximum length.
    """
    length = max(2, min(3 * block_size, max_tokens - 2 * block_size - 4))
    stream = cycle(tokens)
    text, common = tuple(islice(stream, length + 7)), tuple(islice(stream, block_size + 2))
    rests = [tuple(rest) for rest in (tokens[:1], tokens[1:2], tokens[2:6])]
    return [
        *((text, rest) for rest in rests),
        *((text[:length], rest) for rest in [*rests, (*common, tokens[0]), (*common, tokens[1])]),
    ]


def scores_of_single_tokens(engine_loop: EngineLoop, tokens: Sequence[int]) -> list[float]:
    """Return the log-likelihoods of the different tokens of a text, each after the first half of the text."""
    half = len(tokens) // 2
    pairs = [(tuple(tokens[:half]), (token,)) for token in dict.fromkeys(tokens[half:])]
    scores = _scores(engine_loop, pairs, PrefixSharing(min_tokens=len(tokens), disabled_reason="self-check"))
    return [score.loglikelihood for score in scores.values()]


def check_sharing(
    engine_loop: EngineLoop, pairs: Sequence[Pair], sharing: PrefixSharing, dtype: str, *, must_cache: bool = True
) -> tuple[PrefixSharing, Agreement]:
    """Compare the scores of `pairs` with shared prefixes to those of whole prompts.

    Shared prefixes are scored twice, with an empty and with a filled cache: vLLM reads cached tokens both in the step
    that computes them and in later ones. Whole prompts are scored all at once and one by one: the difference is the
    rounding of this model. Reading uninitialized memory, or another request's, makes far larger differences.

    Args:
        engine_loop: The engine.
        pairs: What to score.
        sharing: The sharing to check.
        dtype: Type whose rounding is permitted.
        must_cache: Whether the pairs are long enough for the cache, so that an engine that caches nothing is found.

    Returns:
        `sharing` if the scores agree, else a disabled one with the reason; and how well they agree.
    """
    shared = [_scores(engine_loop, pairs, sharing) for _ in range(2)]
    cached_tokens = engine_loop.cached_tokens
    unshared = PrefixSharing(min_tokens=sharing.min_tokens, disabled_reason="self-check")
    whole = _scores(engine_loop, pairs, unshared)
    alone = {pair: _scores(engine_loop, [pair], unshared)[pair] for pair in whole}
    agreement = Agreement(
        difference=max(_difference(one, whole) for one in shared), batch_difference=_difference(alone, whole)
    )
    reason = agreement.disagreement(dtype)
    if reason is None and must_cache and not cached_tokens:
        reason = "the engine does not cache prefixes of this model"
    return (replace(sharing, disabled_reason=reason) if reason else sharing), agreement


def _difference(one: Scores, other: Scores) -> float:
    return largest_difference(
        [one[pair].loglikelihood for pair in other], [score.loglikelihood for score in other.values()]
    )


def _scores(engine_loop: EngineLoop, pairs: Sequence[Pair], sharing: PrefixSharing) -> Scores:
    [scores] = engine_loop.run(iter([score_pairs(pairs, sharing)]), iter(()))
    return scores
