"""Quantizer with llmcompressor 0.14: loads the base checkpoint, applies a recipe, saves compressed tensors."""

from __future__ import annotations

import contextlib
import copy
import os
import random
import shutil
from collections.abc import Iterator
from typing import Any

from hpcq.core.errors import SetupError
from hpcq.core.work_records import Calibration
from hpcq.quantize.calibration import calibration_sequences
from hpcq.quantize.interface import QuantizeJob
from hpcq.quantize.recipes import Recipe, make_recipe

TOKENS_PER_BATCH = 2048
"""Calibration tokens per forward pass. On one CPU core batches of 512 to 4096 tokens took the same time, smaller
ones 20 % longer (SmolLM2-135M, float32)."""

MAX_WARNINGS = 50
EXPECTED_WARNING = "Calibration pipeline is set to"
"""llmcompressor logs this warning for every pipeline that is not its own."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
)


class LlmCompressorQuantizer:
    """Quantizes with llmcompressor's `oneshot`."""

    def quantize(self, job: QuantizeJob) -> dict[str, Any]:
        """Create the checkpoint in `job.output`; see `Quantizer`."""
        recipe = make_recipe(job.scheme)
        if job.device == "cpu":
            # llmcompressor 0.14 always uses the main accelerator if there is one. This is the only way to disable it,
            # and works only before torch queries devices.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        job.report("loading")
        device = _seed_and_select_device(job)
        model, tokenizer, saved_dtype = _load_model(job, device)
        batches = _calibration_batches(job.calibration, tokenizer) if job.calibration else None
        compute_dtype = _compute_dtype(device, saved_dtype)
        job.blocks.set_environment(device=device, compute_dtype=compute_dtype)
        job.report("calibrating" if job.calibration else "quantizing")
        with _without_pinning(), _collected_warnings() as warnings:
            _apply(_modifiers(recipe, saved_dtype), model, tokenizer, batches, job, warnings)
        job.report("saving")
        _save(model, job, saved_dtype)
        return {
            "warnings": warnings,
            "recipe": [[name, settings] for name, settings in recipe],
            "device": device,
            "compute_dtype": compute_dtype,
            "saved_dtype": saved_dtype,
        }


def _seed_and_select_device(job: QuantizeJob) -> str:
    import numpy as np
    import torch

    random.seed(job.seed)
    np.random.seed(job.seed)  # noqa: NPY002  llmcompressor and transformers use the global generator
    torch.manual_seed(job.seed)
    has_cuda = torch.cuda.is_available()
    if job.device == "cuda" and not has_cuda:
        raise SetupError("quantize.device is 'cuda', but torch detects no GPU: choose another GPU class or 'cpu'.")
    return "cuda" if has_cuda else "cpu"


def _compute_dtype(device: str, saved_dtype: str) -> str:
    """Return the dtype to compute in: float32 on CPUs, the checkpoint's own on GPUs."""
    # CPUs without AVX512-BF16 or AMX emulate bfloat16: measured 5x slower than float32 (torch 2.13, AVX2).
    return "float32" if device == "cpu" else saved_dtype


