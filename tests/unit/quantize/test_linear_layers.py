"""Linear layers of a base checkpoint, and whether a tool quantizes exactly them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq.catalog.schemes import find_scheme
from hpcq.core.errors import UserInputError
from hpcq.quantize.linear_layers import LinearLayers, base_names, check_reached, linear_layers
from tests.tiny_llama import write_base

torch = pytest.importorskip("torch")

LAYERS = LinearLayers(
    quantized={f"model.layers.{n}.mlp.{part}_proj": (8, 8) for n in range(2) for part in ("up", "down")}, unquantized=()
)


def test_the_layers_of_a_llama_are_those_of_its_blocks(tmp_path: Path) -> None:
    """The head and the embeddings are left out, and every layer has a tensor in the base's files."""
    from transformers import AutoConfig, AutoModelForCausalLM

    base, scheme = write_base(tmp_path / "base"), find_scheme("autogptq:gptq-w4a16-g64")
    assert scheme
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    found = linear_layers(model, base, scheme)
    assert len(found.quantized) == 14
    assert found.unquantized == ("lm_head",)
    assert found.quantized["model.layers.1.mlp.down_proj"] == (128, 256)
    assert set(base_names(base, found).values()) == {f"{name}.weight" for name in found.quantized}


def test_a_tool_that_quantizes_other_layers_is_refused_before_it_starts() -> None:
    """The message has the numbers, and the patterns of the layers."""
    check_reached(LAYERS, LAYERS.quantized, "AutoGPTQ")
    names = [name for name in LAYERS.quantized if "down" not in name]
    expected = r"AutoAWQ quantizes 2 of the 4 linear layers of this model, not model.layers.\*.mlp.down_proj: choose"
    with pytest.raises(UserInputError, match=expected):
        check_reached(LAYERS, names, "AutoAWQ")
    with pytest.raises(UserInputError, match="quantizes 4 of the 4 linear layers of this model, but also lm_head"):
        check_reached(LAYERS, [*LAYERS.quantized, "lm_head"], "AutoAWQ")


def test_a_base_without_the_tensor_of_a_layer_is_refused(tmp_path: Path) -> None:
    """Otherwise its saved weights could not be compared with anything."""
    with pytest.raises(UserInputError, match="its files have no tensor for 4 of 4 layers"):
        base_names(write_base(tmp_path / "base", layers=1).parent, LAYERS)
