"""Staging of everything that a manifest names and a package ships."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hpcq.catalog.packages import staged_calibration_path, staged_dataset_path, staged_model_path
from hpcq.manifest import ResolvedManifest
from hpcq.stage import stage_calibration, stage_dataset, stage_model


def stage_manifest(resolved: ResolvedManifest, *, progress: Callable[[str], None]) -> list[Path]:
    """Stage the models, data sets and calibration text whose path in the manifest is in the cache.

    Args:
        resolved: The manifest.
        progress: Called with one line before each slow step.

    Returns:
        Paths of the staged files and folders, each once.

    Raises:
        SetupError: A package cannot be downloaded or converted.
        StorageError: The cache cannot be written.
    """
    models = dict.fromkeys(model for model, _ in resolved.pairs)
    staged = [
        stage_model(model.id, progress=progress)
        for model in models
        if _is_staged_path(model.path, staged_model_path(model.id))
    ]
    staged += [
        stage_dataset(task.name, progress=progress)
        for task in resolved.tasks
        if _is_staged_path(task.data_path, staged_dataset_path(task.name))
    ]
    text = resolved.calibration
    if text and _is_staged_path(text.path, staged_calibration_path(text.dataset)):
        staged.append(stage_calibration(text.dataset, progress=progress))
    return list(dict.fromkeys(staged))


def _is_staged_path(path: str | None, staged_path: Path | None) -> bool:
    """Whether a path of the manifest is the one in the cache."""
    return path is not None and staged_path is not None and Path(path) == staged_path