def _load_model(job: QuantizeJob, device: str) -> tuple[Any, Any, str]:
    """Return the base model in evaluation mode, its tokenizer, and the name of the dtype that it was saved in."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(job.base, trust_remote_code=job.trust_remote_code)
    saved_dtype = str(getattr(config, "dtype", None) or torch.float32).removeprefix("torch.")
    model = AutoModelForCausalLM.from_pretrained(
        job.base,
        dtype=getattr(torch, _compute_dtype(device, saved_dtype)),
        trust_remote_code=job.trust_remote_code,
    )
    tokenizer = AutoTokenizer.from_pretrained(job.base, trust_remote_code=job.trust_remote_code)
    return model.eval(), tokenizer, saved_dtype


def _calibration_batches(calibration: Calibration, tokenizer: Any) -> Any:
    """Return the calibration set as a DataLoader, which `oneshot` neither truncates nor shuffles."""
    import torch

    sequences = calibration_sequences(
        calibration,
        lambda text: tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"],
        separator=tokenizer.eos_token_id,
    )
    size = max(1, TOKENS_PER_BATCH // calibration.sequence_length)
    samples = [torch.tensor(sequences[start : start + size]) for start in range(0, len(sequences), size)]
    return torch.utils.data.DataLoader(
        [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in samples],
        batch_size=None,
        shuffle=False,
    )


def _apply(
    modifiers: list[Any], model: Any, tokenizer: Any, batches: Any, job: QuantizeJob, warnings: list[str]
) -> None:
    """Run the recipe on `model`, in place. Blocks that an earlier attempt committed are restored."""
    from llmcompressor import oneshot

    from hpcq.quantize.resumable_pipeline import PIPELINE, resumable

    with resumable(job.blocks, job.report, warnings):
        oneshot(model=model, recipe=modifiers, dataset=batches, processor=tokenizer, pipeline=PIPELINE)


def _modifiers(recipe: Recipe, saved_dtype: str) -> list[Any]:
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    kinds = (AWQModifier, GPTQModifier, QuantizationModifier, SmoothQuantModifier)
    classes: dict[str, Any] = {kind.__name__: kind for kind in kinds}
    return [classes[name](**_with_scale_dtype(settings, saved_dtype)) for name, settings in recipe]


def _with_scale_dtype(settings: dict[str, Any], saved_dtype: str) -> dict[str, Any]:
    """Return `settings` with scales in the saved dtype.

    On a CPU the computation is in float32, but the checkpoint is not. If the scales were rounded only on saving, the
    weights would have been quantized with other scales than they are dequantized with.
    """
    settings = copy.deepcopy(settings)
    for group in settings.get("config_groups", {}).values():
        for arguments in (group["weights"], group.get("input_activations", {"dynamic": True})):
            if not arguments["dynamic"]:
                arguments["scale_dtype"] = f"torch.{saved_dtype}"
    return settings


def _save(model: Any, job: QuantizeJob, saved_dtype: str) -> None:
    """Write weights as compressed tensors in `saved_dtype`, and copy the base's tokenizer."""
    import torch
    from compressed_tensors.compressors import ModelCompressor

    dtype = getattr(torch, saved_dtype)
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        for arguments in (scheme.weights, scheme.input_activations) if scheme else ():
            if arguments is not None:
                # No longer needed, and older readers of the saved configuration do not know this field.
                arguments.scale_dtype = None
    # Compress before casting: float8 and integer weights keep their dtype; all others were loaded from `saved_dtype`.
    ModelCompressor.from_pretrained_model(model).compress_model(model)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype == torch.float32:
            tensor.data = tensor.data.to(dtype)
    model.config.dtype = dtype
    model.save_pretrained(job.output)
    for name in TOKENIZER_FILES:
        # Copied, not saved with transformers: newer versions write class names that older ones do not know.
        if (job.base / name).is_file():
            shutil.copyfile(job.base / name, job.output / name)


@contextlib.contextmanager
def _without_pinning() -> Iterator[None]:
    """Disable pinned memory if there is no accelerator, so that AWQ runs on CPUs.

    AWQModifier of llmcompressor 0.14 pins its cached inputs before the grid search on every device. torch cannot pin
    memory without an accelerator ("Cannot access accelerator device when none is available"). No option disables it:
    `offload_device` only selects where inputs are stored. Pinning only speeds up copies to an accelerator.
    """
    import torch
    from compressed_tensors.utils import patch_attr
    from llmcompressor.pipelines.cache import IntermediatesCache

    if torch.accelerator.is_available():
        yield
    else:
        with patch_attr(IntermediatesCache, "pin_memory", lambda *_: None):
            yield


@contextlib.contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """Collect llmcompressor's warnings for the metadata.

    Some affect how far a score can be trusted. For example, layers whose Hessian could not be inverted are rounded to
    nearest instead of GPTQ, which llmcompressor reports only in a warning.
    """
    from loguru import logger

    warnings: list[str] = []

    def collect(message: Any) -> None:
        # llmcompressor's own level METRIC is above WARNING, so a filter by level alone would not exclude it.
        text = message.record["message"]
        if message.record["level"].name == "METRIC" or text.startswith(EXPECTED_WARNING):
            return
        if text not in warnings and len(warnings) < MAX_WARNINGS:
            warnings.append(text)

    sink = logger.add(collect, level="WARNING")
    try:
        yield warnings
    finally:
        logger.remove(sink)
