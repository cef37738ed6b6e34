"""Coverage of a quantization, on modules without a model: which layers are quantized, and with which scales."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from hpcq.core.errors import WorkerError
from hpcq.quantize.coverage import Declaration, check_coverage, use_plain_linears
from tests.unit.quantize.conftest import FP8_DYNAMIC

torch = pytest.importorskip("torch")

DECLARED = Declaration(ignore=("router",), quantized=("up_proj",), unquantized=("router",))


def quantized(layer: Any, scale: float = 0.5) -> Any:
    """Give a layer what compressed-tensors gives a quantized one."""
    layer.quantization_scheme = SimpleNamespace(weights="int8")
    layer.weight_scale = torch.nn.Parameter(torch.full((8, 1), scale), requires_grad=False)
    return layer


def linear() -> Any:
    """A small linear layer."""
    return torch.nn.Linear(8, 8)


def test_a_layer_that_is_quantized_but_not_declared_is_found() -> None:
    """Exactly the declared layers are quantized, and none else. Observed: Jamba's router was quantized."""
    model = torch.nn.ModuleDict({"up_proj": quantized(linear()), "router": linear()})
    assert check_coverage(model, DECLARED, FP8_DYNAMIC)["quantized_modules"] == {"up_proj": 1}
    quantized(model["router"])
    with pytest.raises(WorkerError, match=r"2 of 1 declared linear layers are quantized, but also router\.$"):
        check_coverage(model, DECLARED, FP8_DYNAMIC)


@pytest.mark.parametrize("scale", [math.nan, math.inf, 0.0, -1.0])
def test_a_scale_that_is_no_positive_number_is_found(scale: float) -> None:
    """Scales are finite and positive. Observed: NaN weights were quantized, and the checkpoint was committed."""
    model = torch.nn.ModuleDict({"up_proj": quantized(linear(), scale), "router": linear()})
    with pytest.raises(WorkerError, match="weight_scale of up_proj is not a positive number"):
        check_coverage(model, DECLARED, FP8_DYNAMIC)


def test_subclasses_of_linear_are_quantized_as_plain_layers() -> None:
    """The layers of Falcon become plain ones with the same weights.

    Observed: Falcon's GPTQ was rounded and not packed (format "dense"), because compressed-tensors chooses a format by
    the exact class of a module.
    """
    from transformers.models.falcon.modeling_falcon import FalconLinear

    model = torch.nn.ModuleDict({"up_proj": FalconLinear(8, 8), "router": FalconLinear(8, 8)}).eval()
    inputs, weight = torch.ones(1, 8), model["up_proj"].weight
    before = model["up_proj"](inputs)

    use_plain_linears(model, DECLARED)

    assert type(model["up_proj"]) is torch.nn.Linear
    assert type(model["router"]) is FalconLinear
    assert model["up_proj"].weight is weight
    assert torch.allclose(model["up_proj"](inputs), before)
    assert not model["up_proj"].training
