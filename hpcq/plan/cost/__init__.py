"""Cost model: estimated tokens and seconds of a unit, calibrated by earlier attempts of the run."""
