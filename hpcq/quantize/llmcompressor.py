"""The quantizer that runs llmcompressor 0.14: loads the base checkpoint, applies a recipe, saves compressed tensors.

Knows torch, transformers and llmcompressor; must not know where checkpoints live, or what a run is.
"""

from __future__ import annotations

import contextlib
import copy
import os
import random
import shutil
from collections.abc import Iterator
from typing import Any

from hpcq.core.errors import SetupError
from hpcq.core.work import Calibration
from hpcq.quantize.calibration import calibration_sequences
from hpcq.quantize.interface import QuantizeJob
from hpcq.quantize.recipes import Recipe, recipe_of

TOKENS_PER_BATCH = 2048
"""Calibration tokens in one forward pass. On a CPU core batches of 512 to 4096 tokens took the same time, and smaller
ones a fifth more (SmolLM2-135M, float32)."""

WARNINGS_KEPT = 50
EXPECTED_WARNING = "Calibration pipeline is set to"
"""llmcompressor says so of every pipeline that is not its own."""

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


class LlmCompressor:
    """Quantizes with llmcompressor's `oneshot`."""

    def quantize(self, job: QuantizeJob) -> dict[str, Any]:
        """Make the checkpoint in `job.output`; see `Quantizer`."""
        recipe = recipe_of(job.scheme)
        if job.device == "cpu":
            # llmcompressor 0.14 takes the main accelerator wherever there is one; this is its only off switch, and
            # works only before torch looks for devices.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        job.report("loading")
        device = _seeded_device(job)
        model, tokenizer, saved_dtype = _load(job, device)
        batches = _batches(job.calibration, tokenizer) if job.calibration else None
        compute_dtype = _compute_dtype(device, saved_dtype)
        job.blocks.begin(device=device, compute_dtype=compute_dtype)
        job.report("calibrating" if job.calibration else "quantizing")
        with _without_pinning(), _warnings() as warnings:
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


def _seeded_device(job: QuantizeJob) -> str:
    import numpy as np
    import torch

    random.seed(job.seed)
    np.random.seed(job.seed)  # noqa: NPY002  the libraries below use the global generator
    torch.manual_seed(job.seed)
    has_cuda = torch.cuda.is_available()
    if job.device == "cuda" and not has_cuda:
        raise SetupError("quantize.device is 'cuda', but torch sees no GPU here: choose another GPU class or 'cpu'.")
    return "cuda" if has_cuda else "cpu"


def _compute_dtype(device: str, saved_dtype: str) -> str:
    """float32 on CPUs, the checkpoint's own on GPUs."""
    # CPUs without AVX512-BF16 or AMX emulate bfloat16: measured five times slower than float32 (torch 2.13, AVX2).
    return "float32" if device == "cpu" else saved_dtype


def _load(job: QuantizeJob, device: str) -> tuple[Any, Any, str]:
    """The base model in evaluation mode, its tokenizer, and the name of the dtype that it was saved in."""
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


def _batches(calibration: Calibration, tokenizer: Any) -> Any:
    """The calibration set as a DataLoader, which `oneshot` takes as it is and neither cuts nor shuffles again."""
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


def _apply(modifiers: list[Any], model: Any, tokenizer: Any, batches: Any, job: QuantizeJob, told: list[str]) -> None:
    """Run the recipe on `model`, in place; blocks that `job` has kept from an earlier attempt are put back."""
    from llmcompressor import oneshot

    from hpcq.quantize.resumable_pipeline import PIPELINE, progress_kept

    with progress_kept(job.blocks, job.report, told):
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
    """`settings` with scales that the saved dtype can hold.

    The arithmetic is float32 on a CPU, the checkpoint is not: were the scales rounded only when they are saved, the
    weights would have been rounded by other scales than those that they are read with.
    """
    settings = copy.deepcopy(settings)
    for group in settings.get("config_groups", {}).values():
        for arguments in (group["weights"], group.get("input_activations", {"dynamic": True})):
            if not arguments["dynamic"]:
                arguments["scale_dtype"] = f"torch.{saved_dtype}"
    return settings


def _save(model: Any, job: QuantizeJob, saved_dtype: str) -> None:
    """Write weights as compressed tensors in `saved_dtype`, and the base's tokenizer as it is."""
    import torch
    from compressed_tensors.compressors import ModelCompressor

    dtype = getattr(torch, saved_dtype)
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        for arguments in (scheme.weights, scheme.input_activations) if scheme else ():
            if arguments is not None:
                # It has done its work; in the saved configuration it would be a word that other readers need not know.
                arguments.scale_dtype = None
    # Compressed first, cast second: a float8 or integer weight is what it is, the rest came from `saved_dtype`.
    ModelCompressor.from_pretrained_model(model).compress_model(model)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype == torch.float32:
            tensor.data = tensor.data.to(dtype)
    model.config.dtype = dtype
    model.save_pretrained(job.output)
    for name in TOKENIZER_FILES:
        # Copied, not saved anew: a newer transformers writes class names that older readers do not know.
        if (job.base / name).is_file():
            shutil.copyfile(job.base / name, job.output / name)


@contextlib.contextmanager
def _without_pinning() -> Iterator[None]:
    """Let AWQ run where there is no accelerator.

    AWQModifier of llmcompressor 0.14 pins its cached inputs before the grid search, whatever the device, and torch
    refuses to pin without an accelerator ("Cannot access accelerator device when none is available"). No option turns
    it off: `offload_device` only chooses where inputs wait. Pinning speeds copies to an accelerator, and does no more.
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
def _warnings() -> Iterator[list[str]]:
    """Gather what llmcompressor warns of, for the metadata.

    Some of it decides how far a score can be trusted: layers whose Hessian could not be inverted, and that were
    therefore rounded to nearest under GPTQ's name, are told of in a warning and nowhere else.
    """
    from loguru import logger

    gathered: list[str] = []

    def gather(message: Any) -> None:
        # llmcompressor's own level METRIC stands above WARNING, so the level's number alone would let it pass.
        text = message.record["message"]
        if message.record["level"].name == "METRIC" or text.startswith(EXPECTED_WARNING):
            return
        if text not in gathered and len(gathered) < WARNINGS_KEPT:
            gathered.append(text)

    sink = logger.add(gather, level="WARNING")
    try:
        yield gathered
    finally:
        logger.remove(sink)
