"""What two results files must share to be called equal: every dataset, byte for byte."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np


def data_of(results: Path) -> dict[str, bytes]:
    """Every dataset of a results file, as bytes."""
    found: dict[str, bytes] = {}

    def take(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            values = np.asarray(item[...])
            # Texts are objects, whose bytes would be addresses; and numpy shortens what it prints of a long array.
            found[name] = repr(values.tolist()).encode() if values.dtype.kind == "O" else values.tobytes()

    with h5py.File(results, "r") as file:
        file.visititems(take)
    return found
