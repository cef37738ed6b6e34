"""Reader of the catalog's TOML files, for gpus.py, models.py and the others."""

from __future__ import annotations

import tomllib
from functools import lru_cache
from importlib import resources
from typing import Any


@lru_cache
def catalog_rows(file_name: str) -> dict[str, Any]:
    """Return the content of `hpcq/catalog/<file_name>`. It is cached: do not modify it."""
    text = resources.files("hpcq.catalog").joinpath(file_name).read_text(encoding="utf-8")
    return tomllib.loads(text)


def with_tuples(row: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a row with its lists as tuples, which are hashable."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
