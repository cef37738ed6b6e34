"""Arrays of synthetic units for launch tests: without a model, with a chosen duration and a chosen failure."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcq.core.paths import RunLayout
from hpcq.core.work_records import EvaluateWork, Model, Scheme, Task, UnitKind, Variant
from hpcq.launch.array_spec import ArraySpec, Environment, UnitSpec

BASE = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
MORE_THAN_ANY_NODE_GIB = 1e9


def layout_at(folder: Path, name: str = "synthetic") -> RunLayout:
    """Return the layout of a run under `folder`."""
    return RunLayout(name=name, runs=folder / "runs", checkpoints=folder / "checkpoints", logs=folder / "logs")


def synthetic_unit(
    layout: RunLayout,
    name: str,
    *,
    seconds: float = 0.0,
    runs_out_of_memory: bool = False,
    rejects_input: bool = False,
    documents: int = 1,
    **changes: Any,
) -> UnitSpec:
    """Return an evaluation of four synthetic requests per document.

    Args:
        layout: The run.
        name: The unit's id.
        seconds: Duration of all requests.
        runs_out_of_memory: Fail with a MemoryError at once.
        rejects_input: Fail with an error for invalid input.
        documents: Number of documents.
        changes: Other fields of the work.
    """
    work = EvaluateWork(
        variant=Variant(model=Model(id=f"synthetic/{name}"), scheme=BASE),
        tasks=(Task(name="arc_challenge", limit=documents),),
        backend="synthetic",
        dtype="float32",
        checkpoint_path=str(layout.checkpoints / name),
        segments_path=str(layout.unit_segments(name)),
        flush_interval_s=1.0,
        synthetic_options=(
            ("request_seconds", seconds / 4 / documents),
            ("reject_input", rejects_input),
            ("memory_gib", MORE_THAN_ANY_NODE_GIB if runs_out_of_memory else 0.0),
        ),
    )
    work = replace(work, **changes)
    return UnitSpec(unit_id=name, work=work)


def synthetic_array(layout: RunLayout, name: str, units: Sequence[UnitSpec], **changes: Any) -> ArraySpec:
    """Return an array of `units` with small resources, run by this interpreter."""
    settings: dict[str, Any] = {
        "kind": UnitKind.EVALUATE,
        "environment": Environment(name="core", python=sys.executable),
        "memory_gib": 0.5,
        "time_limit_minutes": 30,
        "throttle": 4,
    }
    return ArraySpec(name=name, run=layout.name, units=tuple(units), **{**settings, **changes})
