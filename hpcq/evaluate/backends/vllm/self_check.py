"""Start-up check of prefix sharing in vLLM: the same log-likelihoods with and without the prefix cache."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

from hpcq.evaluate.backends.vllm.engine_loop import EngineLoop
from hpcq.evaluate.backends.vllm.engine_requests import PrefixSharing, Scores, score_pairs
from hpcq.evaluate.backends.vllm.tokenizer import Pair

# Reading uninitialized memory, or another request's, makes log-likelihoods differ by far more.
TOLERANCES = {"float32": 1e-4, "float16": 0.1, "bfloat16": 0.4}
QUANTIZED_TOLERANCE = 0.4

SAMPLE_TEXT = (
    "The mitochondrion is a part of the cell. It makes most of the chemical energy that the cell needs.\n"
    "Question: Which part of a cell makes most of its energy?\nAnswer: the mitochondrion\n\n"
    "Question: What do plants take from the air to make sugar, and what do they give back?\nAnswer:"
)


def rounding_tolerance(dtype: str, *, is_quantized: bool) -> float:
    """Return the largest difference of a log-likelihood that rounding can cause.

    In float32 rounding depends on the order of additions; with fewer bits also on the shapes of matrix products.
    """
    tolerance = TOLERANCES.get(dtype, QUANTIZED_TOLERANCE)
    return max(tolerance, QUANTIZED_TOLERANCE) if is_quantized else tolerance


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


def check_sharing(
    engine_loop: EngineLoop, pairs: Sequence[Pair], sharing: PrefixSharing, tolerance: float
) -> tuple[PrefixSharing, float]:
    """Compare the scores of `pairs` with shared prefixes to those of whole prompts.

    Shared prefixes are scored twice, with an empty and with a filled cache: vLLM reads cached tokens both in the step
    that computes them and in later ones.

    Returns:
        `sharing` if all differences are within `tolerance`, else a disabled one with the reason; and the largest
        difference of a log-likelihood.
    """
    shared = [_scores(engine_loop, pairs, sharing) for _ in range(2)]
    cached_tokens = engine_loop.cached_tokens
    whole = _scores(engine_loop, pairs, PrefixSharing(min_tokens=sharing.min_tokens, disabled_reason="self-check"))
    worst = max(abs(scores[pair].loglikelihood - whole[pair].loglikelihood) for scores in shared for pair in pairs)
    # Not `worst > tolerance`: a NaN must count as a difference.
    if not worst <= tolerance:
        reason = (
            f"log-likelihoods differ by {worst:.2g} from those of whole prompts, more than rounding ({tolerance:.2g})"
        )
        return PrefixSharing(min_tokens=sharing.min_tokens, disabled_reason=reason), worst
    if not cached_tokens:
        reason = "the engine does not cache prefixes of this model"
        return PrefixSharing(min_tokens=sharing.min_tokens, disabled_reason=reason), worst
    return sharing, worst


def _scores(engine_loop: EngineLoop, pairs: Sequence[Pair], sharing: PrefixSharing) -> Scores:
    [scores] = engine_loop.run(iter([score_pairs(pairs, sharing)]), iter(()))
    return scores
