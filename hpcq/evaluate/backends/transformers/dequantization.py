"""Loading of GPTQ, AWQ and FP8 checkpoints with transformers (5.17) as if they were unquantized.

Each layer is dequantized while its file is read, so a checkpoint needs no kernels and no package of its own, and is
computed as its configuration declares. Uses transformers' registry of quantizers and its weight converters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from hpcq.catalog.checkpoint_formats import CheckpointFormat
from hpcq.core.errors import WorkerError
from hpcq.core.work_records import Scheme
from hpcq.quantize.packed_weights import (
    PackedWeightsError,
    awq_weight,
    fp8_weight,
    gptq_weight,
    round_activations,
)

_METHOD = "hpcq"
"""`quant_method` under which the quantizer is registered."""
_INTEGER_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_FP8_PARTS = ("weight", "weight_scale_inv", "weight_scale", "input_scale", "activation_scale")
PARTS = {
    CheckpointFormat.GPTQ.value: _INTEGER_PARTS,
    CheckpointFormat.AWQ.value: _INTEGER_PARTS[:3],
    CheckpointFormat.FP8.value: _FP8_PARTS,
    CheckpointFormat.FBGEMM_FP8.value: _FP8_PARTS,
    CheckpointFormat.MODELOPT.value: _FP8_PARTS,
}
"""Suffixes of the tensors that make up a weight, by format of the checkpoint."""
_WEIGHT = "weight"


class DequantizationConfig(QuantizationConfigMixin):
    """Settings of a checkpoint whose layers are dequantized, and what was found in its files.

    Attributes:
        scheme: What the checkpoint declares.
        settings: Its own quantization_config.
        input_scales: Static scale of the activations of each dequantized layer, or None.
        weights: Number of dequantized weights.
        problems: Why layers could not be dequantized.
    """

    def __init__(self, scheme: Scheme, settings: Mapping[str, Any]) -> None:
        self.quant_method = _METHOD
        self.dequantize = True  # transformers removes the configuration after loading
        self.scheme = scheme
        self.settings = settings
        self.input_scales: dict[str, torch.Tensor | None] = {}
        self.weights = 0
        self.problems: list[str] = []

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for the copies of a configuration that transformers prints."""
        return {"quant_method": _METHOD, "dequantize": True}


def dequantization_config(scheme: Scheme, settings: Mapping[str, Any]) -> DequantizationConfig:
    """Return the `quantization_config` with which transformers dequantizes a checkpoint, and register its quantizer.

    The configuration of the model must have no `quantization_config` of its own.
    """
    if _METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(_METHOD)(_Dequantizer)
    return DequantizationConfig(scheme, settings)


class _Dequantizer(HfQuantizer):
    """Quantizer of transformers whose layers are unquantized."""

    def __init__(self, quantization_config: DequantizationConfig, **_: object) -> None:
        # Otherwise transformers would quantize the layers itself.
        super().__init__(quantization_config, pre_quantized=True)

    def get_weight_conversions(self) -> list[WeightConverter]:
        """Return the converter of linear layers."""
        config = self.quantization_config
        parts = PARTS[config.scheme.checkpoint_format]
        operation = _Dequantize(config, {f"{part}$": (_WEIGHT, part) for part in parts})
        return [WeightConverter([f"{part}$" for part in parts], _WEIGHT, [operation])]

    def update_weight_conversions(self, weight_conversions: Sequence[Any]) -> list[Any]:
        """Return the model's own converters (such as those that stack experts), which dequantize first."""
        config = self.quantization_config
        parts = PARTS[config.scheme.checkpoint_format]
        updated = []
        for converter in weight_conversions:
            sources = converter.source_patterns if isinstance(converter, WeightConverter) else []
            split = [source for source in sources if source.removesuffix("$").endswith(f".{_WEIGHT}")]
            if not split:
                updated.append(converter)
                continue
            # The following operations take the weights in the order of the source patterns.
            prefixes = [source.removesuffix("$").removesuffix(_WEIGHT) for source in split]
            names = {f"{prefix}{part}$": (f"{prefix}{parts[0]}$", part) for prefix in prefixes for part in parts}
            others = [source for source in sources if source not in split]
            operations = [_Dequantize(config, names), *converter.operations]
            # `target_patterns` has lost its groups.
            targets = list(converter._original_target_patterns)  # noqa: SLF001
            updated.append(WeightConverter([*names, *others], targets, operations))
        return [*updated, *self.get_weight_conversions()]

    def _process_model_after_weight_loading(self, model: Any, **_: object) -> Any:
        config = self.quantization_config
        if config.scheme.activations == "fp8_e4m3":
            _round_inputs(model, config)
        return model

    def is_serializable(self, *_: object, **__: object) -> bool:
        """Return False: the model is only evaluated."""
        return False

    @property
    def is_trainable(self) -> bool:
        """False: the model is only evaluated."""
        return False


