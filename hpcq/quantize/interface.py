"""Interface of the quantizers: what a tool receives and must do, for built-in tools and plugins.

A third party registers one as an entry point in the group `hpcq.quantizers`: `my-tool = my_package.module:MyQuantizer`,
called without arguments. Its declaration is described in hpcq/catalog/plugins.py.

Imports no tool's library: a quantizer's module is imported only when the quantizer is requested.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from hpcq.catalog.plugins import Group
from hpcq.catalog.tools import load_tool, loadable_names
from hpcq.core.errors import UserInputError
from hpcq.core.frozen import dataclass
from hpcq.core.work_records import Calibration, Scheme
from hpcq.quantize.block_store import BlockStore


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
        max_fallback_share: Largest share of layers that may be quantized by a simpler method than the scheme's, such as
            rounded to nearest instead of GPTQ; above it the quantizer raises UserInputError.
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
    max_fallback_share: float
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
        SetupError: The plugin's module cannot be imported.
    """
    made = load_tool(Group.QUANTIZERS, tool)
    if made is None:
        known = ", ".join(loadable_names(Group.QUANTIZERS))
        raise UserInputError(f"'{tool}' is not an installed quantizer: choose {known}.")
    quantizer: Quantizer = made()
    return quantizer
