"""The door to every quantizing tool: what one is given, what it must do, and how it is found by name.

Knows no tool's library: a tool's module is imported only when the tool is asked for.
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
from hpcq.quantize.block_store import Blocks

ENTRY_POINTS = "hpcq.quantizers"
"""Third parties name their quantizers here: `my-tool = my_package.module:MyQuantizer`, a class without arguments."""

_BUILT_IN = {
    "llmcompressor": "hpcq.quantize.llmcompressor:LlmCompressor",
    "synthetic": "hpcq.quantize.synthetic:Synthetic",
}


@dataclass(frozen=True, kw_only=True)
class QuantizeJob:
    """What a tool is given.

    base: the unquantized checkpoint's folder. output: an empty folder to fill. device: auto, cpu or cuda.
    report: to be called with what the tool does now ('calibrating layer 7 of 30'), as often as it likes; its first word
    names the phase that the time is booked on. blocks: where a tool that works for hours keeps what it has finished, so
    that a kill costs it no more than a block; the checkpoint must come out the same, bit by bit, as without the kill.
    """

    base: Path
    output: Path
    scheme: Scheme
    calibration: Calibration | None
    device: str
    seed: int
    trust_remote_code: bool
    report: Callable[[str], None]
    blocks: Blocks


class Quantizer(Protocol):
    """A quantizing tool."""

    def quantize(self, job: QuantizeJob) -> Mapping[str, Any]:
        """Fill `job.output` with a complete checkpoint: weights, configuration, tokenizer.

        Returns facts for the checkpoint's metadata, as plain JSON types: at least `recipe` and `device`.

        Raises:
            UserInputError: the scheme is not one that the tool can make.
        """


def quantizer(tool: str) -> Quantizer:
    """The tool named `tool`.

    Raises:
        UserInputError: no such tool.
    """
    places = dict(_BUILT_IN)
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        places.setdefault(point.name, point.value)
    if tool not in places:
        raise UserInputError(f"'{tool}' is not a quantizing tool: choose {', '.join(sorted(places))}.")
    module, _, name = places[tool].partition(":")
    made: Quantizer = getattr(importlib.import_module(module), name)()
    return made
