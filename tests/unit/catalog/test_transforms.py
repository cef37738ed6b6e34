"""Measured verdicts about llmcompressor's SmoothQuant and AWQ (transforms.toml)."""

from __future__ import annotations

import tomllib

import pytest

from hpcq.catalog.families import FAMILIES
from hpcq.catalog.schemes import find_scheme
from hpcq.catalog.toml_rows import catalog_rows
from hpcq.catalog.unquantized_modules import Transform, quantization_problem, transform_verdict
from tests.transform_table import CATALOG, covered_families

METHODS = ("smoothquant", "awq")


def test_the_table_was_measured_with_the_locked_version() -> None:
    """A new llmcompressor has other mappings: `python -m tests.transform_table --write` measures them."""
    lock = (CATALOG.parents[2] / "modules" / "transformers.lock.txt").read_text(encoding="utf-8")
    for name, version in catalog_rows("transforms.toml")["measured_with"].items():
        assert f"{name}=={version}" in lock


@pytest.mark.parametrize("method", METHODS)
def test_every_family_has_one_verdict(method: str) -> None:
    """Each family that a scheme can quantize was measured, and is in one list, or differs with its options."""
    rows = tomllib.loads(CATALOG.read_text(encoding="utf-8"))[method]
    listed = [family for verdict in Transform for family in rows[verdict.value]]
    assert len(listed) == len(set(listed))
    assert set(listed) | set(rows["depends"]) == covered_families()
    assert set(listed) <= set(FAMILIES)


@pytest.mark.parametrize("method", METHODS)
def test_families_with_wrong_layers_are_refused(method: str) -> None:
    """A verdict decides at plan time, unless it depends on the options of the family."""
    scheme = find_scheme({"smoothquant": "smoothquant-w8a8", "awq": "awq-w4a16"}[method])
    assert scheme
    for family in covered_families():
        problem = quantization_problem({"model_type": family}, scheme)
        is_refused = transform_verdict(family, method) in (Transform.WRONG, Transform.MISSING)
        assert is_refused == (problem is not None and "llmcompressor" in problem)