class _Dequantize(ConversionOps):
    """Operation of transformers that replaces the parts of a weight by the weight."""

    def __init__(self, config: DequantizationConfig, names: Mapping[str, tuple[str, str]]) -> None:
        self._config = config
        self._names = names

    def __deepcopy__(self, memo: dict[int, Any]) -> _Dequantize:
        return self  # transformers copies a converter for each weight, but the layers are collected in one place

    @torch.no_grad()
    def convert(
        self,
        input_dict: dict[str, Any],
        *,
        full_layer_name: str | None = None,
        model: Any = None,
        **_: object,
    ) -> dict[str, Any]:
        """Return the weight of each pattern, in the type of the model's parameter."""
        grouped: dict[str, dict[str, list[torch.Tensor]]] = {}
        result: dict[str, Any] = {}
        for pattern, value in input_dict.items():
            if pattern not in self._names:
                result[pattern] = value
                continue
            target, part = self._names[pattern]
            grouped.setdefault(target, {})[part] = value if isinstance(value, list) else [value]
        dtype = _parameter_dtype(model, full_layer_name)
        for target, parts in grouped.items():
            counts = {len(tensors) for tensors in parts.values()}
            if len(counts) != 1:
                self._fail(full_layer_name or target, "not all experts have all parts of the weight")
            weights = [
                self._weight(
                    {part: tensors[index] for part, tensors in parts.items()}, full_layer_name or target, dtype
                )
                for index in range(counts.pop())
            ]
            result[target] = weights if target != _WEIGHT else weights[0]
        return result

    @property
    def reverse_op(self) -> ConversionOps:
        """Not possible: the model is never saved."""
        raise NotImplementedError

    def _weight(self, parts: Mapping[str, torch.Tensor], name: str, dtype: torch.dtype) -> torch.Tensor:
        try:
            weight = self._dequantized(parts)
        except PackedWeightsError as error:
            self._fail(name, str(error))
        if weight is None:
            return parts[_WEIGHT].to(dtype)
        scale = parts.get("input_scale", parts.get("activation_scale"))
        self._config.weights += 1
        self._config.input_scales[name.removesuffix(f".{_WEIGHT}")] = None if scale is None else scale.float()
        return weight.to(dtype)

    def _fail(self, name: str, phrase: str) -> NoReturn:
        """Record a problem: transformers reports only how many layers have one."""
        self._config.problems.append(f"{name}: {phrase}.")
        raise WorkerError(self._config.problems[-1])

    def _dequantized(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """Return the weight in float32; None if the layer is not quantized."""
        scheme, settings = self._config.scheme, self._config.settings
        if scheme.checkpoint_format == CheckpointFormat.AWQ:
            return awq_weight(*_required(parts, _INTEGER_PARTS[:3]))
        if scheme.checkpoint_format == CheckpointFormat.GPTQ:
            layout = settings.get("checkpoint_format") or settings.get("format") or "gptq"
            qweight, qzeros, scales = _required(parts, _INTEGER_PARTS[:3])
            return gptq_weight(
                qweight,
                qzeros,
                scales,
                parts.get("g_idx"),
                bits=int(scheme.weights.removeprefix("int")),
                is_v2=layout == "gptq_v2",
                is_symmetric=scheme.symmetric,
            )
        scale = parts.get("weight_scale_inv", parts.get("weight_scale"))
        if scale is None:
            return None  # transformers has converted it; `check_loaded` finds FP8 weights whose scale is missing
        return fp8_weight(parts[_WEIGHT], scale, scheme.group_size if scheme.granularity == "block" else None)


def _required(parts: Mapping[str, torch.Tensor], names: Sequence[str]) -> list[torch.Tensor]:
    missing = [name for name in names if name not in parts]
    if missing:
        raise PackedWeightsError(f"{', '.join(missing)} is missing")
    return [parts[name] for name in names]


def _parameter_dtype(model: Any, name: str | None) -> torch.dtype:
    return model.get_parameter_or_buffer(name).dtype if model is not None and name else torch.float32


def _round_inputs(model: Any, config: DequantizationConfig) -> None:
    """Round the inputs of all dequantized layers to FP8, as the checkpoint declares.

    Raises:
        WorkerError: A dequantized weight does not belong to a linear layer, or a static scale is missing.
    """
    scheme, settings = config.scheme, config.settings
    modules = dict(model.named_modules())
    for name, scale in config.input_scales.items():
        layer = modules.get(name)
        if not isinstance(layer, torch.nn.Linear):
            raise WorkerError(
                f"{name}: its activations cannot be quantized as {scheme.name} declares: evaluate with vllm."
            )
        if not scheme.dynamic and scale is None:
            raise WorkerError(f"{name}: its input_scale is missing, which {scheme.name} declares.")
        options: dict[str, Any] = {
            "group_size": scheme.group_size if scheme.granularity == "block" else None,
            "scale": None if scheme.dynamic else scale,
            "upper_bound": settings.get("activation_scale_ub"),
            "is_power_of_two": settings.get("scale_fmt") == "ue8m0",
        }
        InputRounding(partial(round_activations, **options)).attach(layer)


class InputRounding:
    """Forward pre-hook of a layer that rounds its inputs.

    Args:
        rounding: Returns rounded activations, in their own type.

    Attributes:
        is_enabled: Whether it does.
    """

    def __init__(self, rounding: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._rounding = rounding
        self.is_enabled = True

    def __call__(self, _: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Return the arguments of the layer, rounded."""
        if not self.is_enabled:
            return arguments
        return (self._rounding(arguments[0]), *arguments[1:])

    def attach(self, layer: torch.nn.Module) -> None:
        """Round the inputs of `layer`, and be found by `of`."""
        layer.register_forward_pre_hook(self)
        layer.input_rounding = self

    @staticmethod
    def of(layer: torch.nn.Module) -> InputRounding | None:
        """Return the rounding of a layer's inputs; None if they are not rounded."""
        found = getattr(layer, "input_rounding", None)
        return found if isinstance(found, InputRounding) else None
