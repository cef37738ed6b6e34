"""Counts: tokens asked for, what lm-eval's transformers back end computes of them, and what a schedule does.

Knows asks and schedules; must not know tasks' names or engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpcq.evaluate.prefix.planner import Schedule
from hpcq.evaluate.prefix.radix_tree import Ask


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Tokens, none of them padding unless it says so; sums over parts are sums of fields.

    asked: each request in full. lm_eval: requests that differ in their last token alone computed once, which is what
    lm-eval's transformers back end shares (0.4.13). computed: by the schedule; padded: the same, with padding.
    """

    requests: int = 0
    passes: int = 0
    asked: int = 0
    lm_eval: int = 0
    computed: int = 0
    padded: int = 0

    @property
    def ratio(self) -> float:
        """Tokens asked for, over tokens computed."""
        return self.asked / self.computed if self.computed else 1.0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            requests=self.requests + other.requests,
            passes=self.passes + other.passes,
            asked=self.asked + other.asked,
            lm_eval=self.lm_eval + other.lm_eval,
            computed=self.computed + other.computed,
            padded=self.padded + other.padded,
        )


def count(asks: Sequence[Ask], plan: Schedule) -> Counts:
    """What `plan`, the schedule of `asks`, saves."""
    distinct = {ask.tokens[:-1].tobytes(): ask.read for ask in asks}
    return Counts(
        requests=len(asks),
        passes=len(plan.passes),
        asked=sum(ask.read for ask in asks),
        lm_eval=sum(distinct.values()),
        computed=plan.tokens,
        padded=plan.padded_tokens,
    )
