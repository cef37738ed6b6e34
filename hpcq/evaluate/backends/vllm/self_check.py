"""The probe: whether vLLM, as it is here and with this model, scores shared prefixes as it scores whole prompts.

Knows jobs and tokens. Must not know requests' texts or the options that a user gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

from hpcq.evaluate.backends.vllm.engine_loop import Flow
from hpcq.evaluate.backends.vllm.jobs import Scores, Sharing, scores_of
from hpcq.evaluate.backends.vllm.tokens import Pair

# Memory that nobody wrote to, or another request's, makes a log-likelihood differ by far more.
TOLERANCES = {"float32": 1e-4, "float16": 0.1, "bfloat16": 0.4}
QUANTIZED_TOLERANCE = 0.4

TEXT = (
    "The mitochondrion is a part of the cell. It makes most of the chemical energy that the cell needs.\n"
    "Question: Which part of a cell makes most of its energy?\nAnswer: the mitochondrion\n\n"
    "Question: What do plants take from the air to make sugar, and what do they give back?\nAnswer:"
)


def tolerance_of(dtype: str, *, is_quantized: bool) -> float:
    """The largest difference of a log-likelihood that is rounding.

    That is of another order of additions in fp32, of other shapes of matrix products where numbers have fewer bits.
    """
    tolerance = TOLERANCES.get(dtype, QUANTIZED_TOLERANCE)
    return max(tolerance, QUANTIZED_TOLERANCE) if is_quantized else tolerance


def shapes(tokens: Sequence[int], block: int, most: int) -> list[Pair]:
    """Contexts and continuations, as real tasks have them, made of `tokens`, of `most` tokens at most.

    Two contexts that begin alike, one of which ends where a block of the cache does; continuations of one token, of
    several, and two that begin alike for longer than a block, so that the cache reaches into them.
    """
    long = max(2, min(3 * block, most - 2 * block - 4))
    stream = cycle(tokens)
    text, alike = tuple(islice(stream, long + 7)), tuple(islice(stream, block + 2))
    rests = [tuple(rest) for rest in (tokens[:1], tokens[1:2], tokens[2:6])]
    return [
        *((text, rest) for rest in rests),
        *((text[:long], rest) for rest in [*rests, (*alike, tokens[0]), (*alike, tokens[1])]),
    ]


def probe(flow: Flow, pairs: Sequence[Pair], sharing: Sharing, tolerance: float) -> tuple[Sharing, float]:
    """`sharing` if it is exact, and what was seen of the difference; else the plain way, with the reason.

    The fast way is asked twice, with an empty cache and with a full one: what is kept is read in the pass that computes
    it, and in later ones.
    """
    fast = [_scores(flow, pairs, sharing) for _ in range(2)]
    kept = flow.cached_tokens
    plain = _scores(flow, pairs, Sharing(least=sharing.least, why_not="to compare"))
    worst = max(abs(one[pair].loglikelihood - plain[pair].loglikelihood) for one in fast for pair in pairs)
    # Written so that a difference which is no number is one.
    if not worst <= tolerance:
        reason = f"its log-likelihoods differ by {worst:.2g} from whole prompts', where {tolerance:.2g} is rounding"
        return Sharing(least=sharing.least, why_not=reason), worst
    if not kept:
        return Sharing(least=sharing.least, why_not="the engine keeps no prefixes of this model"), worst
    return sharing, worst


def _scores(flow: Flow, pairs: Sequence[Pair], sharing: Sharing) -> Scores:
    [scores] = flow.run(iter([scores_of(pairs, sharing)]), iter(()))
    return scores
