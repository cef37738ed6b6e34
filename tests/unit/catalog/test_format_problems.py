"""Number formats that contradict each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hpcq.catalog.format_problems import format_problem
from hpcq.catalog.schemes import find_scheme, scheme_names


@pytest.mark.parametrize("name", scheme_names())
def test_the_catalog_has_no_contradictions(name: str) -> None:
    """Every scheme of the catalog can be stored."""
    found = find_scheme(name)
    assert found
    assert format_problem(found) is None


@pytest.mark.parametrize(
    ("base", "changed", "field", "phrase"),
    [
        ("nvfp4", {"group_size": 32}, "group_size", "must be 16 with granularity 'group', which nvfp4 requires"),
        ("mxfp4", {"granularity": "channel", "group_size": None}, "group_size", "must be 32"),
        (
            "gptq-w4a16",
            {"activations": "nvfp4", "dynamic": True},
            "activations",
            "requires weights 'nvfp4'",
        ),
        ("mxfp8", {"activations": "int8"}, "activations", "cannot be combined with weights 'mxfp8'"),
        ("nvfp4", {"dynamic": False}, "dynamic", "must be true with activations 'nvfp4'"),
        ("fp8-block", {"dynamic": False}, "dynamic", "must be true with granularity 'block'"),
        ("fp8-block", {"weights": "int8", "activations": "bf16"}, "granularity", "'block' requires weights 'fp8_e4m3'"),
        ("fp8-block", {"activations": "int8"}, "activations", "cannot be combined with granularity 'block'"),
        ("fp8-dynamic", {"symmetric": False}, "symmetric", "only integers have zero points"),
    ],
)
def test_contradictions_are_found(base: str, changed: dict[str, Any], field: str, phrase: str) -> None:
    """A scheme that no checkpoint can store has one sentence with the field to change."""
    found = find_scheme(base)
    assert found
    problem = format_problem(replace(found, **changed))
    assert problem
    assert problem[0] == field
    assert phrase in problem[1]
