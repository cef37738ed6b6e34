"""Token counts of a plan, compared with lm-eval's transformers backend and with no sharing at all."""

from __future__ import annotations

from collections.abc import Sequence

from hpcq.core.frozen import dataclass
from hpcq.evaluate.prefix.planner import PassPlan
from hpcq.evaluate.prefix.radix_tree import TokenRequest


@dataclass(frozen=True, kw_only=True)
class TokenCounts:
    """Counts of one or more plans; they can be added.

    Attributes:
        requests: Number of requests.
        passes: Number of forward passes.
        requested: Tokens of all requests, each in full.
        lm_eval: Tokens that lm-eval's transformers backend computes (0.4.13). It computes requests that differ only in
            their last token once.
        computed: Tokens of the plan, without padding.
        padded: Tokens of the plan, with padding.
    """

    requests: int = 0
    passes: int = 0
    requested: int = 0
    lm_eval: int = 0
    computed: int = 0
    padded: int = 0

    @property
    def ratio(self) -> float:
        """Requested tokens per computed token."""
        return self.requested / self.computed if self.computed else 1.0

    def __add__(self, other: TokenCounts) -> TokenCounts:
        return TokenCounts(
            requests=self.requests + other.requests,
            passes=self.passes + other.passes,
            requested=self.requested + other.requested,
            lm_eval=self.lm_eval + other.lm_eval,
            computed=self.computed + other.computed,
            padded=self.padded + other.padded,
        )


def count_tokens(requests: Sequence[TokenRequest], plan: PassPlan) -> TokenCounts:
    """Count the tokens of `plan`, which answers `requests`."""
    distinct = {request.tokens[:-1].tobytes(): request.input_length for request in requests}
    return TokenCounts(
        requests=len(requests),
        passes=len(plan.passes),
        requested=sum(request.input_length for request in requests),
        lm_eval=sum(distinct.values()),
        computed=plan.num_tokens,
        padded=plan.num_padded_tokens,
    )
