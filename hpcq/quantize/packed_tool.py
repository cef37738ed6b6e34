"""Common frame of the tools that write packed integers (GPTQ and AWQ formats): what happens before and after the tool.

A tool gets a checked model and the token sequences of the calibration set, and returns the files that it wrote. This
module writes them in one form, checks every layer, and compares the saved checkpoint with the tool's own model.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Protocol

from hpcq.catalog.safetensors_headers import read_headers
from hpcq.core.errors import UserInputError, WorkerError
from hpcq.core.frozen import dataclass
from hpcq.quantize.calibration import CalibrationSet
from hpcq.quantize.interface import QuantizeJob
from hpcq.quantize.linear_layers import LinearLayers, base_names, linear_layers
from hpcq.quantize.model_loading import LoadedModel, load_base
from hpcq.quantize.packed_check import GROUP_INDEX, PARTS, check_packed, read_packed_layers
from hpcq.quantize.plain_files import copy_other_files, write_config, write_weights
from hpcq.quantize.preparation import calibration_sequences, seed_and_select_device
from hpcq.quantize.probe import log_likelihoods, mean_difference, probe_tokens

SAVED_TOLERANCE = 0.1
"""Largest mean absolute difference, in nats, between the log-likelihoods of a text by the tool's model and by the saved
checkpoint. Tools compute in 16 bits; see SAVED_TOLERANCES in self_check.py."""

_PACKED_SUFFIXES = (*(f".{part}" for part in PARTS), f".{GROUP_INDEX}")
_UNSAVED = ("rotary_emb.inv_freq", ".masked_bias", ".attn.bias", ".attention.bias")
_TOOL_FOLDER = ".tool"


@dataclass(frozen=True, kw_only=True)
class ToolRun:
    """What a tool has done.

    Attributes:
        files: The safetensors files that it wrote.
        quantization: The `quantization_config` of the checkpoint.
        recipe: Its settings.
        values: Log-likelihoods of the probe by its quantized model; None: it has no model in memory that computes.
        adds_one_to_zeros: Its zero points are stored minus one, but are never above the range: they are converted to
            the format gptq_v2, which is unambiguous.
        fallbacks: Counts of layers that were quantized by a simpler method, as in `Fallbacks.facts`.
        warnings: Warnings for the metadata.
    """

    files: tuple[Path, ...]
    quantization: Mapping[str, Any]
    recipe: Mapping[str, Any]
    values: Any
    adds_one_to_zeros: bool = False
    fallbacks: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Inputs:
    """Input of a tool.

    Attributes:
        job: The job.
        device: "cuda" or "cpu".
        tokens: Tokens of the probe.
        calibration: The calibration set.
        layers: The linear layers.
        folder: Empty folder for the tool's files.
        tokenizer: Tokenizer of the model.
        saved_dtype: Name of the dtype of the base's weights.
    """

    def __init__(self, job: QuantizeJob, device: str, base: LoadedModel, layers: LinearLayers) -> None:
        if job.calibration is None:
            raise UserInputError(f"'{job.scheme.name}' needs a calibration set: add a [calibration] table.")
        self.job = job
        self.device = device
        self.tokens = probe_tokens(base.tokenizer)
        self.calibration: CalibrationSet = calibration_sequences(job.calibration, base)
        self.layers = layers
        self.folder = job.output / _TOOL_FOLDER
        self.tokenizer = base.tokenizer
        self.saved_dtype = base.saved_dtype
        self._model: Any = base.model

    def take_model(self) -> Any:
        """Return the model; it is not kept here, so that it can be released."""
        model, self._model = self._model, None
        return model


class PackedTool(Protocol):
    """A tool that writes packed integers."""

    def compute_dtype(self, device: str) -> str | None:
        """Return the name of the dtype to load the model in; None: that of its files."""

    def run(self, inputs: Inputs) -> ToolRun:
        """Quantize the model, and write its tensors to `inputs.folder`.

        Raises:
            UserInputError: The tool cannot quantize the model with this scheme or text.
        """


def quantize_packed(job: QuantizeJob, tool: PackedTool) -> dict[str, Any]:
    """Create the checkpoint of `job` with a tool that writes packed integers; return the facts for the metadata.

    Raises:
        UserInputError: The model, the scheme and the calibration set do not fit.
        WorkerError: The tool did not do what the scheme declares.
    """
    job.report("loading")
    device = seed_and_select_device(job)
    compute_dtype = tool.compute_dtype(device)
    base = load_base(job.base, compute_dtype=compute_dtype, trust_remote_code=job.trust_remote_code)
    layers = linear_layers(base.model, job.base, job.scheme)
    unquantized = log_likelihoods(base.model, probe_tokens(base.tokenizer))
    inputs = Inputs(job, device, base, layers)
    del base
    inputs.folder.mkdir()
    job.report("calibrating")
    run = tool.run(inputs)
    gc.collect()
    job.report("saving")
    _write(inputs, run)
    job.report("checking the saved checkpoint")
    weights = _BaseWeights(job.base, base_names(job.base, layers))
    coverage, errors = check_packed(job.output, job.scheme, layers, weights.read)
    saved = _saved_log_likelihoods(inputs)
    expected = run.values
    # The same in every environment: two versions of transformers must compute the same unquantized model.
    self_check: dict[str, Any] = {"weights": errors, "unquantized": round(float(unquantized.mean()), 6)}
    if expected is not None:
        self_check["quantization"] = round(mean_difference(expected, unquantized), 6)
    if saved is not None and expected is not None:
        self_check["reloaded"] = _checked_difference(saved, expected)
    return {
        "recipe": [[job.scheme.tool, dict(run.recipe)]],
        "device": device,
        "compute_dtype": compute_dtype or inputs.saved_dtype,
        "saved_dtype": inputs.saved_dtype,
        "coverage": coverage,
        "self_check": self_check,
        "calibration": inputs.calibration.facts,
        "warnings": list(run.warnings),
        **({"fallbacks": dict(run.fallbacks)} if run.fallbacks else {}),
    }


def _checked_difference(saved: Any, expected: Any) -> dict[str, float]:
    found = mean_difference(saved, expected)
    if not found <= SAVED_TOLERANCE:  # true for NaN, too
        raise WorkerError(
            f"The saved checkpoint is not the quantized model: the log-likelihoods of a text differ by {found:.3g} on "
            f"average, and rounding explains at most {SAVED_TOLERANCE}; nothing was committed."
        )
    return {"difference": round(found, 6), "tolerance": SAVED_TOLERANCE}


def _write(inputs: Inputs, run: ToolRun) -> None:
    """Write the checkpoint from the tool's files, and remove these."""
    job = inputs.job
    dtypes = {header.name: header.dtype for header in read_headers(job.base)}
    write_weights(run.files, job.output, _Converter(inputs, run, dtypes))
    shutil.rmtree(inputs.folder)
    copy_other_files(job.base, job.output)
    write_config(job.base, job.output, run.quantization)


