"""Files of a run that the page of a report reads in addition to the scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcq.core.frozen import dataclass


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """Where the evidence of a run is.

    Attributes:
        name: Name of the run, as in the rows.
        results: Path of `results.h5`.
        plan_document: Content of `plan.json`.
        attempts: Folder of the attempts; None: not shown.
    """

    name: str
    results: Path
    plan_document: Mapping[str, Any]
    attempts: Path | None
