"""INT8 activations of compressed-tensors checkpoints (0.19), rounded as INT8 kernels round them.

compressed-tensors divides the largest absolute value of a token by 127.5 and rounds the scale to the type of the
computation. Kernels divide by 127, in float32. With 127.5 the largest values are clipped by 0.4 %, and in bfloat16
they are rounded twice. So its rounding is switched off, and another one is attached to each layer.

This is the only module that uses `quantization_enabled`, `quantization_scheme` and `quantization_status` of a layer to
change what it computes: they are no public interface. `check_interface` tests what it relies on.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from hpcq.core.errors import SetupError
from hpcq.evaluate.backends.transformers.dequantization import InputRounding
from hpcq.quantize.packed_weights import round_to_int8


def use_kernel_rounding(model: Any, divisor: int) -> int:
    """Round the INT8 activations of all layers with dynamic scales of tokens as kernels do.

    Args:
        model: A model of transformers whose weights compressed-tensors has decompressed.
        divisor: Number by which the largest absolute value of a token is divided for its scale.

    Returns:
        Number of layers.

    Raises:
        SetupError: The installed compressed-tensors rounds activations in another way than this module relies on.
    """
    layers = [module for module in model.modules() if _is_dynamic_int8(module)]
    if layers:
        check_interface()
    for layer in layers:
        layer.quantization_enabled = False
        InputRounding(partial(round_to_int8, divisor=divisor)).attach(layer)
    return len(layers)


def check_interface() -> None:
    """Check that a layer with `quantization_enabled = False` does not round its inputs, and that others do.

    Raises:
        SetupError: It is not so.
    """
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, QuantizationStatus
    from compressed_tensors.quantization.lifecycle.initialize import initialize_module_for_quantization

    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[0.0, 1.0]])
    inputs = torch.tensor([[[127.0, 0.4]]])  # the second number is rounded to 0
    arguments = QuantizationArgs(num_bits=8, type="int", strategy="token", dynamic=True, symmetric=True)
    initialize_module_for_quantization(layer, QuantizationScheme(targets=["Linear"], input_activations=arguments))
    layer.quantization_status = QuantizationStatus.FROZEN
    rounded = float(layer(inputs).detach())
    layer.quantization_enabled = False
    plain = float(layer(inputs).detach())
    InputRounding(partial(round_to_int8, divisor=127)).attach(layer)
    ours = float(layer(inputs).detach())
    if not (_is_dynamic_int8(layer) and rounded == ours == 0.0 and plain == inputs[0, 0, 1]):
        raise SetupError(
            "The installed compressed-tensors does not switch the rounding of activations off where hpcq replaces it: "
            "install version 0.19, as in the lock file of the environment."
        )


def _is_dynamic_int8(module: Any) -> bool:
    scheme = getattr(module, "quantization_scheme", None)
    inputs = None if scheme is None else scheme.input_activations
    return inputs is not None and (inputs.type, inputs.num_bits, inputs.strategy, inputs.dynamic, inputs.symmetric) == (
        "int", 8, "token", True, True,
    )  # fmt: skip
