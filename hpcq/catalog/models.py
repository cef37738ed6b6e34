"""Shapes of known models by their id on the hub (models.toml)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from hpcq.catalog.hf_config import parse_config
from hpcq.catalog.model_shape import ModelShape
from hpcq.catalog.toml_rows import catalog_rows


def model_ids() -> tuple[str, ...]:
    """Return the ids of all models in the catalog."""
    return tuple(name for row in _rows() for name in row["ids"])


def find_model_shape(model_id: str) -> ModelShape | None:
    """Return the shape of the model with this id on the hub, case-insensitively; None: unknown."""
    number = _numbers().get(model_id.lower())
    return None if number is None else _shape(number)


def find_model_config(model_id: str) -> Mapping[str, Any] | None:
    """Return the values of the model's config.json that the catalog has; None: unknown."""
    number = _numbers().get(model_id.lower())
    return None if number is None else _rows()[number]["config"]


def published_parameters(model_id: str) -> int | None:
    """Return the number of parameters that the catalog states for a model; None: unknown."""
    number = _numbers().get(model_id.lower())
    return None if number is None else int(_rows()[number]["parameters"])


@lru_cache
def _shape(number: int) -> ModelShape:
    return parse_config(_rows()[number]["config"])


@lru_cache
def _numbers() -> dict[str, int]:
    return {name.lower(): number for number, row in enumerate(_rows()) for name in row["ids"]}


def _rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = catalog_rows("models.toml")["models"]
    return rows
