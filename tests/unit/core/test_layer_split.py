"""Rules for the assignment of layers to GPUs, which the planner assumes and the workers follow."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcq.core.layer_split import balance, bytes_per_place, fill, stage_layers


@pytest.mark.parametrize(
    ("layers", "stages", "expected"),
    [
        (126, 2, [63, 63]),
        (126, 4, [31, 32, 32, 31]),
        (30, 4, [7, 8, 8, 7]),
        (30, 2, [15, 15]),
        (31, 2, [16, 15]),
        (5, 3, [2, 2, 1]),
    ],
)
def test_layers_are_distributed_as_in_vllm(layers: int, stages: int, expected: list[int]) -> None:
    """Remaining layers go to the middle stages: the first and the last also have the embeddings and the head."""
    assert stage_layers(layers, stages) == expected


def all_splits(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Return the bytes per place of every assignment that keeps the order."""
    cuts = itertools.combinations_with_replacement(range(len(sizes) + 1), count - 1)
    return [[sum(sizes[start:end]) for start, end in itertools.pairwise((0, *cut, len(sizes)))] for cut in cuts]


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=8), count=st.integers(1, 4))
def test_the_fullest_place_holds_as_little_as_possible(sizes: list[int], count: int) -> None:
    """Of all assignments in order, `balance` finds one whose fullest place is the least full."""
    places = balance(sizes, [1000.0] * count)
    assert places is not None
    assert places == sorted(places)
    held = bytes_per_place(sizes, places, count)
    assert max(held) == min(max(split) for split in all_splits(sizes, count))
    assert sum(held) == sum(sizes)


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    capacities=st.lists(st.integers(0, 60), min_size=1, max_size=4),
)
def test_places_are_filled_in_order_and_never_exceeded(sizes: list[int], capacities: list[int]) -> None:
    """A part is in a later place only if it does not fit in the current one; None: the rest does not fit."""
    places = fill(sizes, capacities)
    if places is None:
        assert all(
            any(held > capacity for held, capacity in zip(split, capacities, strict=True))
            for split in all_splits(sizes, len(capacities))
        )
        return
    assert places == sorted(places)
    held = bytes_per_place(sizes, places, len(capacities))
    assert all(one <= capacity for one, capacity in zip(held, capacities, strict=True))
    for at, place in enumerate(places[1:], 1):
        before = places[at - 1]
        if place > before:
            assert held[before] + sizes[at] > capacities[before]
