"""The list of model types in the catalog is that of the installed transformers."""

from __future__ import annotations

from tests.models.model_types import CATALOG, model_types_text


def test_model_types_are_those_of_transformers() -> None:
    """A change of transformers' version has to update the list."""
    assert (CATALOG / "model_types.toml").read_text(encoding="utf-8") == model_types_text()
