"""Reading the catalog's TOML files, beside the modules that give them types. Knows nothing of what is in them."""

from __future__ import annotations

import tomllib
from functools import lru_cache
from importlib import resources
from typing import Any


@lru_cache
def catalog_rows(file_name: str) -> dict[str, Any]:
    """The content of `hpcq/catalog/<file_name>`; callers do not change it."""
    text = resources.files("hpcq.catalog").joinpath(file_name).read_text(encoding="utf-8")
    return tomllib.loads(text)


def with_tuples(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose lists are tuples, as a frozen record wants them."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
