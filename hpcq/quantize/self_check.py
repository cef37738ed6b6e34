"""Self-check of a quantization: the log-likelihoods of one short text, compared at each step that must not change them.

Unpacking experts, smoothing and balancing must not change the function of the model, and saving and loading must not
change that of the quantized model. No tool reports errors there, such as a norm that is smoothed although it does not
feed the smoothed layers: they only lower the scores of the scheme.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from hpcq.catalog.safetensors_headers import files_of_tensors
from hpcq.core.errors import UserInputError, WorkerError
from hpcq.core.frozen import dataclass
from hpcq.core.sentences import first_line
from hpcq.core.work_records import Scheme
from hpcq.quantize.experts import unpack_experts
from hpcq.quantize.model_loading import PROBE, attention_settings
from hpcq.quantize.stored_layers import check_stored_layers
from hpcq.quantize.weight_check import SAVED_TOLERANCE, Projections, check_saved_weights
from hpcq.verify.loaded_model import loading_problem

MAX_TOKENS = 64
_STATIC_SCALES = ("input_scale", "input_global_scale", "k_scale", "v_scale")
"""Calibrated scales of the inputs of linear layers, and of the KV cache of attention layers."""
STEP_TOLERANCES = {"float32": 0.001, "bfloat16": 0.1, "float16": 0.1}
"""Largest mean absolute difference per token, in nats, after a step that must change nothing, by the dtype of the
computation. Measured on the tiny models of tests/families.py: at most 2e-6 in float32 and 0.021 in bfloat16 for the
right layers; 0.6 to 0.8 where llmcompressor scales a norm that does not feed the layers, and 0.05 to 0.16 where it
leaves out a router. In 16 bits, only a wrong norm is certain to be found."""

SAVED_TOLERANCES = {"float32": 0.05, "bfloat16": 0.1, "float16": 0.1}
"""The same for a saved and loaded model, with activations that are not rounded. Measured as above: at most 0.024 in
float32 (norms that were smoothed in float32 are saved in bfloat16; transformers rounds the weights of experts to
bfloat16) and 0.008 in bfloat16, and 0.7 to 1 where experts were initialized at random. Models that are quantized on a
GPU are compared on a CPU, with other rounding errors."""


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What a saved checkpoint must compute.

    Attributes:
        tokens: Tokens of the text.
        values: Log-likelihood of each token after the first, with activations that are not rounded (a tensor). Rounded
            activations would amplify the smallest differences.
        rounding: Number of linear layers that round their inputs.
        dtype: Name of the dtype of the computation.
        weights: Projections of its weights.
        static_scales: Static scales of the inputs of layers and of the KV cache, by the name of their tensor.
    """

    tokens: list[int]
    values: Any
    rounding: int
    dtype: str
    weights: Projections = field(default_factory=dict, repr=False)
    static_scales: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def difference(self, model: Any) -> float:
        """Return the mean absolute difference of a model's log-likelihoods."""
        return float((_log_likelihoods(model, self.tokens) - self.values).abs().mean())


class LogLikelihoods:
    """Log-likelihoods of the text by the unquantized model; the model after each further step is compared with them."""

    def __init__(self, model: Any, tokenizer: Any, *, dtype: str) -> None:
        tokens = _tokens(tokenizer)
        values = _log_likelihoods(model, tokens)
        if not bool(values.isfinite().all()):
            raise UserInputError(
                f"The log-likelihoods of a text are not finite (NaN or infinity) with the unquantized "
                f"'{model.config.model_type}' in {dtype}, because its weights are damaged or its numbers overflow: "
                "copy or download the checkpoint again, or choose another model."
            )
        self._base = Expectation(tokens=tokens, values=values, rounding=0, dtype=dtype)

    def expectation(self, model: Any, *, unrounded: Collection[Any], weights: Projections) -> Expectation:
        """Return what the checkpoint of a quantized model must compute.

        Args:
            model: The model.
            unrounded: Linear layers that transformers computes with inputs that are not rounded.
            weights: Projections of its weights.
        """
        with _unrounded(model):
            values = _log_likelihoods(model, self._base.tokens)
        rounding = sum(module not in unrounded for module in _rounding_linears(model))
        return replace(
            self._base,
            values=values,
            rounding=rounding,
            weights=weights,
            static_scales=_static_scales(model, unrounded),
        )

    def difference(self, model: Any) -> float:
        """Return the mean absolute difference between a model and the unquantized one."""
        return self._base.difference(model)

    def check_unchanged(self, model: Any, step: str, *, fix: str) -> float:
        """Check that a step has not changed the function of the model; return the difference.

        Args:
            model: The model after the step, with weights and activations that are not rounded.
            step: What was done, as the subject of a sentence.
            fix: What a user can do, as a clause.

        Raises:
            UserInputError: It has changed it.
        """
        found, tolerance = self.difference(model), _tolerance(STEP_TOLERANCES, self._base.dtype)
        if not found <= tolerance:  # also if it is not a number
            raise UserInputError(
                f"{step} changes what '{model.config.model_type}' computes: the log-likelihoods of a text differ by "
                f"{found:.3g} on average, and rounding explains at most {tolerance}: {fix}."
            )
        return found


