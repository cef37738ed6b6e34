"""How transformers (5.17) loads each format of a quantized checkpoint, and checks of what it has loaded."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from compressed_tensors.offload import disable_onloading

from hpcq.catalog.checkpoint_formats import CheckpointFormat, find_declaration
from hpcq.catalog.safetensors_headers import read_headers
from hpcq.core.checkpoint_files import METADATA_FILE
from hpcq.core.errors import UserInputError, WorkerError
from hpcq.core.work_records import EvaluateWork
from hpcq.evaluate.backends.transformers.decompression import decompression_config
from hpcq.evaluate.backends.transformers.dequantization import PARTS, DequantizationConfig, dequantization_config
from hpcq.evaluate.backends.transformers.disk_offload import offloaded_tensors
from hpcq.verify.loaded_model import loading_problem, stored_tensors, values_problem, zero_tensors

_FP8_CODE = "F8_E4M3"
"""The type in safetensors files."""


def take_quantization(config: Any, work: EvaluateWork) -> Any:
    """Return the argument `quantization_config` with which transformers loads the checkpoint; None: not quantized.

    If hpcq has its own quantizer for the format, the configuration's own `quantization_config` is removed.

    Args:
        config: The checkpoint's configuration.
        work: The evaluation.
    """
    settings = getattr(config, "quantization_config", None) or {}
    scheme = work.variant.scheme
    if scheme.checkpoint_format is not None:
        declaration = find_declaration(Path(work.checkpoint_path))
        declared = dict(declaration.settings) if declaration else {}
        if scheme.checkpoint_format in PARTS:
            if settings:
                del config.quantization_config
            return dequantization_config(scheme, declared)
        if scheme.checkpoint_format == CheckpointFormat.BITSANDBYTES and work.variant.is_quantized_here:
            return _bitsandbytes_config(config, work)
        if not settings:  # under a key that transformers does not read
            settings = config.quantization_config = declared
    method = str(settings.get("quant_method"))
    if method == CheckpointFormat.COMPRESSED_TENSORS:
        del config.quantization_config
        return decompression_config(settings)
    return transformers.Mxfp4Config(dequantize=True) if method == CheckpointFormat.MXFP4 else None


def _bitsandbytes_config(config: Any, work: EvaluateWork) -> Any:
    """Return the argument with which transformers quantizes the weights while it loads them.

    hpcq's checkpoint in this format has the weights of the base. With `quantization_config` in the configuration,
    transformers would expect quantized weights.
    """
    settings = dict(config.quantization_config)
    del config.quantization_config
    settings.pop("quant_method")
    return transformers.BitsAndBytesConfig(**settings, bnb_4bit_compute_dtype=getattr(torch, work.dtype))


def restore_dtypes(model: Any, sizes: Any, dtype: torch.dtype) -> None:
    """Convert parameters and buffers of a model to the types that they have when an unquantized model is loaded.

    If a checkpoint is quantized, transformers leaves tensors that it renames (the routers of Mixtral) or converts
    (experts in MXFP4) in the types of the file. Decompressed layers are left as they are: `check_loaded` refuses those
    that were rounded to another type.

    Args:
        model: The loaded model.
        sizes: The model without weights, in `dtype`.
        dtype: The type in which it was asked for.
    """
    kept = {pattern.replace("*", ".*"): one for pattern, one in sizes._get_dtype_plan(dtype).items()}  # noqa: SLF001
    wanted = {name: tensor.dtype for name, tensor in sizes.state_dict().items() if tensor.is_floating_point()}
    with disable_onloading():  # yields offloaded tensors themselves
        for prefix, module in model.named_modules():
            if getattr(module, "quantization_scheme", None) is not None:
                continue
            for name, tensor in (
                *module.named_parameters(prefix, recurse=False),
                *module.named_buffers(prefix, recurse=False),
            ):
                if name in wanted and tensor.is_floating_point() and tensor.element_size() > 1:
                    found = next((one for pattern, one in kept.items() if re.search(pattern, name)), wanted[name])
                    tensor.data = tensor.data.to(found)


@contextlib.contextmanager
def conversion_errors(quantization: Any, path: str) -> Iterator[None]:
    """Report why a layer could not be dequantized; transformers itself reports a traceback for each.

    Raises:
        WorkerError: A layer could not be dequantized.
    """
    try:
        yield
    except RuntimeError as error:
        problems = quantization.problems if isinstance(quantization, DequantizationConfig) else []
        if not problems:
            raise
        more = f" {len(problems) - 1} more layers have such a problem." if len(problems) > 1 else ""
        raise UserInputError(f"{path}: {problems[0]}{more}") from error


def check_loaded(
    work: EvaluateWork, model: Any, loading_info: Mapping[str, Any], quantization: Any, *, has_other_parts: bool
) -> None:
    """Check that the model has exactly the tensors of the checkpoint, and quantizes activations as declared.

    Args:
        work: The evaluation.
        model: The loaded model.
        loading_info: What transformers reports about the load.
        quantization: The argument `quantization_config` that it was loaded with.
        has_other_parts: Whether the checkpoint is multimodal.

    Raises:
        UserInputError: Tensors are missing, do not fit, were not used or are not finite.
        WorkerError: The model would be computed as another scheme.
    """
    problem = loading_problem(
        _without_zero_biases(work, loading_info),
        is_quantized=work.variant.scheme.is_quantized,
        has_other_parts=has_other_parts,
    )
    problem = problem or values_problem((*stored_tensors(model), *offloaded_tensors(model)))
    if problem:
        raise UserInputError(f"{work.checkpoint_path}: {problem}: {_fix(work)}.")
    if isinstance(quantization, DequantizationConfig):
        _check_weights(work, quantization)
    elif isinstance(quantization, transformers.BitsAndBytesConfig):
        _check_quantized_layers(work, model)
    elif isinstance(quantization, transformers.CompressedTensorsConfig):
        _check_dtypes(work, model)
        _check_activations(work, model)


def _fix(work: EvaluateWork) -> str:
    if work.variant.is_quantized_here:
        return "remove this folder and submit again, which quantizes the model again"
    return "copy or download the checkpoint again, or correct its config.json"


def _without_zero_biases(work: EvaluateWork, loading_info: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the report without unused biases of zeros. AutoGPTQ adds one to every layer."""
    unused = list(loading_info["unexpected_keys"])
    if not work.variant.scheme.is_quantized:
        return loading_info
    zero = zero_tensors(Path(work.checkpoint_path), [name for name in unused if name.endswith(".bias")])
    return {**loading_info, "unexpected_keys": [name for name in unused if name not in zero]}


