"""Cost model: tokens, seconds and GPU-hours of a unit, calibrated by the attempts of a run."""
