"""Quantizer with AutoAWQ (0.2.9): AWQ with 4 bits and zero points in the format GEMM, as the study used it.

AutoAWQ is no longer developed; it runs in the environment 'legacy'.
"""

from __future__ import annotations

from typing import Any

from hpcq.core.errors import UserInputError
from hpcq.quantize.interface import QuantizeJob
from hpcq.quantize.linear_layers import check_reached
from hpcq.quantize.packed_tool import Inputs, ToolRun, quantize_packed
from hpcq.quantize.probe import log_likelihoods

_VERSION = "GEMM"


class AutoAwqQuantizer:
    """Quantizes with AutoAWQ's class of the model's family."""

    def quantize(self, job: QuantizeJob) -> dict[str, Any]:
        """Create the checkpoint in `job.output`; see `Quantizer`."""
        return quantize_packed(job, _AutoAwq())


class _AutoAwq:
    def compute_dtype(self, device: str) -> str | None:
        """Return float32 on a CPU, else float16: AutoAWQ rounds weights in float16 on every device."""
        return "float32" if device == "cpu" else "float16"

    def run(self, inputs: Inputs) -> ToolRun:
        """Scale, clip and round the model, and save it."""
        from awq.models.auto import AWQ_CAUSAL_LM_MODEL_MAP
        from awq.models.base import AwqConfig

        scheme, sequences = inputs.job.scheme, inputs.calibration.sequences
        settings: dict[str, Any] = {
            "zero_point": not scheme.symmetric,
            "q_group_size": scheme.group_size or -1,
            "w_bit": int(scheme.weights.removeprefix("int")),
            "version": _VERSION,
        }
        model = inputs.take_model()
        family = model.config.model_type
        if family not in AWQ_CAUSAL_LM_MODEL_MAP:
            raise UserInputError(
                f"AutoAWQ does not support '{family}': choose gptqmodel:awq-w4a16 or awq-w4a16 (llmcompressor)."
            )
        wrapped = AWQ_CAUSAL_LM_MODEL_MAP[family](
            model,
            family,
            is_quantized=False,
            config=model.config,
            quant_config=AwqConfig.from_dict(settings),
            processor=None,
        )
        check_reached(inputs.layers, _reached(model, wrapped), "AutoAWQ")
        length = len(sequences[0])
        # It drops samples that are longer than max_calib_seq_len, so it gets exactly the length.
        wrapped.quantize(
            inputs.tokenizer,
            quant_config=settings,
            calib_data=sequences,
            max_calib_samples=len(sequences),
            max_calib_seq_len=length,
        )
        values = log_likelihoods(model, inputs.tokens)
        wrapped.save_quantized(str(inputs.folder), safetensors=True)
        return ToolRun(
            files=tuple(inputs.folder.glob("*.safetensors")),
            quantization=_declaration(settings),
            recipe=settings,
            values=values,
        )


def _reached(model: Any, wrapped: Any) -> list[str]:
    """Return the names of the layers that AutoAWQ quantizes: those of its blocks, except modules_to_not_convert."""
    import torch

    skipped = getattr(wrapped, "modules_to_not_convert", None) or ()
    blocks = {id(block) for block in wrapped.get_model_layers(model)}
    prefixes = tuple(f"{name}." for name, module in model.named_modules() if id(module) in blocks)
    return [
        name
        for name, module in model.named_modules()
        if name.startswith(prefixes)
        and isinstance(module, torch.nn.Linear)
        and not any(part in name for part in skipped)
    ]


def _declaration(settings: dict[str, Any]) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "quant_method": "awq",
        "bits": settings["w_bit"],
        "group_size": settings["q_group_size"],
        "zero_point": settings["zero_point"],
        "version": settings["version"].lower(),
        "meta": {"quantizer": [f"autoawq:{version('autoawq')}"]},
    }
