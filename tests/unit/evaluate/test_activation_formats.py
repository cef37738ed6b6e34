"""Activations of every scheme that rounds them, as compressed-tensors (0.19) simulates them, against their definition.

The definitions are written here a second time, with numbers instead of library calls.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from hpcq.catalog.schemes import find_scheme, scheme_names
from hpcq.core.work_records import Scheme
from hpcq.quantize.recipes import config_group

torch = pytest.importorskip("torch")
pytest.importorskip("compressed_tensors")

FEATURES = 256
GLOBAL_SCALE = 300.0
INPUT_SCALE = 0.01
Rounding = Callable[[Any], Any]


def named(name: str) -> Scheme:
    """Return a scheme of the catalog."""
    found = find_scheme(name)
    assert found
    return found


NAMES = [name for name in scheme_names() if not name.startswith("study-")]  # other names of the same schemes
ROUNDING = [name for name in NAMES if named(name).quantizes_activations and named(name).method == "rtn"]


def groups(values: Any, size: int) -> Any:
    """Return values as [..., groups, size]."""
    return values.unflatten(-1, (-1, size))


def to_fp8(values: Any) -> Any:
    """Return values rounded to E4M3, clipped to its largest number."""
    return values.clamp(-448, 448).to(torch.float8_e4m3fn).float()


def to_e2m1(values: Any) -> Any:
    """Return values rounded to the nearest of 0, 0.5, 1, 1.5, 2, 3, 4 and 6; ties to the even mantissa."""
    numbers = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    distances = (values.abs().unsqueeze(-1) - numbers).abs()
    first = distances.argmin(-1)
    second = (first + 1).clamp(max=7)
    is_tie = distances.gather(-1, first[..., None]) == distances.gather(-1, second[..., None])
    chosen = torch.where(is_tie[..., 0] & (first % 2 == 1), second, first)
    return numbers[chosen] * values.sign()


def power_of_two(largest: Any, exponent_of_maximum: int) -> Any:
    """Return the scale of MX formats; from 1.75 the mantissa rounds up, as in AMD Quark's 'even' rounding."""
    exponent = largest.log2().floor()
    exponent += largest / exponent.exp2() >= 1.75
    return (exponent - exponent_of_maximum).exp2()


def per_token_fp8(values: Any) -> Any:
    """FP8 with one scale per token."""
    scale = values.abs().amax(-1, keepdim=True) / 448
    return to_fp8(values / scale) * scale


def static_fp8(values: Any) -> Any:
    """FP8 with one static scale."""
    return to_fp8(values / INPUT_SCALE) * INPUT_SCALE


def grouped_fp8(values: Any) -> Any:
    """FP8 with one scale per 128 features of a token."""
    return per_token_fp8(groups(values, 128)).flatten(-2)


def nvfp4(values: Any) -> Any:
    """NVFP4: scales in E4M3 of 16 features of a token, relative to a static scale of the tensor."""
    parts = groups(values, 16)
    scale = to_fp8(parts.abs().amax(-1, keepdim=True) / 6 * GLOBAL_SCALE) / GLOBAL_SCALE
    return (to_e2m1((parts / scale).clamp(-6, 6)) * scale).flatten(-2)


def mxfp4(values: Any) -> Any:
    """MXFP4: powers of two of 32 features of a token."""
    parts = groups(values, 32)
    scale = power_of_two(parts.abs().amax(-1, keepdim=True), 2)
    return (to_e2m1((parts / scale).clamp(-6, 6)) * scale).flatten(-2)


def mxfp8(values: Any) -> Any:
    """MXFP8: powers of two of 32 features of a token."""
    parts = groups(values, 32)
    scale = power_of_two(parts.abs().amax(-1, keepdim=True), 8)
    return (to_fp8(parts / scale) * scale).flatten(-2)


DEFINITIONS: dict[str, Rounding] = {
    "fp8-dynamic": per_token_fp8,
    "fp8-dynamic-kv8": per_token_fp8,
    "w4a8-fp8": per_token_fp8,
    "fp8": static_fp8,
    "fp8-block": grouped_fp8,
    "nvfp4": nvfp4,
    "mxfp4": mxfp4,
    "mxfp8": mxfp8,
}


def simulated(scheme: Scheme, values: Any) -> Any:
    """Return values as the inputs of a layer that compressed-tensors quantizes: those of a layer with weight 1."""
    from compressed_tensors.quantization import QuantizationScheme, QuantizationStatus
    from compressed_tensors.quantization.lifecycle.initialize import initialize_module_for_quantization

    layer = torch.nn.Linear(FEATURES, FEATURES, bias=False).to(values.dtype)
    layer.weight.data = torch.eye(FEATURES, dtype=values.dtype)
    inputs = config_group(scheme)["input_activations"]
    initialize_module_for_quantization(layer, QuantizationScheme(targets=["Linear"], input_activations=inputs))
    for name, value in (("input_global_scale", GLOBAL_SCALE), ("input_scale", INPUT_SCALE)):
        if hasattr(layer, name):
            getattr(layer, name).data.fill_(value)
    layer.quantization_status = QuantizationStatus.FROZEN
    with torch.no_grad():
        return layer(values)


