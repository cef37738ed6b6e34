"""Variants whose responses come from several GPU classes: kernels and rounding differ between classes."""

from __future__ import annotations

from collections.abc import Iterator

from hpcq.core.work_records import UnitKind, UnitState
from hpcq.monitor.status import RunStatus
from hpcq.run.load import LoadedRun


def class_notes(loaded: LoadedRun, status: RunStatus) -> Iterator[str]:
    """Yield a sentence for each unfinished evaluation whose earlier attempts ran on another class than the next ones.

    Args:
        loaded: The run.
        status: State of its units.
    """
    unfinished = {unit.id for unit in status.units if unit.state is not UnitState.DONE}
    planned = {
        unit.variant_id: unit.shape.gpu_class
        for unit in loaded.plan.units
        if unit.kind is UnitKind.EVALUATE and unit.id in unfinished
    }
    for variant, gpu_class in planned.items():
        earlier = [name for name in loaded.history.evaluated_on.get(variant or "", ()) if name != gpu_class]
        if earlier:
            yield (
                f"{variant}: attempts ran on class {', '.join(earlier)}, the next ones run on class {gpu_class},"
                f" {_reason(loaded, earlier[-1])}. Kernels and rounding differ between classes."
            )


def _reason(loaded: LoadedRun, earlier: str) -> str:
    if not loaded.resolved.manifest.plan.keep_gpu_class:
        return "as plan.keep_gpu_class = false permits"
    if earlier not in loaded.profile.gpu_classes:
        return f"because profile '{loaded.profile.name}' has no class {earlier}"
    return f"because class {earlier} cannot run it with these settings, or it was moved before"
