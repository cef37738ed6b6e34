"""Packing: the rows of a forward pass in packed rows, and the attention masks of these."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpcq.evaluate.backends.transformers.prefix_scoring.packing import PackedRow, pack_rows, row_layout
from hpcq.evaluate.prefix.forward_pass import ForwardPass, LogitGather, Row

EMPTY = np.empty(0, np.int64)
GATHER = LogitGather(row=EMPTY, column=EMPTY, index=EMPTY, target=EMPTY, request=EMPTY)


def pass_of(rows: list[tuple[int, int, int | None]]) -> ForwardPass:
    """A forward pass of rows: number of tokens, position of the first one, and id of the cached prefix."""
    converted = tuple(
        Row(tokens=np.arange(count, dtype=np.int32), start=start, parent_id=parent) for count, start, parent in rows
    )
    return ForwardPass(rows=converted, gather=GATHER, finished=(), evict=())


def test_choices_after_the_same_examples_are_one_packed_row() -> None:
    """Short rows with common examples are packed together; a prefix of several rows is in the packed row once."""
    step = pass_of([(5, 630, 1), (4, 640, 2), (3, 630, 1)])
    chains = {0: (0,), 1: (0, 1), 2: (0, 2)}

    [packed] = pack_rows(step, chains, {0: 600, 1: 30, 2: 40})

    assert packed.rows == (0, 2, 1)
    assert packed.chain == (0, 1, 2)


def test_rows_with_different_long_prefixes_are_not_packed_together() -> None:
    """If packing would mask thousands of keys for each row, every row has a packed row of its own."""
    step = pass_of([(20, 3000, 0), (20, 3000, 1)])

    assert [packed.rows for packed in pack_rows(step, {0: (0,), 1: (1,)}, {0: 3000, 1: 3000})] == [(0,), (1,)]


@given(st.lists(st.tuples(st.integers(1, 300), st.sampled_from([None, 0, 1, 2])), min_size=1, max_size=12))
def test_every_row_is_packed_once_and_attends_to_its_own_past(rows: list[tuple[int, int | None]]) -> None:
    """Each row is computed once, and each token attends to all tokens before it and to itself."""
    chains = {0: (0,), 1: (0, 1), 2: (2,)}
    spans = {0: (0, 40), 1: (40, 90), 2: (0, 7)}
    lengths = {number: end - start for number, (start, end) in spans.items()}
    step = pass_of([(count, spans[parent][1] if parent is not None else 0, parent) for count, parent in rows])

    found = pack_rows(step, chains, lengths)

    assert sorted(row for packed in found for row in packed.rows) == list(range(len(rows)))
    for packed in found:
        layout = row_layout(step, packed, chains, spans)
        if layout.visible is not None:
            assert layout.visible.sum(axis=1).tolist() == (layout.queries + 1).tolist()
            pairs = zip(layout.visible, layout.queries, strict=True)
            assert all((layout.keys[visible] <= query).all() for visible, query in pairs)
        else:
            assert (len(packed.rows), packed.chain) == (1, ())


def test_one_row_without_a_prefix_needs_no_mask() -> None:
    """A single row from position 0 uses the model's own causal attention, the fastest one."""
    step = pass_of([(9, 0, None)])

    assert row_layout(step, PackedRow(rows=(0,), chain=()), {}, {}).visible is None
