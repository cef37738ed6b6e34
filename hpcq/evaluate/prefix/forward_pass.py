"""Forward passes as data: rows to compute, logits to gather, cached prefixes to keep and delete.

cache = {}                                          # KV of shared prefixes, by cache_id
for step in passes:
logits = forward(rows of step, each after the KV of its chain of parents, `start` tokens in all)
chosen = logits[step.gather.row, step.gather.column]
logprob = log_softmax(chosen)[index, target]    # one per target; `chosen.argmax == target` is its greedy flag
add each logprob to the sum of its request; the sums of step.finished are complete
cache the KV of the rows with a `cache_id`; then delete the KV of step.evict
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpcq.evaluate.prefix.radix_tree import Tokens

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Row:
    """New tokens of one sequence.

    Attributes:
        tokens: The token ids, [length].
        start: Position of the first one in its sequence.
        parent_id: Cached prefix that the row continues; None for a row from position 0.
        cache_id: Number under which the KV of these tokens is cached until it is evicted; None if it is not needed
            again. The cached prefix continues that of `parent_id`, which is evicted no earlier.
    """

    tokens: Tokens
    start: int = 0
    parent_id: int | None = None
    cache_id: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class LogitGather:
    """Where logits are needed in a pass, and which log-probabilities are read there.

    Attributes:
        row: Row of each place where logits are needed, [places]. Every place occurs once.
        column: Column of each place, counted from the row's first new token, [places].
        index: Place of each log-probability, as an index into `row` and `column`, [targets].
        target: Token id whose log-probability is read, [targets].
        request: Number of the request that the log-probability belongs to, [targets].
    """

    row: Numbers
    column: Numbers
    index: Numbers
    target: Numbers
    request: Numbers


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class ForwardPass:
    """One forward pass.

    Attributes:
        rows: The rows.
        gather: The log-probabilities to read.
        finished: Numbers of the requests whose last log-probability is read here.
        evict: Cache ids that are not needed after this pass.
    """

    rows: tuple[Row, ...]
    gather: LogitGather
    finished: tuple[int, ...]
    evict: tuple[int, ...]

    @property
    def longest_row(self) -> int:
        """New tokens of the longest row, to which all rows are padded."""
        return max(len(row.tokens) for row in self.rows)

    @property
    def longest_prefix(self) -> int:
        """Tokens of the longest prefix."""
        return max(row.start for row in self.rows)

    @property
    def num_tokens(self) -> int:
        """Computed tokens, without padding."""
        return sum(len(row.tokens) for row in self.rows)

    @property
    def num_padded_tokens(self) -> int:
        """Computed tokens of an engine that pads."""
        return len(self.rows) * self.longest_row

    @property
    def uses_cache(self) -> bool:
        """Whether any row reads or writes the KV cache."""
        return any(row.parent_id is not None or row.cache_id is not None for row in self.rows)
