"""Passes: what an engine is told to compute, one forward pass after the other, with nothing left to decide.

Knows token arrays and numbers of rows and places; must not know the tree, nor how the passes were chosen.

    keep = {}                                           # KV of shared prefixes, by number
    for step in passes:
        logits = forward(rows of step, each after the KV that its `parent` chain names, of `start` tokens)
        chosen = logits[step.readings.row, step.readings.column]
        value = log_softmax(chosen)[place, target]      # one a reading; `chosen.argmax == target` is its greedy flag
        add each value to its ask; those in step.finished have their sum
        keep the KV of the rows with a `keep`; then forget those in step.drops
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpcq.evaluate.prefix.radix_tree import Tokens

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Row:
    """New `tokens` at positions `start` and after, behind the kept prefix `parent` (None: at the very beginning).

    keep: the number under which the KV of these tokens is kept until it is dropped; its prefix is its parent's, which
    lives at least as long. None: nothing of it is needed again.
    """

    tokens: Tokens
    start: int = 0
    parent: int | None = None
    keep: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Readings:
    """Where logits are needed, and which log-probabilities are read there.

    row, column: the places, each named once; a column counts the row's new tokens from 0. place, target, ask: one a
    reading: the index of its place, the token whose log-probability is read, the ask that it is a part of.
    """

    row: Numbers
    column: Numbers
    place: Numbers
    target: Numbers
    ask: Numbers


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Pass:
    """One forward pass. finished: the asks whose last reading is here. drops: what nobody needs after this pass."""

    rows: tuple[Row, ...]
    readings: Readings
    finished: tuple[int, ...]
    drops: tuple[int, ...]

    @property
    def longest(self) -> int:
        """New tokens of the longest row: what all rows are padded to."""
        return max(len(row.tokens) for row in self.rows)

    @property
    def prefix(self) -> int:
        """Tokens of the longest prefix."""
        return max(row.start for row in self.rows)

    @property
    def tokens(self) -> int:
        """Tokens computed, without padding."""
        return sum(len(row.tokens) for row in self.rows)

    @property
    def padded_tokens(self) -> int:
        """Tokens computed by an engine that pads."""
        return len(self.rows) * self.longest

    @property
    def has_cache(self) -> bool:
        """False if no row needs KV or leaves any: then the engine keeps none."""
        return any(row.parent is not None or row.keep is not None for row in self.rows)
