"""Quantizer with bitsandbytes (0.50): LLM.int8(), NF4 with double quantization, FP4.

bitsandbytes quantizes a model while it is loaded. So the checkpoint is a small folder: a configuration that says how to
quantize, the base's other files, and links to the base's weights, which are not copied. The digest of the checkpoint
covers the contents of the linked files.
"""

from __future__ import annotations

from typing import Any

from hpcq.catalog.safetensors_headers import INDEX_FILE
from hpcq.catalog.weight_files import weight_files
from hpcq.core.errors import UserInputError
from hpcq.core.work_records import Scheme
from hpcq.quantize.coverage import module_counts
from hpcq.quantize.interface import QuantizeJob
from hpcq.quantize.linear_layers import linear_layers
from hpcq.quantize.plain_files import copy_other_files, write_config
from hpcq.quantize.transformers_4 import load_config

OUTLIER_THRESHOLD = 6.0
"""LLM.int8(): columns of the inputs with a larger absolute value are computed in 16 bits (arXiv 2208.07339, section
3.2, and the default of transformers)."""


class BitsAndBytesQuantizer:
    """Writes a configuration with which transformers quantizes the base while it loads it."""

    def quantize(self, job: QuantizeJob) -> dict[str, Any]:
        """Create the checkpoint in `job.output`; see `Quantizer`."""
        job.report("loading the configuration")
        layers = linear_layers(_empty_model(job), job.base, job.scheme)
        if any(".experts." in name for name in layers.quantized):
            raise UserInputError(
                f"'{job.scheme.name}': transformers has all experts of a layer in one tensor, which bitsandbytes "
                "leaves unquantized: choose gptq-w4a16 or fp8-dynamic."
            )
        job.report("saving")
        settings = declaration(job.scheme)
        copy_other_files(job.base, job.output)
        write_config(job.base, job.output, settings)
        _link_weights(job)
        return {
            "recipe": [["bitsandbytes", settings]],
            "device": "none",
            "coverage": {
                "quantized_linears": len(layers.quantized),
                "unquantized_linears": len(layers.unquantized),
                "quantized_modules": module_counts(layers.quantized),
                "unquantized_modules": module_counts(layers.unquantized),
            },
            "quantized_when_loaded": True,
            "warnings": [],
        }


def declaration(scheme: Scheme) -> dict[str, Any]:
    """Return the `quantization_config` of a scheme, in the form of transformers (5.17)."""
    shared: dict[str, Any] = {"quant_method": "bitsandbytes", "llm_int8_skip_modules": list(scheme.ignore)}
    if scheme.weights == "int8":
        return {**shared, "load_in_8bit": True, "load_in_4bit": False, "llm_int8_threshold": OUTLIER_THRESHOLD}
    return {
        **shared,
        "load_in_8bit": False,
        "load_in_4bit": True,
        "bnb_4bit_quant_type": scheme.weights,
        "bnb_4bit_use_double_quant": scheme.weights == "nf4",
    }


def _empty_model(job: QuantizeJob) -> Any:
    """Return the model without weights."""
    import torch
    from transformers import AutoModelForCausalLM

    from hpcq.verify.config_errors import config_errors

    with config_errors(job.base), torch.device("meta"):
        config = load_config(job.base, trust_remote_code=job.trust_remote_code)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=job.trust_remote_code)


def _link_weights(job: QuantizeJob) -> None:
    """Link the weights of the base. An index is copied, because it has the names of the files."""
    base = job.base.absolute()
    for path in weight_files(base):
        (job.output / path.relative_to(base)).symlink_to(path)
    index = base / INDEX_FILE
    if index.is_file():
        (job.output / INDEX_FILE).write_bytes(index.read_bytes())
