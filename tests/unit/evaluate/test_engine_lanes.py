"""How the rows of a pass are laid behind one another."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpcq.evaluate.backends.transformers.prefix_scoring.packing import Lane, lanes, layout
from hpcq.evaluate.prefix.forward_pass import Pass, Readings, Row

NOTHING = np.empty(0, np.int64)
READINGS = Readings(row=NOTHING, column=NOTHING, place=NOTHING, target=NOTHING, ask=NOTHING)


def pass_of(rows: list[tuple[int, int, int | None]]) -> Pass:
    """Rows of so many tokens, at a place, behind a kept prefix."""
    made = tuple(
        Row(tokens=np.arange(count, dtype=np.int32), start=start, parent=parent) for count, start, parent in rows
    )
    return Pass(rows=made, readings=READINGS, finished=(), drops=())


def test_choices_of_questions_behind_the_same_examples_are_one_lane() -> None:
    """What is short and shares its examples costs one pass of the model; a prefix that several see is there once."""
    step = pass_of([(5, 630, 1), (4, 640, 2), (3, 630, 1)])
    chains = {0: (0,), 1: (0, 1), 2: (0, 2)}

    [lane] = lanes(step, chains, {0: 600, 1: 30, 2: 40})

    assert lane.rows == (0, 2, 1)
    assert lane.chain == (0, 1, 2)


def test_texts_with_long_prefixes_of_their_own_stay_apart() -> None:
    """Where each would meet thousands of keys that it may not see, every text has a lane of its own."""
    step = pass_of([(20, 3000, 0), (20, 3000, 1)])

    assert [lane.rows for lane in lanes(step, {0: (0,), 1: (1,)}, {0: 3000, 1: 3000})] == [(0,), (1,)]


@given(st.lists(st.tuples(st.integers(1, 300), st.sampled_from([None, 0, 1, 2])), min_size=1, max_size=12))
def test_every_row_is_in_one_lane_and_sees_its_own_past(rows: list[tuple[int, int | None]]) -> None:
    """Each row is computed once, and each token sees as many keys as there are tokens before it, and itself."""
    chains = {0: (0,), 1: (0, 1), 2: (2,)}
    spans = {0: (0, 40), 1: (40, 90), 2: (0, 7)}
    lengths = {number: end - start for number, (start, end) in spans.items()}
    step = pass_of([(count, spans[parent][1] if parent is not None else 0, parent) for count, parent in rows])

    found = lanes(step, chains, lengths)

    assert sorted(row for lane in found for row in lane.rows) == list(range(len(rows)))
    for lane in found:
        made = layout(step, lane, chains, spans)
        if made.visible is not None:
            assert made.visible.sum(axis=1).tolist() == (made.queries + 1).tolist()
            assert all((made.keys[seen] <= query).all() for seen, query in zip(made.visible, made.queries, strict=True))
        else:
            assert (len(lane.rows), lane.chain) == (1, ())


def test_one_text_from_its_beginning_needs_no_mask() -> None:
    """The model's own causal attention, the fastest there is, does for it."""
    step = pass_of([(9, 0, None)])

    assert layout(step, Lane(rows=(0,), chain=()), {}, {}).visible is None
