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
