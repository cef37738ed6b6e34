"""Loading of compressed-tensors checkpoints with transformers (5.17), corrected where it would compute other numbers.

transformers decompresses experts to bfloat16, or to the type of their stored scales, and rounds the activations of such
experts to the same type. compressed-tensors (0.19) takes inputs of [tokens, features], which shared experts often get,
for one token: their dynamic scale would depend on all texts of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from compressed_tensors.quantization import QuantizationStrategy
from transformers.core_model_loading import WeightConverter
from transformers.integrations.compressed_tensors import DecompressExperts
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantizer
from transformers.quantizers.quantizer_compressed_tensors import CompressedTensorsHfQuantizer

from hpcq.quantize.packed_weights import fp8_weight

_METHOD = "hpcq-compressed-tensors"
"""`quant_method` under which the quantizer is registered."""
_FP8_BITS = 8
_DIMENSIONS_WITHOUT_BATCH = 2


def decompression_config(settings: Mapping[str, Any]) -> transformers.CompressedTensorsConfig:
    """Return the `quantization_config` with which transformers decompresses a checkpoint; register its quantizer.

    The configuration of the model must have no `quantization_config` of its own.

    By default compressed-tensors weights are decompressed in the first forward of the top-level model. The numbers are
    the same, and activations are quantized in both cases (transformers 5.17, compressed-tensors 0.19), but a call that
    bypasses the top-level forward would get compressed weights.

    Args:
        settings: The checkpoint's own quantization_config.
    """
    if _METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(_METHOD)(_Decompressor)
    config = transformers.CompressedTensorsConfig.from_dict({**settings, "dequantize": True})
    config.quant_method = _METHOD
    return config


class _Decompressor(CompressedTensorsHfQuantizer):
    """transformers' quantizer, with other operations for experts, and one dynamic scale per token."""

    def __init__(self, quantization_config: Any, **_: object) -> None:
        # Otherwise transformers would quantize the layers itself.
        super().__init__(quantization_config, pre_quantized=True)

    def update_weight_conversions(self, weight_conversions: Sequence[Any]) -> list[Any]:
        """Return transformers' converters, which decompress experts in the asked type."""
        converters = super().update_weight_conversions(weight_conversions)
        for converter in converters:
            if isinstance(converter, WeightConverter):
                converter.operations = [self._operation(one) for one in converter.operations]
        return converters

    def _process_model_after_weight_loading(self, model: Any, **options: object) -> None:
        super()._process_model_after_weight_loading(model, **options)
        for module in model.modules():
            scheme = getattr(module, "quantization_scheme", None)
            inputs = scheme.input_activations if scheme is not None else None
            if inputs is not None and inputs.dynamic and inputs.strategy == QuantizationStrategy.TOKEN:
                _BatchDimension().attach(module)

    def _operation(self, operation: Any) -> Any:
        if not isinstance(operation, DecompressExperts):
            return operation
        return _DecompressExperts(self, scheme=operation.scheme)


class _BatchDimension:
    """Forward hooks of a layer that pass inputs of [tokens, features] as [1, tokens, features]."""

    def __init__(self) -> None:
        self._is_added = False

    def attach(self, layer: torch.nn.Module) -> None:
        """Register the hooks."""
        layer.register_forward_pre_hook(self._add)
        layer.register_forward_hook(self._remove)

    def _add(self, _: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        self._is_added = arguments[0].ndim == _DIMENSIONS_WITHOUT_BATCH
        return (arguments[0].unsqueeze(0), *arguments[1:]) if self._is_added else arguments

    def _remove(self, _: torch.nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        return output.squeeze(0) if self._is_added else output


class _DecompressExperts(DecompressExperts):
    """Operation of transformers that replaces weights and scales of experts by weights in the model's type."""

    @torch.no_grad()
    def convert(self, input_dict: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Return the weights of each pattern, with the experts as their first dimension."""
        dtype = options["model"].get_parameter_or_buffer(options["full_layer_name"]).dtype
        scales = {name: tensors for name, tensors in input_dict.items() if "_scale" in name}
        weights = self.scheme.weights
        if weights.type == "float" and weights.num_bits == _FP8_BITS:
            return {
                name: _fp8_weights(tensors, scales[_scale_name(name)], dtype)
                for name, tensors in input_dict.items()
                if name not in scales
            }
        if weights.type == "int":  # weights get the type of their scales
            input_dict = input_dict | {name: [one.to(dtype) for one in tensors] for name, tensors in scales.items()}
        return super().convert(input_dict, **options)


def _scale_name(name: str) -> str:
    return name.removesuffix("$") + "_scale$"


def _fp8_weights(weights: list[torch.Tensor], scales: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    result = torch.empty((len(weights), *weights[0].shape), dtype=dtype, device=weights[0].device)
    for number, (weight, scale) in enumerate(zip(weights, scales, strict=True)):
        result[number] = fp8_weight(weight, scale, None)
    return result
