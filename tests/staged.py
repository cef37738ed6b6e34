"""What `make test` has staged (tests/staged.toml). Tests read it and stage nothing: the cache is the user's."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq.catalog.packages import staged_calibration_path, staged_dataset_path, staged_model_path


def staged_model(model_id: str) -> Path:
    """Return the folder of a staged model; fail the test if it is missing."""
    return _existing(staged_model_path(model_id), model_id)


def staged_dataset(task: str) -> Path:
    """Return the folder with the staged data set of a task; fail the test if it is missing."""
    return _existing(staged_dataset_path(task), task)


def staged_calibration(name: str) -> Path:
    """Return the file of a staged calibration text; fail the test if it is missing."""
    return _existing(staged_calibration_path(name), name)


def _existing(path: Path | None, name: str) -> Path:
    if path is None or not path.exists():
        pytest.fail(f"{name} is not staged: run 'python -m hpcq stage tests/staged.toml'.", pytrace=False)
    return path
