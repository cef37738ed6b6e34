"""Orders of synthetic units for tests of launching: they need no model, last as long as told, and fail if told to."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcq.core.paths import RunLayout
from hpcq.core.work import EvaluateWork, Kind, Model, Scheme, Task, Variant
from hpcq.launch.array_spec import ArrayOrder, Environment, UnitOrder

BASE = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
MORE_THAN_ANY_MACHINE_GIB = 1e9


def layout_at(folder: Path, name: str = "rehearsal") -> RunLayout:
    """A run under `folder`."""
    return RunLayout(name=name, runs=folder / "runs", checkpoints=folder / "checkpoints", logs=folder / "logs")


def unit(
    layout: RunLayout,
    name: str,
    *,
    seconds: float = 0.0,
    fails: bool = False,
    refused: bool = False,
    documents: int = 1,
    **changes: Any,
) -> UnitOrder:
    """An evaluation of four synthetic requests a document within `seconds`, or one that runs out of memory at once.

    refused: it says that its input is bad.
    """
    work = EvaluateWork(
        variant=Variant(model=Model(id=f"rehearsal/{name}"), scheme=BASE),
        tasks=(Task(name="arc_challenge", limit=documents),),
        backend="synthetic",
        dtype="float32",
        checkpoint_path=str(layout.checkpoints / name),
        segments_path=str(layout.unit_segments(name)),
        flush_interval_s=1.0,
        pace=(
            ("request_seconds", seconds / 4 / documents),
            ("refused", refused),
            ("memory_gib", MORE_THAN_ANY_MACHINE_GIB if fails else 0.0),
        ),
    )
    work = replace(work, **changes)
    return UnitOrder(unit_id=name, work=work)


def array(layout: RunLayout, name: str, units: Sequence[UnitOrder], **changes: Any) -> ArrayOrder:
    """An order of `units` for this very interpreter, with small demands."""
    settings: dict[str, Any] = {
        "environment": Environment(name="core", python=sys.executable),
        "memory_gib": 0.5,
        "time_limit_minutes": 30,
        "throttle": 4,
    }
    return ArrayOrder(name=name, run=layout.name, kind=Kind.EVALUATE, units=tuple(units), **{**settings, **changes})