def _check_weights(work: EvaluateWork, quantization: DequantizationConfig) -> None:
    """Check that every quantized weight in the files was dequantized; FP8 without its scale would look unquantized."""
    headers = read_headers(Path(work.checkpoint_path))
    stored = sum(header.name.endswith(".qweight") or header.dtype == _FP8_CODE for header in headers)
    if not quantization.weights or (headers and stored != quantization.weights):
        raise UserInputError(
            f"{work.checkpoint_path}: {quantization.weights} of its {stored} quantized weights have all their scales."
        )


def _check_quantized_layers(work: EvaluateWork, model: Any) -> None:
    """Check that bitsandbytes has quantized exactly the layers that hpcq.json counts, in the scheme's format."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    is_int8 = work.variant.scheme.weights == "int8"
    wanted = Linear8bitLt if is_int8 else Linear4bit
    found = [module for module in model.modules() if isinstance(module, wanted)]
    right = [one for one in found if is_int8 or one.weight.quant_type == work.variant.scheme.weights]
    metadata = json.loads((Path(work.checkpoint_path) / METADATA_FILE).read_text(encoding="utf-8"))
    declared = metadata["coverage"]["quantized_linears"]
    if len(right) != declared:
        raise WorkerError(
            f"{work.checkpoint_path}: bitsandbytes has quantized {len(right)} layers as {work.variant.scheme.weights}, "
            f"not {declared} as hpcq.json says: quantize the model again with the versions of the lock file."
        )


def _check_dtypes(work: EvaluateWork, model: Any) -> None:
    """Check the type of the decompressed weights: that of some formats (compressed-tensors 0.19) is always bfloat16."""
    wanted = getattr(torch, work.dtype)
    found = {module.weight.dtype for module in model.modules() if isinstance(module, torch.nn.Linear)}
    for dtype in found - {wanted}:
        raise WorkerError(
            f"{work.checkpoint_path}: its weights are decompressed to {str(dtype).removeprefix('torch.')}, not to"
            f" {work.dtype}: remove evaluate.dtype from the manifest."
        )


def _check_activations(work: EvaluateWork, model: Any) -> None:
    """Check that layers of the model quantize their activations if the checkpoint's configuration does."""
    if _declares_activations(work) and not _rounding_layers(model):
        raise WorkerError(
            f"{work.checkpoint_path}: transformers {transformers.__version__} loads it without quantizing activations,"
            f" which {work.variant.scheme.name} does, so its scores would be those of another scheme: set"
            " evaluate.backend = 'vllm', or use the versions of the lock file."
        )


def unrounded_activations(work: EvaluateWork, model: Any) -> str:
    """Return how many quantized layers do not round their activations as the checkpoint declares; '': all do.

    transformers 5.17 computes experts without rounding.
    """
    if not _declares_activations(work):
        return ""
    stored = sum(header.name.endswith(".weight_scale") for header in read_headers(Path(work.checkpoint_path)))
    unrounded = stored - _rounding_layers(model)
    return f"{unrounded} of {stored} quantized layers" if unrounded > 0 else ""


def _declares_activations(work: EvaluateWork) -> bool:
    declaration = find_declaration(Path(work.checkpoint_path)) if Path(work.checkpoint_path).is_dir() else None
    groups = ((declaration.settings.get("config_groups") if declaration else None) or {}).values()
    return any(group.get("input_activations") for group in groups)


def _rounding_layers(model: Any) -> int:
    schemes = (getattr(module, "quantization_scheme", None) for module in model.modules())
    return sum(scheme is not None and scheme.input_activations is not None for scheme in schemes)
