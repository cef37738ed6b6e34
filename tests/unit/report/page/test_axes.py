"""Scales, ticks and labels of plots."""

from __future__ import annotations

import pytest

from hpcq.report.page.axes import Scale, cost_scale, format_tick, linear_scale, logarithmic_scale
from hpcq.report.page.labels import Box, place_labels


def test_a_scale_maps_its_ends_and_clamps() -> None:
    """Both ends are mapped to both coordinates, also in reverse, and values outside are placed at the ends."""
    scale = Scale(low=10, high=20, start=100, end=0)
    assert [scale(value) for value in (10, 15, 20, 99, -99)] == [100, 50, 0, 0, 100]
    logarithmic = Scale(low=1, high=100, start=0, end=10, is_logarithmic=True)
    assert logarithmic(10) == pytest.approx(5)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((0, 10), [0, 2, 4, 6, 8, 10]),
        ((59.9, 60.2), [59.9, 60, 60.1, 60.2]),
        ((-3, 1), [-3, -2, -1, 0, 1]),
    ],
)
def test_ticks_are_round_and_inside(values: tuple[float, float], ticks: list[float]) -> None:
    """Ticks are multiples of 1, 2 or 5 times a power of ten."""
    assert linear_scale(values, 0, 100).ticks() == pytest.approx(ticks)


def test_logarithmic_ticks_are_powers() -> None:
    """Over many decades ticks are powers of ten, over few also 2 and 5 times them."""
    assert logarithmic_scale([1e-4, 1.0], 0, 1).ticks() == pytest.approx([1e-4, 1e-3, 1e-2, 0.1, 1])
    assert logarithmic_scale([3.0, 40.0], 0, 1).ticks() == pytest.approx([5, 10, 20, 50])


@pytest.mark.parametrize("values", [[5.0], [0.0], [0.0, 0.0], [1.0, 100.0], [-1.0, -1.0]])
def test_every_scale_has_a_range(values: list[float]) -> None:
    """One value, equal values and zero do not make an empty scale."""
    scale = cost_scale(values, 0, 100)
    assert scale.low < scale.high
    assert all(0 <= scale(value) <= 100 for value in values)
    assert scale.ticks()


def test_ticks_have_a_minus_sign() -> None:
    """Numbers are short; negative ones have U+2212."""
    assert [format_tick(value) for value in (-2.5, 0.0, 1e-5, 12.50)] == ["\N{MINUS SIGN}2.5", "0", "1e-05", "12.5"]


def test_labels_do_not_overlap() -> None:
    """Labels of near points are moved apart, stay in the area, and are left out if there is no place."""
    area = Box(left=0, top=0, right=300, bottom=100)
    points = [(100.0, 50.0), (104.0, 52.0), (108.0, 51.0)]
    placed = place_labels(points, [(60.0, 12.0)] * 3, area, gap=6)
    boxes = [box for box in placed if box]
    assert len(boxes) == 3
    assert all(area.contains(box) for box in boxes)
    assert not any(one.overlaps(other) for at, one in enumerate(boxes) for other in boxes[:at])
    assert place_labels(points, [(400.0, 12.0)] * 3, area, gap=6) == [None, None, None]
