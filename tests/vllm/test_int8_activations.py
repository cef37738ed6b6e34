"""The simulation of INT8 activations rounds as vLLM's operators do."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
operators = pytest.importorskip("vllm._custom_ops")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_are_rounded_as_by_vllms_operator(dtype: str) -> None:
    """Integers and scales of 64 tokens are those of vLLM, to the last bit: the divisor is 127, computed in float32."""
    from hpcq.quantize.packed_weights import round_to_int8

    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(64, 256, generator=generator) * torch.rand(64, 1, generator=generator).exp()
    inputs = inputs.to(getattr(torch, dtype))
    integers, scales, _ = operators.scaled_int8_quant(inputs.contiguous())
    assert torch.equal(scales.reshape(-1), inputs.float().abs().amax(-1) / 127)
    expected = (integers.float() * scales).to(inputs.dtype)
    difference = (round_to_int8(inputs) != expected).float().mean()
    assert float(difference) <= 1e-3  # vLLM multiplies by 1 / scale: values next to a tie
    assert not torch.equal(round_to_int8(inputs, divisor=127.5), expected)  # what compressed-tensors computes


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="vLLM selects this operator on CPUs with AMX")
def test_a_layer_computes_what_vllms_layer_computes() -> None:
    """One layer in bfloat16: the difference to vLLM's INT8 layer is that of rounding its outputs, 0.2 %.

    With compressed-tensors' divisor it is 0.8 %, as much as if activations were not rounded at all.
    """
    from hpcq.quantize.packed_weights import round_to_int8

    generator = torch.Generator().manual_seed(1)
    inputs = (torch.randn(64, 256, generator=generator) * torch.rand(64, 1, generator=generator).exp()).bfloat16()
    integers = torch.randint(-127, 128, (128, 256), generator=generator, dtype=torch.int8)
    scales = torch.rand(128, generator=generator) * 0.01 + 0.001
    packed = torch.ops._C.convert_weight_packed(integers)
    operator = torch.ops._C.int8_scaled_mm_with_quant
    theirs = operator(inputs, packed, scales, None, torch.bfloat16, True).float()  # noqa: FBT003
    weights = integers.float() * scales[:, None]

    def difference(values: torch.Tensor) -> float:
        ours = values.float() @ weights.T
        return float((theirs - ours).norm() / ours.norm())

    assert difference(round_to_int8(inputs)) < 0.004
    assert difference(round_to_int8(inputs, divisor=127.5)) > 0.006
    assert difference(inputs) > 0.006
