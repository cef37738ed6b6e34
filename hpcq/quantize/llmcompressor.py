"""Quantizer with llmcompressor 0.14: loads the base checkpoint, applies a recipe, saves compressed tensors."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

from hpcq.quantize.coverage import check_coverage, declare, use_plain_linears
from hpcq.quantize.experts import RoutedTokens, expert_linears, unpack_experts
from hpcq.quantize.fallbacks import Fallbacks
from hpcq.quantize.interface import QuantizeJob
from hpcq.quantize.model_loading import LoadedModel, load_base, separator_token
from hpcq.quantize.preparation import calibration_sequences, seed_and_select_device
from hpcq.quantize.recipes import Recipe, make_recipe, rounds_activations
from hpcq.quantize.saving import save_checkpoint
from hpcq.quantize.self_check import Expectation, LogLikelihoods, check_saved
from hpcq.quantize.transform_check import TransformCheck
from hpcq.quantize.weight_check import WeightCheck

TOKENS_PER_BATCH = 2048
"""Calibration tokens per forward pass. On one CPU core batches of 512 to 4096 tokens took the same time, smaller
ones 20 % longer (SmolLM2-135M, float32)."""

MAX_WARNINGS = 50
EXPECTED_WARNINGS = ("Calibration pipeline is set to", "No accelerator available", "Disabling tokenizer parallelism")
"""Beginnings of llmcompressor's warnings about its pipeline, a CPU and tokenizers: no result depends on them."""

EXPERTS_UNROUNDED = (
    "transformers computes experts with unrounded activations: with the backend 'accelerate' the scores of this "
    "checkpoint are those of quantized weights, and of quantized activations only outside the experts."
)
NO_SEPARATOR = (
    "Neither tokenizer nor model has an end-of-text token: the passages of the calibration text follow each other "
    "without a separator."
)


class LlmCompressorQuantizer:
    """Quantizes with llmcompressor's `oneshot`."""

    def quantize(self, job: QuantizeJob) -> dict[str, Any]:
        """Create the checkpoint in `job.output`; see `Quantizer`."""
        make_recipe(job.scheme)  # refuses what llmcompressor does not support before anything is loaded
        if job.device == "cpu":
            # llmcompressor 0.14 always uses the main accelerator if there is one. This is the only way to disable it,
            # and works only before torch queries devices.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        job.report("loading")
        device = seed_and_select_device(job)
        # The model in memory is released before the saved one is loaded.
        try:
            facts, saved = _quantize_and_save(job, device)
        finally:
            _forget_session()
        job.report("checking the saved checkpoint")
        reloaded = check_saved(job.output, saved, job.scheme, trust_remote_code=job.trust_remote_code)
        return {**facts, "self_check": {**facts["self_check"], "reloaded": reloaded}}


