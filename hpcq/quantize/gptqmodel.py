"""Quantizer with gptqmodel (7.6.0): GPTQ and AWQ, in the formats of AutoGPTQ and AutoAWQ."""

from __future__ import annotations

import os
from typing import Any

from hpcq.core.error_classification import classify_error
from hpcq.core.errors import UserInputError
from hpcq.core.failures import Failure
from hpcq.core.sentences import first_line
from hpcq.quantize.coverage import module_counts
from hpcq.quantize.interface import QuantizeJob
from hpcq.quantize.packed_tool import Inputs, ToolRun, quantize_packed
from hpcq.quantize.probe import log_likelihoods

_FALLBACK = "fallback"
"""Beginning of the field `loss` in gptqmodel's log of a layer that was rounded to nearest for lack of tokens."""


class GptqModelQuantizer:
    """Quantizes with `gptqmodel.GPTQModel`."""

    def quantize(self, job: QuantizeJob) -> dict[str, Any]:
        """Create the checkpoint in `job.output`; see `Quantizer`."""
        if job.device == "cpu":
            # gptqmodel uses all accelerators that it detects, and detects them when it is imported.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        # It compiles its layers when it loads a checkpoint, for one short text, and a node may have no compiler.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
        # Without it, it starts a thread per core of the node, not of the job.
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, len(os.sched_getaffinity(0)))))
        return quantize_packed(job, _GptqModel())


class _GptqModel:
    def compute_dtype(self, device: str) -> str | None:
        """Return float32 on a CPU, which emulates 16 bits. AWQ needs 16 bits; see `_load_dtype`."""
        return "float32" if device == "cpu" else None

    def run(self, inputs: Inputs) -> ToolRun:
        """Quantize with gptqmodel, which loads the model itself."""
        from gptqmodel import BACKEND, GPTQModel

        job = inputs.job
        inputs.take_model()  # released
        settings = _settings(inputs)
        model = GPTQModel.load(
            str(job.base.absolute()),
            _config(job.scheme.method, settings),
            dtype=_load_dtype(inputs),
            trust_remote_code=job.trust_remote_code,
        )
        sequences = inputs.calibration.sequences
        try:
            model.quantize(
                [{"input_ids": sequence, "attention_mask": [1] * len(sequence)} for sequence in sequences],
                batch_size=1,
                backend=BACKEND.AWQ_TORCH if job.scheme.method == "awq" and inputs.device == "cpu" else BACKEND.AUTO,
                calibration_data_min_length=1,
            )
        except (RuntimeError, ValueError) as error:
            if classify_error(error) is not Failure.BUG:
                raise  # of the device, or of its memory
            raise UserInputError(
                f"gptqmodel cannot quantize {job.base} with '{job.scheme.name}': {first_line(error)}: use more"
                " calibration text or a larger damping, or a scheme of llmcompressor."
            ) from error
        model.save(str(inputs.folder))
        log = model.quant_log
        del model
        return ToolRun(
            files=tuple(inputs.folder.glob("*.safetensors")),
            quantization=_declaration(job.scheme.method, settings),
            recipe=settings,
            values=_loaded_log_likelihoods(inputs),
            fallbacks=_fallbacks(log, job),
        )


def _loaded_log_likelihoods(inputs: Inputs) -> Any:
    """Return the log-likelihoods of the probe by the checkpoint that gptqmodel saved, loaded and computed by gptqmodel.

    The quantized model in memory is not used: after `quantize`, its zero points are stored minus one (format gptq), but
    its layers compute with them as they are. That model is wrong, and its checkpoint is right.
    """
    import torch
    from gptqmodel import BACKEND, GPTQModel

    is_awq = inputs.job.scheme.method == "awq"
    loaded = GPTQModel.load(
        str(inputs.folder),
        device="cpu",
        backend=BACKEND.AWQ_TORCH if is_awq else BACKEND.GPTQ_TORCH,
        dtype=torch.bfloat16,
        trust_remote_code=inputs.job.trust_remote_code,
    )
    return log_likelihoods(loaded.model, inputs.tokens)


def _settings(inputs: Inputs) -> dict[str, Any]:
    scheme = inputs.job.scheme
    settings: dict[str, Any] = {
        "bits": int(scheme.weights.removeprefix("int")),
        "group_size": scheme.group_size or -1,
        "sym": scheme.symmetric,
        "desc_act": bool(scheme.activation_order),
        # A symmetric zero point is the same in both versions. Others are ambiguous in the first (packed_weights.py).
        "format": "gemm" if scheme.method == "awq" else "gptq" if scheme.symmetric else "gptq_v2",
    }
    if scheme.method == "gptq" and scheme.damping is not None:
        settings["damp_percent"] = scheme.damping
    return settings


def _config(method: str, settings: dict[str, Any]) -> Any:
    from gptqmodel.quantization.config import AWQConfig, GPTQConfig

    # The packing of "cpu" compiles an extension on the node. The model stays in memory.
    common = {"pack_impl": "original", "offload_to_disk": False}
    return (GPTQConfig if method == "gptq" else AWQConfig)(**settings, **common)


def _load_dtype(inputs: Inputs) -> Any:
    """Return the dtype that gptqmodel loads the model in. Its AWQ layers compute in 16 bits only."""
    import torch

    if inputs.job.scheme.method == "awq":
        return torch.bfloat16 if inputs.saved_dtype == "float32" else getattr(torch, inputs.saved_dtype)
    return torch.float32 if inputs.device == "cpu" else getattr(torch, inputs.saved_dtype)


def _declaration(method: str, settings: dict[str, Any]) -> dict[str, Any]:
    from importlib.metadata import version

    meta = {"quantizer": [f"gptqmodel:{version('gptqmodel')}"]}
    common = {"quant_method": method, "bits": settings["bits"], "group_size": settings["group_size"], "meta": meta}
    if method == "awq":
        return {**common, "zero_point": not settings["sym"], "version": settings["format"]}
    return {
        **common,
        "sym": settings["sym"],
        "desc_act": settings["desc_act"],
        "lm_head": False,
        "checkpoint_format": settings["format"],
    }


def _fallbacks(log: list[dict[str, Any]], job: QuantizeJob) -> dict[str, Any]:
    """Count the layers that were rounded to nearest.

    Raises:
        UserInputError: There are more than the accepted share.
    """
    names = [
        f"layers.{entry['layer']}.{entry['module']}"
        for entry in log
        if str(entry.get("loss", "")).startswith(_FALLBACK)
    ]
    facts = {"layers": len(names), "of": len(log), "names": module_counts(names)}
    if len(names) > job.max_fallback_share * len(log):
        raise UserInputError(
            f"gptqmodel rounded {len(names)} of {len(log)} layers to nearest, because too few calibration tokens "
            f"reached them; at most {job.max_fallback_share:.0%} are accepted: use more calibration text, or increase "
            "quantize.max_fallback_share."
        )
    return {job.scheme.method: facts}
