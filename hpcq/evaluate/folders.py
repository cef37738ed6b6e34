"""Where a variant's evaluation lies in a run's folder, whatever the number of its shards. Knows names alone."""

from __future__ import annotations

from pathlib import Path

from hpcq.units import Kind, Variant


def unit_folders(segments: Path, variant: Variant) -> list[Path]:
    """The folder of every unit `evaluate.<variant>[.<i>of<n>]`, of this plan or an earlier one."""
    whole = f"{Kind.EVALUATE}.{variant.id}"
    return sorted([*segments.glob(whole), *segments.glob(f"{whole}.*of*")])
