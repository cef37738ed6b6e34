"""Places of labels next to points, so that labels overlap neither each other nor points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hpcq.core.frozen import dataclass


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle; `top` is smaller than `bottom`."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Return whether both have a common area."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def contains(self, other: Box) -> bool:
        """Return whether all of `other` is inside."""
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.top <= other.top
            and other.bottom <= self.bottom
        )


def place_labels(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], area: Box, *, gap: float
) -> list[Box | None]:
    """Return the box of each label; None if there is no free place near its point.

    Args:
        points: Coordinates of the points.
        sizes: Width and height of each label.
        area: Where labels may be.
        gap: Distance from the point.
    """
    taken = [Box(left=x - gap, top=y - gap, right=x + gap, bottom=y + gap) for x, y in points]
    placed: list[Box | None] = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        free = (
            box
            for box in _candidates(x, y, width, height, gap)
            if area.contains(box) and not any(box.overlaps(other) for other in taken)
        )
        found = next(free, None)
        placed.append(found)
        if found is not None:
            taken.append(found)
    return placed


def _candidates(x: float, y: float, width: float, height: float, gap: float) -> Iterator[Box]:
    """Yield places: right, left, above, below, and each of them a line further up or down."""
    for shift in (0.0, -1.0, 1.0, -2.0, 2.0):
        middle = y + shift * height
        for left in (x + gap, x - gap - width):
            yield Box(left=left, top=middle - height / 2, right=left + width, bottom=middle + height / 2)
        for top in (y - gap - height + shift * height, y + gap + shift * height):
            yield Box(left=x - width / 2, top=top, right=x + width / 2, bottom=top + height)
