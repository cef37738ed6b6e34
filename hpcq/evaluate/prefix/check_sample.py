"""Sample of a run's log-likelihood requests with which a backend checks that prefix sharing is correct.

The sample depends only on the requests of the whole run, so that the check has the same result in every shard.
"""

from __future__ import annotations

from collections.abc import Iterable

from hpcq.evaluate.prefix.radix_tree import common_prefix_length
from hpcq.evaluate.requests import LOGLIKELIHOOD, Request

# Positions in the list of all requests, from the longest to the shortest. Only long requests exceed a model's sliding
# window, or reach positions that it computes differently. The texts that are built into a backend's check are short.
_QUANTILES = (0.0, 0.5)


def check_sample(requests: Iterable[Request]) -> list[Request]:
    """Return the longest request and the median one, each with the request that shares the longest prefix with it."""
    ordered = sorted(
        (request for request in requests if request.kind == LOGLIKELIHOOD),
        key=lambda request: (request.arguments, request.key),
    )
    if not ordered:
        return []
    texts = ["".join(request.arguments).encode(errors="surrogatepass") for request in ordered]
    by_length = sorted(range(len(ordered)), key=lambda number: (-len(texts[number]), number))
    chosen: dict[int, None] = {}
    for quantile in _QUANTILES:
        number = by_length[round(quantile * (len(ordered) - 1))]
        # Requests with common prefixes are adjacent in the order of their texts.
        neighbors = [other for other in (number - 1, number + 1) if 0 <= other < len(ordered)]
        nearest = sorted(neighbors, key=lambda other: -common_prefix_length(texts[number], texts[other]))[:1]
        chosen.update(dict.fromkeys([number, *nearest]))
    return [ordered[number] for number in chosen]
