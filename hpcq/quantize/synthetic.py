"""Synthetic quantizer for tests and rehearsals: a small, deterministic checkpoint after a delay.

Imports no model library, so that a test can run hundreds of its units. The delay is HPCQ_SYNTHETIC_QUANTIZE_SECONDS,
divided among HPCQ_SYNTHETIC_QUANTIZE_BLOCKS blocks, which are committed and restored like those of real models.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from typing import Any

from hpcq.core.addressing import address_of
from hpcq.quantize.block_store import Block
from hpcq.quantize.interface import QuantizeJob
from hpcq.quantize.safetensors_io import RawTensor, write_tensors

SECONDS_VARIABLE = "HPCQ_SYNTHETIC_QUANTIZE_SECONDS"
BLOCKS_VARIABLE = "HPCQ_SYNTHETIC_QUANTIZE_BLOCKS"
DEFAULT_BLOCKS = 4


class SyntheticQuantizer:
    """Writes a deterministic synthetic checkpoint."""

    def quantize(self, job: QuantizeJob) -> dict[str, Any]:
        """Compute or restore one block after the other, with a delay for each, and write the folder."""
        count = int(os.environ.get(BLOCKS_VARIABLE, DEFAULT_BLOCKS))
        pause_s = float(os.environ.get(SECONDS_VARIABLE, "0")) / count
        identity = address_of(job.scheme, job.calibration)
        tensors: dict[str, RawTensor] = {}
        for number in range(1, count + 1):
            tensors.update(_block(job, identity, f"layer {number} of {count}", pause_s))
        job.report("saving")
        config = {"model_type": "synthetic", "hpcq_rehearsal": True, "identity": identity}
        (job.output / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        write_tensors(job.output / "model.safetensors", tensors, {})
        return {"recipe": [["synthetic", {}]], "device": "none", "rehearsal": True}


def _block(job: QuantizeJob, identity: str, layer: str, pause_s: float) -> Mapping[str, RawTensor]:
    name = layer.replace(" ", "-")
    if found := job.blocks.restore(name):
        job.report(f"restoring {layer}")
        return found.tensors
    job.report(f"calibrating {layer}")
    time.sleep(pause_s)
    content = hashlib.sha256(f"{identity} {layer}".encode()).digest()
    tensors = {name: RawTensor(dtype="uint8", shape=(len(content),), data=memoryview(content))}
    job.blocks.commit(name, Block(tensors=tensors))
    return tensors
