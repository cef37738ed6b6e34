"""Quantizer with AutoGPTQ (0.7.1): GPTQ with 2, 3, 4 or 8 bits, as the study used it (arXiv 2409.11055).

AutoGPTQ is no longer developed; it runs in the environment 'legacy'. The wheel has kernels for CUDA 12.1 and torch 2.2,
which this environment cannot load. Quantizing needs no kernels: it uses torch alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.sentences import first_line
from hpcq.quantize.interface import QuantizeJob
from hpcq.quantize.linear_layers import check_reached
from hpcq.quantize.packed_tool import Inputs, ToolRun, quantize_packed
from hpcq.quantize.probe import log_likelihoods

_PRIVATE = ("CUDA_0", "pack_model")
"""Names in auto_gptq.modeling._base that this module replaces."""


class AutoGptqQuantizer:
    """Quantizes with AutoGPTQ's class of the model's family."""

    def quantize(self, job: QuantizeJob) -> dict[str, Any]:
        """Create the checkpoint in `job.output`; see `Quantizer`."""
        return quantize_packed(job, _AutoGptq())


class _AutoGptq:
    def compute_dtype(self, device: str) -> str | None:
        """Return float32 on a CPU, which emulates 16 bits."""
        return "float32" if device == "cpu" else None

    def run(self, inputs: Inputs) -> ToolRun:
        """Quantize the model and save it."""
        import torch
        from auto_gptq import BaseQuantizeConfig
        from auto_gptq.modeling.auto import GPTQ_CAUSAL_LM_MODEL_MAP

        scheme, sequences = inputs.job.scheme, inputs.calibration.sequences
        settings: dict[str, Any] = {
            "bits": int(scheme.weights.removeprefix("int")),
            "group_size": scheme.group_size or -1,
            "desc_act": bool(scheme.activation_order),
            "sym": scheme.symmetric,
            **({} if scheme.damping is None else {"damp_percent": scheme.damping}),
        }
        model = inputs.take_model()
        family = model.config.model_type
        if family not in GPTQ_CAUSAL_LM_MODEL_MAP:
            raise UserInputError(
                f"AutoGPTQ does not support '{family}': choose gptqmodel:gptq-w4a16 or gptq-w4a16 (llmcompressor)."
            )
        config = BaseQuantizeConfig(**settings)
        wrapped = GPTQ_CAUSAL_LM_MODEL_MAP[family](model, False, config)  # noqa: FBT003  its `quantized` is positional
        check_reached(inputs.layers, _reached(model, wrapped), "AutoGPTQ")
        values: list[Any] = []
        with _replaced(inputs.device, lambda: values.append(log_likelihoods(model, inputs.tokens))):
            try:
                wrapped.quantize(
                    [{"input_ids": sequence, "attention_mask": [1] * len(sequence)} for sequence in sequences],
                    batch_size=1,
                    use_triton=False,
                    cache_examples_on_gpu=False,
                )
            except torch.linalg.LinAlgError as error:
                raise UserInputError(
                    f"AutoGPTQ could not invert the Hessian of a layer with '{scheme.name}' ({first_line(error)}): use "
                    "more calibration text (calibration.samples, calibration.sequence_length) or a larger damping."
                ) from error
        wrapped.save_quantized(str(inputs.folder), use_safetensors=True)
        return ToolRun(
            files=tuple(inputs.folder.glob("*.safetensors")),
            quantization=_declaration({**settings, "damp_percent": config.damp_percent}),
            recipe={**settings, "damp_percent": config.damp_percent, "true_sequential": config.true_sequential},
            values=values[0],
            # Its zero points are between 0 and the largest integer: 2**bits cannot occur.
            adds_one_to_zeros=not scheme.symmetric,
        )


def _reached(model: Any, wrapped: Any) -> list[str]:
    """Return the names of the layers that AutoGPTQ's class of the family quantizes."""
    inside = {name for group in wrapped.inside_layer_modules for name in group}
    prefix = f"{wrapped.layers_block_name}."
    return [
        name
        for name, _ in model.named_modules()
        if name.startswith(prefix) and name.removeprefix(prefix).partition(".")[2] in inside
    ]


def _declaration(settings: dict[str, Any]) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "quant_method": "gptq",
        **settings,
        "lm_head": False,
        "checkpoint_format": "gptq" if settings["sym"] else "gptq_v2",
        "meta": {"quantizer": [f"auto_gptq:{version('auto-gptq')}"]},
    }


@contextlib.contextmanager
def _replaced(device: str, before_packing: Callable[[], None]) -> Iterator[None]:
    """Let AutoGPTQ call `before_packing`, when the layers have rounded weights in floating point; run it on a CPU.

    AutoGPTQ 0.7.1 always uses the device 'cuda:0', and waits for it. Without a GPU both are replaced.

    Raises:
        SetupError: The installed AutoGPTQ has not these names.
    """
    import torch
    from auto_gptq.modeling import _base

    missing = [name for name in _PRIVATE if not hasattr(_base, name)]
    if missing:
        raise SetupError(
            f"The installed AutoGPTQ has no {', '.join(missing)}: install version 0.7.1, as in the lock file of the "
            "environment."
        )
    originals = {name: getattr(_base, name) for name in _PRIVATE}
    synchronize = torch.cuda.synchronize

    def pack_model(**arguments: Any) -> None:
        before_packing()
        originals["pack_model"](**arguments)

    _base.pack_model = pack_model
    if device == "cpu":
        _base.CUDA_0 = torch.device("cpu")
        torch.cuda.synchronize = lambda *_: None
    try:
        yield
    finally:
        torch.cuda.synchronize = synchronize
        for name, value in originals.items():
            setattr(_base, name, value)
