"""The catalog's list of architectures is that of the installed vLLM."""

from __future__ import annotations

import tomllib

from tests.vllm.architectures import PATH, installed_architectures, is_importable


def test_the_catalog_lists_the_architectures_of_the_installed_version() -> None:
    """After an update of vLLM, `python -m tests.vllm.architectures` writes the list again.

    Observed: the catalog had only one.
    """
    [row] = tomllib.loads(PATH.read_text(encoding="utf-8"))["architectures"]
    assert row == installed_architectures() | {"not_on_cpus": row["not_on_cpus"]}
    assert is_importable("Gemma3ForCausalLM")
    assert "Gemma3ForCausalLM" not in row["not_on_cpus"]
    assert not is_importable("Gemma3ForConditionalGeneration")
    assert "Gemma3ForConditionalGeneration" in row["not_on_cpus"]
