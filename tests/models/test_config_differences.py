"""No difference is found between a configuration and the same one with all defaults, as transformers writes it."""

from __future__ import annotations

import json

import pytest

from hpcq.catalog.config_differences import config_differences
from hpcq.catalog.config_values import value_problem
from hpcq.catalog.families import FAMILIES
from tests.models.family_configs import CONFIGS


@pytest.mark.parametrize("name", [name for name, (kind, _) in CONFIGS.items() if kind in FAMILIES])
def test_what_transformers_writes_is_no_difference(name: str) -> None:
    """A tool that saves a configuration adds defaults and renames keys; this must not give notes."""
    from transformers import AutoConfig

    kind, settings = CONFIGS[name]
    if kind == "qwen":
        pytest.skip("its configuration class is not in transformers")
    base = {**settings, "model_type": kind}
    saved = json.loads(AutoConfig.for_model(kind, **settings).to_json_string(use_diff=False))
    assert value_problem(saved) is None
    assert not [*config_differences(saved, base)]
    assert not [*config_differences(base, saved)]