def sample() -> Any:
    """Activations with outliers: 2 texts of 32 tokens."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(2, 32, FEATURES, generator=generator) ** 3


@pytest.mark.parametrize("name", ROUNDING)
def test_activations_are_rounded_by_the_definition_of_their_format(name: str) -> None:
    """In float32, every number is that of the definition: groups, global scales, powers of two, and ties."""
    values = sample()
    found, expected = simulated(named(name), values), DEFINITIONS[name](values)
    assert float((found - values).abs().max()) > 1e-3
    different = ~torch.isclose(found, expected, rtol=1e-5, atol=1e-7)
    assert float(different.float().mean()) <= 1e-4  # quotients that are next to a tie


@pytest.mark.parametrize("name", ROUNDING)
def test_activations_in_bfloat16_are_rounded_without_bias(name: str) -> None:
    """In bfloat16 scales are rounded, too: the error is not larger than the definition's, and its mean is zero."""
    values = sample().to(torch.bfloat16)
    found = simulated(named(name), values).float()
    expected = DEFINITIONS[name](values.float())
    plain = values.float()
    ratio = float((found - plain).norm() / (expected - plain).norm())
    shift = float(((found - plain) * plain).mean() / (plain * plain).mean())
    reference = float(((expected - plain) * plain).mean() / (plain * plain).mean())
    assert ratio == pytest.approx(1, abs=0.05)
    assert shift == pytest.approx(reference, abs=2e-3)


def test_int8_activations_are_rounded_as_kernels_do() -> None:
    """The largest value of a token is 127 steps: compressed-tensors' own rounding clips it by half a step."""
    from hpcq.quantize.packed_weights import round_to_int8

    values = sample()
    steps = values.abs().amax(-1, keepdim=True) / 127
    expected = torch.round(values / steps) * steps
    assert torch.allclose(round_to_int8(values), expected, rtol=1e-6)
    largest = values.abs().amax(-1)
    assert torch.allclose(round_to_int8(values).abs().amax(-1), largest, rtol=1e-5)
    theirs = simulated(named("smoothquant-w8a8"), values).abs().amax(-1)
    assert float((theirs / largest).mean()) == pytest.approx(1, abs=0.005)
    assert float((theirs / largest).min()) < 0.9965  # 127 / 127.5 where the largest value is positive


def test_the_rounding_of_a_loaded_model_is_replaced_and_can_be_switched_off() -> None:
    """Layers with dynamic INT8 activations round once, by the kernels' rule; other layers keep their rounding."""
    from compressed_tensors.quantization import QuantizationScheme, QuantizationStatus
    from compressed_tensors.quantization.lifecycle.initialize import initialize_module_for_quantization

    from hpcq.evaluate.backends.transformers.int8_activations import use_kernel_rounding
    from hpcq.evaluate.backends.transformers.prefix_scoring.quantized_activations import unquantized_activations
    from hpcq.quantize.packed_weights import round_to_int8

    model = torch.nn.ModuleList([torch.nn.Linear(FEATURES, FEATURES, bias=False) for _ in range(2)])
    for layer, name in zip(model, ("smoothquant-w8a8", "fp8-dynamic"), strict=True):
        layer.weight.data = torch.eye(FEATURES)
        inputs = config_group(named(name))["input_activations"]
        initialize_module_for_quantization(layer, QuantizationScheme(targets=["Linear"], input_activations=inputs))
        layer.quantization_status = QuantizationStatus.FROZEN
    values = sample()
    with torch.no_grad():
        before = [layer(values) for layer in model]
        assert use_kernel_rounding(model, 127) == 1
        after = [layer(values) for layer in model]
        with unquantized_activations(model):
            plain = [layer(values) for layer in model]
        again = model[0](values)
    assert torch.equal(after[0], round_to_int8(values))
    assert torch.equal(again, after[0])
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert all(torch.equal(one, values) for one in plain)


def test_a_library_that_rounds_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """If compressed-tensors ignores the attribute that switches its rounding off, nothing is evaluated."""
    from compressed_tensors.quantization.lifecycle import forward

    from hpcq.core.errors import SetupError
    from hpcq.evaluate.backends.transformers.int8_activations import check_interface

    check_interface()
    original = forward.set_forward_quantized

    def always_rounding(module: Any) -> None:
        original(module)
        module.forward = partial(_rounded_forward, module)

    monkeypatch.setattr("compressed_tensors.quantization.lifecycle.initialize.set_forward_quantized", always_rounding)
    with pytest.raises(SetupError, match="does not switch the rounding of activations off"):
        check_interface()


def _rounded_forward(module: Any, inputs: Any) -> Any:
    return torch.nn.functional.linear(inputs.round(), module.weight)
