"""Read all datasets of a results file, to compare two files byte by byte."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np


def read_datasets(results: Path) -> dict[str, bytes]:
    """Return the bytes of every dataset of a results file, by name."""
    found: dict[str, bytes] = {}

    def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            values = np.asarray(item[...])
            # Strings are objects: their bytes would be pointers. repr() of a long numpy array would be abbreviated.
            found[name] = repr(values.tolist()).encode() if values.dtype.kind == "O" else values.tobytes()

    with h5py.File(results, "r") as file:
        file.visititems(add)
    return found
