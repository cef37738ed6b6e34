"""The schedule: from asks to the passes that answer them, the cheapest way within an engine's limits.

Knows the tree, its waves and what each costs; must not know texts, tasks or engines.

    examples ─┬─ Question 1 ─┬─ Paris is        pass 1: examples                   kept: examples
              │              └─ Rome is         pass 2: Question 1, Question 2     kept: these and examples
              └─ Question 2                     pass 3: Paris is, Rome is          dropped: all

The rows of a pass are padded to its longest, and a pass costs something by itself: both are counted in tokens. All is
a function of the set of asks and the limits alone: whoever computes the same within the same gets the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from hpcq.evaluate.prefix.batching import Limits, batches
from hpcq.evaluate.prefix.forward_pass import Pass
from hpcq.evaluate.prefix.logit_gather import make_pass, readers
from hpcq.evaluate.prefix.radix_tree import Ask, build, folded

# Tokens that splitting a prefix off must save to be worth its rows and passes. How much that is depends on what else
# the same passes compute, so each is tried. The last shares nothing but what is read on one path.
_WORTHS = (1, 32, 256, math.inf)


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Schedule:
    """Passes in order. unshared: rows that begin at the very beginning because the budget is too small."""

    passes: tuple[Pass, ...]
    unshared: int

    @property
    def tokens(self) -> int:
        """Tokens computed, without padding."""
        return sum(step.tokens for step in self.passes)

    @property
    def padded_tokens(self) -> int:
        """Tokens computed by an engine that pads."""
        return sum(step.padded_tokens for step in self.passes)


def schedule(asks: Sequence[Ask], limits: Limits) -> Schedule:
    """The cheapest schedule of `asks`, numbered by their places in it, within `limits`."""
    whole = build(asks)
    trees = [folded(whole, worth) for worth in _WORTHS]
    tree, chosen = min(
        ((tree, batches(tree, limits)) for tree in trees),
        key=lambda way: sum(limits.pass_tokens + batch.padded_tokens for batch in way[1]),
    )
    reading = readers(tree)
    return Schedule(
        passes=tuple(make_pass(tree, batch, reading) for batch in chosen),
        unshared=sum(not span.is_shared for batch in chosen for span in batch.spans),
    )


def part(plan: Schedule, asks: Collection[int]) -> Schedule:
    """What `asks` need of `plan`: the very same passes, so that the answers are the same bits, without the others."""
    wanted = frozenset(asks)
    kept: set[int] = set()
    needed = []
    for step in reversed(plan.passes):
        if wanted.isdisjoint(step.readings.ask.tolist()) and kept.isdisjoint(row.keep for row in step.rows):
            continue
        needed.append(step)
        kept.update(row.parent for row in step.rows if row.parent is not None)
    return replace(plan, passes=_with_drops(plan, needed[::-1], wanted))


def _with_drops(plan: Schedule, needed: Sequence[Pass], wanted: frozenset[int]) -> tuple[Pass, ...]:
    """`needed` passes, each of which drops what `plan` drops before the next of them."""
    left = {id(step) for step in needed}
    live: set[int] = set()
    found: list[Pass] = []
    for step in plan.passes:
        drops = set(step.drops)
        if id(step) in left:
            live.update(row.keep for row in step.rows if row.keep is not None)
            found.append(replace(step, finished=tuple(ask for ask in step.finished if ask in wanted), drops=()))
        elif not found:
            continue
        gone = live & drops
        live -= gone
        found[-1] = replace(found[-1], drops=(*found[-1].drops, *sorted(gone)))
    return tuple(found)
