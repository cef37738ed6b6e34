"""What `hpcq stage` does: of everything that a manifest names, bring to the cache what a package ships."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hpcq.catalog.packages import staged_calibration, staged_items, staged_model
from hpcq.manifest import Resolved
from hpcq.stage import stage_calibration, stage_items, stage_model


def stage_manifest(resolved: Resolved, *, progress: Callable[[str], None]) -> list[Path]:
    """Stage the models, items and calibration text that lie, or will lie, in the cache; return where.

    Raises:
        SetupError: a package cannot be had.
    """
    models = dict.fromkeys(model for model, _ in resolved.pairs)
    staged = [stage_model(model.id, progress=progress) for model in models if _is(model.path, staged_model(model.id))]
    staged += [
        stage_items(task.name, progress=progress)
        for task in resolved.tasks
        if _is(task.data_path, staged_items(task.name))
    ]
    text = resolved.calibration
    if text and _is(text.path, staged_calibration(text.dataset)):
        staged.append(stage_calibration(text.dataset, progress=progress))
    return list(dict.fromkeys(staged))


def _is(named: str | None, staged: Path | None) -> bool:
    """Whether what the manifest names is, or will be, in the cache."""
    return named is not None and staged is not None and Path(named) == staged
