"""Selection of items: samples and lists."""

from __future__ import annotations

import pytest

from hpcq.core.item_selection import ItemSelection, format_ranges, parse_ranges

SIZES = {"a": 100, "b": 3, "c": 40}


def test_a_stratified_sample_is_even_as_far_as_the_subtasks_permit() -> None:
    """Of 30 items, the smallest subtask gives all of its 3; a rest goes to the first subtasks."""
    chosen = ItemSelection(sample=30, seed=7).choose(SIZES)
    assert {name: len(items) for name, items in chosen.items()} == {"a": 14, "b": 3, "c": 13}
    assert all(items == sorted(set(items)) and items[-1] < SIZES[name] for name, items in chosen.items())


@pytest.mark.parametrize("stratified", [True, False])
def test_a_larger_sample_contains_a_smaller_one(*, stratified: bool) -> None:
    """Seeds differ, sizes do not matter, and a sample larger than the task is the whole task."""
    small, large = (ItemSelection(sample=n, seed=7, is_stratified=stratified).choose(SIZES) for n in (20, 60))
    assert all(set(small[name]) <= set(large[name]) for name in SIZES)
    assert small != ItemSelection(sample=20, seed=8, is_stratified=stratified).choose(SIZES)
    whole = ItemSelection(sample=10_000, is_stratified=stratified).choose(SIZES)
    assert {name: len(items) for name, items in whole.items()} == SIZES


def test_a_sample_never_changes() -> None:
    """Runs of other versions of hpcq and Python evaluate the same items."""
    assert ItemSelection(sample=5, seed=1).choose({"piqa": 1838})["piqa"] == [345, 691, 797, 1215, 1392]


def test_a_simple_sample_is_spread_over_the_items() -> None:
    """Each item has the same chance, so that a subtask has its share."""
    chosen = ItemSelection(sample=700, is_stratified=False).choose({"a": 1000, "b": 400})
    assert sum(map(len, chosen.values())) == 700
    assert 150 < len(chosen["b"]) < 250


def test_ranges() -> None:
    """Consecutive numbers are a range."""
    assert format_ranges([7, 0, 1, 2, 2, 9]) == "0-2,7,9"
    assert parse_ranges("0-2,7,9") == [0, 1, 2, 7, 9]
    listed = ItemSelection(listed=(("a", "0-2,7"),))
    assert listed.count == 4
    assert listed.choose({"a": 10, "b": 10}) == {"a": [0, 1, 2, 7], "b": []}
