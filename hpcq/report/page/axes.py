"""Axes of plots: scales, ticks, and the elements that draw them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, floor, log10

from hpcq.core.frozen import dataclass
from hpcq.report.page.markup import Html, join, tag

_STEPS = (1.0, 2.0, 5.0, 10.0)
_LOGARITHMIC_FROM = 8
"""Ratio of the largest to the smallest value from which a scale of positive values is logarithmic."""
_TICKS = 6
_FEW_DECADES = 2


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A scale of an axis.

    Attributes:
        low: Value at `start`.
        high: Value at `end`.
        start: Coordinate of `low`.
        end: Coordinate of `high`.
        is_logarithmic: Whether equal distances are equal ratios.
    """

    low: float
    high: float
    start: float
    end: float
    is_logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Return the coordinate of a value; values outside are placed at the end of the scale."""
        low, high = self._transformed(self.low), self._transformed(self.high)
        share = (self._transformed(min(max(value, self.low), self.high)) - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def _transformed(self, value: float) -> float:
        return log10(value) if self.is_logarithmic else value

    def ticks(self) -> list[float]:
        """Return round values on the scale."""
        return list(self._powers() if self.is_logarithmic else self._multiples())

    def _powers(self) -> Iterator[float]:
        first, last = floor(log10(self.low)), ceil(log10(self.high))
        factors = (1.0, 2.0, 5.0) if last - first <= _FEW_DECADES else (1.0,)
        for power in range(first, last + 1):
            for factor in factors:
                if self.low <= factor * 10.0**power <= self.high:
                    yield factor * 10.0**power

    def _multiples(self) -> Iterator[float]:
        step = _round_step((self.high - self.low) / _TICKS)
        for number in range(ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9) + 1):
            yield number * step


def _round_step(step: float) -> float:
    power = 10.0 ** floor(log10(step))
    return next(factor * power for factor in _STEPS if factor * power >= step * (1 - 1e-9))


def linear_scale(values: Sequence[float], start: float, end: float, *, margin: float = 0.08) -> Scale:
    """Return a scale with all values, and a share of its range free at both ends."""
    low, high = min(values), max(values)
    free = margin * (high - low) or max(abs(high) * margin, 0.5)
    return Scale(low=low - free, high=high + free, start=start, end=end)


def logarithmic_scale(values: Sequence[float], start: float, end: float, *, margin: float = 1.25) -> Scale:
    """Return a scale with all values, which are positive, and a factor free at both ends."""
    return Scale(low=min(values) / margin, high=max(values) * margin, start=start, end=end, is_logarithmic=True)


def cost_scale(values: Sequence[float], start: float, end: float) -> Scale:
    """Return a scale of positive values: linear, or logarithmic if they differ much."""
    if max(values) > _LOGARITHMIC_FROM * min(values) > 0:
        return logarithmic_scale(values, start, end)
    return linear_scale(values, start, end, margin=0.15)


def bottom_axis(scale: Scale, *, top: float, bottom: float, title: str) -> Html:
    """Return the ticks of a horizontal axis, with lines up to `top`."""
    parts = []
    for value in scale.ticks():
        at = scale(value)
        parts += [
            tag("line", x1=at, x2=at, y1=top, y2=bottom, class_="grid"),
            tag("text", format_tick(value), x=at, y=bottom + 16, class_="tick middle"),
        ]
    middle = (scale.start + scale.end) / 2
    parts.append(tag("text", title, x=middle, y=bottom + 36, class_="axis middle"))
    return join(parts)


def left_axis(scale: Scale, *, left: float, right: float, title: str) -> Html:
    """Return the ticks of a vertical axis, with lines up to `right`."""
    parts = []
    for value in scale.ticks():
        at = scale(value)
        parts += [
            tag("line", x1=left, x2=right, y1=at, y2=at, class_="grid"),
            tag("text", format_tick(value), x=left - 6, y=at + 4, class_="tick end"),
        ]
    parts.append(tag("text", title, x=4, y=min(scale.start, scale.end) - 10, class_="axis"))
    return join(parts)


def format_tick(value: float) -> str:
    """Format with at most 6 digits: '0.001', '12.5', '1e-05'."""
    return f"{value:.6g}".replace("-", "\N{MINUS SIGN}") if value < 0 else f"{value:.6g}"


def drawing(content: Html, *, width: float, height: float, name: str, title: str, description: str) -> Html:
    """Return a drawing with a title and a description for screen readers.

    Args:
        content: Its elements.
        width: Units of its width.
        height: Units of its height.
        name: Identifier of the drawing, unique in the page.
        title: What it shows.
        description: What can be seen.
    """
    head = join((tag("title", title, id=f"{name}-title"), tag("desc", description, id=f"{name}-desc")))
    return tag(
        "svg",
        head,
        content,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
        class_="plot",
    )
