"""Interface of the quantizers, and their registry.

Imports no tool's library: a quantizer's module is imported only when the quantizer is requested.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hpcq.core.errors import UserInputError
from hpcq.core.work import Calibration, Scheme
from hpcq.quantize.block_store import BlockStore

ENTRY_POINT_GROUP = "hpcq.quantizers"
"""Third parties register quantizers here: `my-tool = my_package.module:MyQuantizer`, called without arguments."""

_BUILT_IN = {
    "llmcompressor": "hpcq.quantize.llmcompressor:LlmCompressorQuantizer",
    "synthetic": "hpcq.quantize.synthetic:SyntheticQuantizer",
}


@dataclass(frozen=True, kw_only=True)
class QuantizeJob:
    """Input of a quantizer.

    Attributes:
        base: Folder of the unquantized checkpoint.
        output: Empty folder to fill.
        scheme: How to quantize.
        calibration: The calibration set; None if the scheme needs none.
        device: "auto", "cpu" or "cuda".
        seed: Seed of all random number generators.
        trust_remote_code: Whether code in the checkpoint may run.
        report: Call it with the current step ("calibrating layer 7 of 30"), as often as convenient. The first word is
            the phase under which the time is recorded.
        blocks: Where a quantizer that runs for hours stores finished blocks, so that a kill costs at most one block.
            The checkpoint must be bit-identical to one made without the kill.
    """

    base: Path
    output: Path
    scheme: Scheme
    calibration: Calibration | None
    device: str
    seed: int
    trust_remote_code: bool
    report: Callable[[str], None]
    blocks: BlockStore


class Quantizer(Protocol):
    """A quantization tool."""

    def quantize(self, job: QuantizeJob) -> Mapping[str, Any]:
        """Fill `job.output` with a complete checkpoint: weights, configuration, tokenizer.

        Returns:
            Facts for the checkpoint's metadata, as plain JSON types: at least `recipe` and `device`.

        Raises:
            UserInputError: The tool does not support the scheme.
        """


def make_quantizer(tool: str) -> Quantizer:
    """Return the quantizer of the tool named `tool`. A third party cannot replace a built-in one.

    Raises:
        UserInputError: There is no quantizer of that name.
    """
    registry = dict(_BUILT_IN)
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        registry.setdefault(point.name, point.value)
    if tool not in registry:
        raise UserInputError(f"'{tool}' is not an installed quantizer: choose {', '.join(sorted(registry))}.")
    module, _, name = registry[tool].partition(":")
    quantizer: Quantizer = getattr(importlib.import_module(module), name)()
    return quantizer