def _quantize_and_save(job: QuantizeJob, device: str) -> tuple[dict[str, Any], Expectation]:
    """Quantize the base and write the checkpoint.

    Returns:
        Facts for the metadata, and the log-likelihoods that the saved checkpoint must have.
    """
    from hpcq.quantize.resumable_pipeline import resumable

    # CPUs without AVX512-BF16 or AMX emulate bfloat16: measured 5x slower than float32 (torch 2.13, AVX2).
    base = load_base(
        job.base, compute_dtype="float32" if device == "cpu" else None, trust_remote_code=job.trust_remote_code
    )
    compute_dtype = "float32" if device == "cpu" else base.saved_dtype
    calibration = calibration_sequences(job.calibration, base) if job.calibration else None
    batches = _batches(calibration.sequences) if calibration else None
    likelihoods = LogLikelihoods(base.model, base.tokenizer, dtype=compute_dtype)
    unpack_experts(base.model, job.scheme)
    declaration = declare(base.model, job.scheme)
    use_plain_linears(base.model, declaration)
    likelihoods.check_unchanged(base.model, "Replacing layers by plain linear layers", fix="choose another model")
    recipe = make_recipe(job.scheme, declaration.ignore)
    job.blocks.set_environment(device=device, compute_dtype=compute_dtype)
    job.report("calibrating" if job.calibration else "quantizing")
    transforms, routed = TransformCheck(likelihoods, base.model), RoutedTokens()
    modifiers = _modifiers(recipe, base.saved_dtype)
    transforms.check_layers(modifiers)
    weights = WeightCheck(base.model, job.scheme)
    fallbacks = Fallbacks(modifiers, layers=len(declaration.quantized), max_share=job.max_fallback_share)

    def check_pass(modifier: Any) -> None:
        fallbacks.check(modifier, is_complete=True)
        if transforms.check_pass(modifier):
            weights.take_base(base.model)

    with (
        _without_pinning(),
        _collected_warnings() as warnings,
        resumable(
            job.blocks,
            job.report,
            warnings,
            routed=routed,
            check_block=partial(fallbacks.check, is_complete=False),
            check_pass=check_pass,
        ),
    ):
        _apply(modifiers, base, batches, job)
    coverage = check_coverage(base.model, declaration, job.scheme)
    effect = likelihoods.difference(base.model)
    experts = expert_linears(base.model)
    rounding = weights.check_rounding(base.model)
    saved = likelihoods.expectation(base.model, unrounded=experts, weights=weights.rounded)
    job.report("saving")
    save_checkpoint(base.model, job.base, job.output, base.saved_dtype, unquantized=declaration.unquantized)
    own_warnings = {
        routed.warning(): True,
        EXPERTS_UNROUNDED: experts and rounds_activations(job.scheme),
        NO_SEPARATOR: job.calibration and separator_token(base) is None,
    }
    facts = {
        "warnings": [*warnings, *(text for text, applies in own_warnings.items() if text and applies)],
        "recipe": [[name, settings] for name, settings in recipe],
        "device": device,
        "compute_dtype": compute_dtype,
        "saved_dtype": base.saved_dtype,
        "coverage": coverage,
        "fallbacks": fallbacks.facts,
        "self_check": {"quantization": round(effect, 6), **transforms.facts, "weights": rounding},
        **({"calibration": calibration.facts} if calibration else {}),
        **({"experts": routed.summary()} if routed.counts else {}),
    }
    return facts, saved


def _apply(modifiers: list[Any], base: LoadedModel, batches: Any, job: QuantizeJob) -> None:
    """Run the recipe on the model, in place. Blocks that an earlier attempt committed are restored."""
    from llmcompressor import oneshot

    from hpcq.quantize.resumable_pipeline import PIPELINE

    oneshot(
        model=base.model,
        recipe=modifiers,
        dataset=batches,
        processor=base.tokenizer,
        pipeline=PIPELINE,
        trust_remote_code_model=job.trust_remote_code,
        moe_calibrate_all_experts=True,
    )


def _forget_session() -> None:
    """Release what llmcompressor's session refers to, such as the model."""
    from llmcompressor import active_session

    active_session().reset()
    gc.collect()


def _batches(sequences: list[list[int]]) -> Any:
    """Return calibration sequences as a DataLoader, which `oneshot` neither truncates nor shuffles."""
    import torch

    size = max(1, TOKENS_PER_BATCH // len(sequences[0]))
    samples = [torch.tensor(sequences[start : start + size]) for start in range(0, len(sequences), size)]
    return torch.utils.data.DataLoader(
        [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in samples],
        batch_size=None,
        shuffle=False,
    )


def _modifiers(recipe: Recipe, saved_dtype: str) -> list[Any]:
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    kinds = (AWQModifier, GPTQModifier, QuantizationModifier, SmoothQuantModifier)
    classes: dict[str, Any] = {kind.__name__: kind for kind in kinds}
    return [classes[name](**_with_scale_dtype(settings, saved_dtype)) for name, settings in recipe]


def _with_scale_dtype(settings: dict[str, Any], saved_dtype: str) -> dict[str, Any]:
    """Return `settings` with scales in the saved dtype, unless the number format fixes it.

    On a CPU the computation is in float32, but the checkpoint is not. If the scales were rounded only on saving, the
    weights would have been quantized with other scales than they are dequantized with.
    """
    settings = copy.deepcopy(settings)
    for group in settings.get("config_groups", {}).values():
        for arguments in (group["weights"], group.get("input_activations", {"dynamic": True})):
            if not arguments["dynamic"] and "scale_dtype" not in arguments:
                arguments["scale_dtype"] = f"torch.{saved_dtype}"
    return settings


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
        if message.record["level"].name == "METRIC" or text.startswith(EXPECTED_WARNINGS):
            return
        if text not in warnings and len(warnings) < MAX_WARNINGS:
            warnings.append(text)

    sink = logger.add(collect, level="WARNING")
    try:
        yield warnings
    finally:
        logger.remove(sink)
