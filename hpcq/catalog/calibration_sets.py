"""Usual calibration sets by name (calibration_sets.toml), and the name of random tokens."""

from __future__ import annotations

from typing import Any

from hpcq.catalog.toml_rows import catalog_rows
from hpcq.core.calibration_source import RANDOM_TOKENS


def calibration_set_names() -> tuple[str, ...]:
    """Return the names of sets on the hub, and of random tokens."""
    return (*catalog_rows("calibration_sets.toml"), RANDOM_TOKENS)


def expanded_calibration(table: dict[str, Any]) -> dict[str, Any]:
    """Return a table [calibration] with the data set, configuration, split and column that its name stands for.

    Keys of the table have priority. A name that is unknown stays as it is.
    """
    found = catalog_rows("calibration_sets.toml").get(str(table.get("dataset")))
    return {**found, **table, "dataset": found["dataset"]} if found else table
