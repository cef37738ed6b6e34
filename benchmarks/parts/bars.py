"""Bars: what a measurement is to reach, and whether it did, in one form for all benchmarks.

Knows numbers and words; must not know what was measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Bar:
    """`measured` is to be `bar` at least, or at most. name: what was measured."""

    name: str
    measured: float
    bar: float
    is_most: bool = False
    unit: str = ""

    @property
    def is_met(self) -> bool:
        """Whether it is."""
        return self.measured <= self.bar if self.is_most else self.measured >= self.bar


def tell(bars: Iterable[Bar]) -> None:
    """Print a line a bar."""
    for one in bars:
        side = "at most" if one.is_most else "at least"
        print(
            f"bar: {one.name}: {side} {one.bar:g}{one.unit}; measured {one.measured:.4g}{one.unit};"
            f" {'yes' if one.is_met else 'NO'}",
            flush=True,
        )