class _Converter:
    """Returns each tensor of the tool as the checkpoint has it."""

    def __init__(self, inputs: Inputs, run: ToolRun, base_dtypes: Mapping[str, str]) -> None:
        import torch

        codes = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
        self._dtypes = {name: codes[code] for name, code in base_dtypes.items() if code in codes}
        self._float32 = torch.float32
        self._default = getattr(torch, inputs.saved_dtype)
        self._bits = int(inputs.job.scheme.weights.removeprefix("int"))
        self._adds_one = run.adds_one_to_zeros

    def __call__(self, name: str, tensor: Any) -> Any:
        from hpcq.quantize.packed_weights import pack, unpack

        if name.endswith(".qzeros") and self._adds_one:
            return pack((unpack(tensor, self._bits, 1) + 1) % 2**self._bits, self._bits, 1)
        if name.endswith(_PACKED_SUFFIXES):
            # On a CPU AutoGPTQ writes scales in float32; the format has 16 bits.
            return tensor.half() if tensor.dtype == self._float32 else tensor
        if name not in self._dtypes and (
            name.endswith((*_UNSAVED, "lm_head.weight")) or (name.endswith(".bias") and not tensor.count_nonzero())
        ):
            return None  # AutoGPTQ adds a bias of zeros to every layer; a tied head is not stored
        return tensor.to(self._dtypes.get(name, self._default)) if tensor.is_floating_point() else tensor


class _BaseWeights:
    """Weights of the base, read from its files one at a time."""

    def __init__(self, base: Path, names: Mapping[str, str]) -> None:
        from hpcq.catalog.safetensors_headers import files_of_tensors

        self._names = names
        self._files = files_of_tensors(base, set(names.values()))

    def read(self, layer: str) -> Any:
        """Return the weight of a layer."""
        from safetensors import safe_open

        name = self._names[layer]
        with safe_open(self._files[name], framework="pt") as file:
            return file.get_tensor(name)


def _saved_log_likelihoods(inputs: Inputs) -> Any:
    """Return the log-likelihoods of the probe by the saved checkpoint, dequantized; None: experts are in one tensor.

    The base is loaded once more, and every parameter of it is replaced by that of the checkpoint.
    """
    import torch
    from safetensors import safe_open

    from hpcq.catalog.weight_files import weight_files

    job = inputs.job
    dtype = "float32" if inputs.device == "cpu" else None
    model = load_base(job.base, compute_dtype=dtype, trust_remote_code=job.trust_remote_code).model
    parameters = dict(model.named_parameters())
    if not all(f"{name}.weight" in parameters for name in inputs.layers.quantized):
        return None
    missing = set(parameters)
    with torch.no_grad():
        for name, layer in read_packed_layers(job.output, job.scheme, inputs.layers.quantized):
            parameters[f"{name}.weight"].copy_(layer.weight)
            missing.discard(f"{name}.weight")
        for path in weight_files(job.output):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  not a mapping
                    if name in parameters:
                        parameters[name].copy_(file.get_tensor(name))
                        missing.discard(name)
    if missing:
        raise WorkerError(f"The saved checkpoint lacks {min(missing)}; nothing was committed.")
    return log_likelihoods(model, inputs.tokens)
