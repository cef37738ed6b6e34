"""Quantizer with AutoRound (auto-round 0.15.1): rounding is tuned by signed gradient descent, block by block.

The checkpoint is in the format of GPTQ, which transformers and vLLM read.
"""

from __future__ import annotations

import inspect
from typing import Any

from hpcq.core.errors import SetupError
from hpcq.quantize.interface import QuantizeJob
from hpcq.quantize.packed_tool import Inputs, ToolRun, quantize_packed
from hpcq.quantize.probe import log_likelihoods

_EXPORT = "auto_gptq"
_DEFAULT_STEPS = 200
_MAX_BATCH = 8
_ARGUMENTS = ("iters", "seqlen", "nsamples", "batch_size", "dataset", "device_map", "enable_torch_compile", "seed")


class AutoRoundQuantizer:
    """Quantizes with `auto_round.AutoRound`."""

    def quantize(self, job: QuantizeJob) -> dict[str, Any]:
        """Create the checkpoint in `job.output`; see `Quantizer`."""
        return quantize_packed(job, _AutoRound())


class _AutoRound:
    def compute_dtype(self, device: str) -> str | None:
        """Return float32 on a CPU, which emulates 16 bits."""
        return "float32" if device == "cpu" else None

    def run(self, inputs: Inputs) -> ToolRun:
        """Tune and round the model, and save it."""
        import torch
        from auto_round import AutoRound

        _check_arguments(AutoRound)
        scheme, sequences = inputs.job.scheme, inputs.calibration.sequences
        settings = {
            "bits": int(scheme.weights.removeprefix("int")),
            "group_size": scheme.group_size or -1,
            "sym": scheme.symmetric,
            "iters": _DEFAULT_STEPS if scheme.tuning_steps is None else scheme.tuning_steps,
            "nsamples": len(sequences),
            "seqlen": len(sequences[0]),
            "batch_size": min(_MAX_BATCH, len(sequences)),
            "seed": inputs.job.seed,
        }
        model = inputs.take_model()
        rounding = AutoRound(
            model,
            inputs.tokenizer,
            dataset=[torch.tensor([sequence]) for sequence in sequences],
            device_map="cpu" if inputs.device == "cpu" else 0,
            # Compiled kernels depend on the compiler of the node.
            enable_torch_compile=False,
            low_cpu_mem_usage=False,
            **settings,
        )
        quantized, _ = rounding.quantize()
        values = log_likelihoods(quantized, inputs.tokens)
        rounding.save_quantized(str(inputs.folder), format=_EXPORT, inplace=True)
        return ToolRun(
            files=tuple(inputs.folder.rglob("*.safetensors")),
            quantization=_declaration(settings),
            recipe=settings,
            values=values,
        )


def _declaration(settings: dict[str, Any]) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "quant_method": "gptq",
        "bits": settings["bits"],
        "group_size": settings["group_size"],
        "sym": settings["sym"],
        "desc_act": False,
        "lm_head": False,
        "provider": "auto-round",
        "autoround_version": version("auto-round"),
    }


def _check_arguments(tool: Any) -> None:
    """Check that the installed version has the arguments that are used.

    Raises:
        SetupError: It does not.
    """
    known = inspect.signature(tool.__new__).parameters
    missing = [name for name in _ARGUMENTS if name not in known]
    if missing:
        raise SetupError(
            f"The installed auto-round has no argument {', '.join(missing)}: install version 0.15.1, as in the "
            "lock file of the environment."
        )
