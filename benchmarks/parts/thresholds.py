"""Thresholds of benchmarks: the value that a measurement must reach, and whether it does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A measurement and the limit that it must reach.

    Attributes:
        name: What was measured.
        measured: The measured value.
        limit: The minimum, or with `is_maximum` the maximum.
        is_maximum: The value must be at most `limit`.
        unit: Unit of both values, with a leading space.
    """

    name: str
    measured: float
    limit: float
    is_maximum: bool = False
    unit: str = ""

    @property
    def is_met(self) -> bool:
        """The measurement reaches the limit."""
        return self.measured <= self.limit if self.is_maximum else self.measured >= self.limit


def print_thresholds(thresholds: Iterable[Threshold]) -> None:
    """Print one line per threshold."""
    for one in thresholds:
        comparison = "at most" if one.is_maximum else "at least"
        print(
            f"threshold: {one.name}: {comparison} {one.limit:g}{one.unit}; measured {one.measured:.4g}{one.unit};"
            f" {'met' if one.is_met else 'NOT MET'}",
            flush=True,
        )
