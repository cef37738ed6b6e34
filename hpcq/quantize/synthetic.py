"""A quantizer for rehearsals: a small folder that looks like a checkpoint, the same for the same scheme, after a pause.

Imports no model library, so that hundreds of its units run in a test. Its pause is HPCQ_SYNTHETIC_QUANTIZE_SECONDS.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from hpcq.quantize.door import QuantizeJob
from hpcq.units import address_of

PAUSE_VARIABLE = "HPCQ_SYNTHETIC_QUANTIZE_SECONDS"
STEPS = 10


class Synthetic:
    """Writes a deterministic stand-in for a checkpoint."""

    def quantize(self, job: QuantizeJob) -> dict[str, Any]:
        """Pause, in steps that are reported, and write the folder."""
        pause_s = float(os.environ.get(PAUSE_VARIABLE, "0"))
        for step in range(1, STEPS + 1):
            job.report(f"calibrating layer {step} of {STEPS}")
            time.sleep(pause_s / STEPS)
        job.report("saving")
        identity = address_of(job.scheme, job.calibration)
        config = {"model_type": "synthetic", "hpcq_rehearsal": True, "identity": identity}
        (job.output / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        (job.output / "model.safetensors").write_bytes(_safetensors(bytes.fromhex(identity)))
        return {"recipe": [["synthetic", {}]], "device": "none", "rehearsal": True}


def _safetensors(content: bytes) -> bytes:
    """A valid safetensors file with one tensor of bytes: an 8-byte header length, a JSON header, the data."""
    header = {"rehearsal": {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}}
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + content
