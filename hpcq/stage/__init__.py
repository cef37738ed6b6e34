"""Staging of models, benchmark data and calibration texts on the shared file system.

They come from the hub or a mirror (`inputs.py`), or from public packages (`stage_item.py`).
"""

from hpcq.stage.stage_item import stage_calibration, stage_dataset, stage_model

__all__ = ["stage_calibration", "stage_dataset", "stage_model"]