def check_saved(folder: Path, expected: Expectation, scheme: Scheme, *, trust_remote_code: bool) -> dict[str, Any]:
    """Check that transformers loads the checkpoint in `folder` completely, and that it computes what it should.

    Its weights are compared one by one, and its log-likelihoods for the whole. At the end, each layer in its files is
    compared by the definition of its format.

    Returns:
        Facts for the checkpoint's metadata.

    Raises:
        WorkerError: It does not.
    """
    model, info = _load_saved(folder, expected.dtype, trust_remote_code=trust_remote_code)
    problem = loading_problem(info, is_quantized=True)
    if problem:
        raise WorkerError(f"transformers cannot load the saved checkpoint: {problem}; nothing was committed.")
    if expected.dtype == "float32":
        model.float()  # transformers loads unpacked experts in bfloat16
    rounding = len(_rounding_linears(model))
    if rounding != expected.rounding:
        raise WorkerError(
            f"transformers rounds the inputs of {rounding} layers of the saved checkpoint, not of {expected.rounding} "
            "as in the quantized model; nothing was committed."
        )
    if wrong := _other_static_scale(folder, expected.static_scales):
        raise WorkerError(
            f"{wrong} of the saved checkpoint is not that of the quantized model, or is missing; nothing was committed."
        )
    with _unrounded(model.eval()):
        found = expected.difference(model)
    tolerance = _tolerance(SAVED_TOLERANCES, expected.dtype)
    if not found <= tolerance:  # also if it is not a number
        raise WorkerError(
            f"The saved checkpoint is not the quantized model: the log-likelihoods of a text differ by {found:.3g} on "
            f"average, and rounding explains at most {tolerance}; nothing was committed."
        )
    unpack_experts(model, scheme)
    weights = check_saved_weights(expected.weights, model)
    stored = check_stored_layers(folder, scheme, expected.weights)
    facts = {"difference": round(found, 6), "tolerance": tolerance, "weight_difference": round(weights, 6)}
    return {**facts, "by_definition": stored}


def _load_saved(folder: Path, dtype: str, *, trust_remote_code: bool) -> tuple[Any, dict[str, Any]]:
    """Return the model with dequantized weights, and what transformers reports about its loading."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, CompressedTensorsConfig, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        return AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            generation_config=GenerationConfig(),  # not read: an invalid one would be an error
            quantization_config=CompressedTensorsConfig(dequantize=True),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **attention_settings(config),
        )
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise WorkerError(
            f"transformers cannot load the saved checkpoint ({type(error).__name__}: {first_line(error)}); nothing was "
            "committed."
        ) from error


def _rounding_modules(model: Any) -> list[Any]:
    """Return the linear layers that round their inputs, and the attention layers that round keys and values."""
    schemes = ((module, getattr(module, "quantization_scheme", None)) for module in model.modules())
    return [module for module, scheme in schemes if scheme is not None and scheme.input_activations is not None]


def _rounding_linears(model: Any) -> list[Any]:
    import torch

    return [module for module in _rounding_modules(model) if isinstance(module, torch.nn.Linear)]


def _static_scales(model: Any, unrounded: Collection[Any]) -> dict[str, Any]:
    """Return the static scales by tensor name, of the layers that are not in `unrounded`."""
    return {
        f"{name}.{attribute}": getattr(module, attribute).detach().float().cpu()
        for name, module in model.named_modules()
        for attribute in _STATIC_SCALES
        if getattr(module, attribute, None) is not None and module not in unrounded
    }


def _other_static_scale(folder: Path, expected: Mapping[str, Any]) -> str | None:
    """Return the name of the first of these tensors whose value in the checkpoint differs; None: all are equal.

    Log-likelihoods are compared with inputs that are not rounded, so they do not depend on these scales.
    """
    from safetensors import safe_open

    files = files_of_tensors(folder, expected.keys())
    for name, value in expected.items():
        if name not in files:
            return name
        with safe_open(files[name], framework="pt") as file:
            found = file.get_tensor(name).float()
        if not bool(((found - value).abs() <= SAVED_TOLERANCE * value.abs()).all()):
            return name
    return None


@contextlib.contextmanager
def _unrounded(model: Any) -> Iterator[None]:
    """Do not round the inputs of linear layers, and keys and values, in the block."""
    changed = [(module, module.quantization_scheme) for module in _rounding_modules(model)]
    for module, scheme in changed:
        module.quantization_scheme = scheme.model_copy(update={"input_activations": None})
    try:
        yield
    finally:
        for module, scheme in changed:
            module.quantization_scheme = scheme


def _tolerance(tolerances: Mapping[str, float], dtype: str) -> float:
    return tolerances.get(dtype, max(tolerances.values()))


def _tokens(tokenizer: Any) -> list[int]:
    tokens: list[int] = tokenizer(PROBE)["input_ids"][:MAX_TOKENS]
    return tokens


def _log_likelihoods(model: Any, tokens: list[int]) -> Any:
    """Return the log-likelihood of each token after the first."""
    import torch
    from compressed_tensors.offload import get_execution_device

    row = torch.tensor([tokens], device=get_execution_device(model.get_input_embeddings()))
    with torch.no_grad():
        logits = model(input_ids=row, use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(-1, row[0, 1:, None].to(logits.device))[:, 0].cpu()
