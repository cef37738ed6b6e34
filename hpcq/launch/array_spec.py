"""What the planner orders and what a launcher did about it: frozen records, nothing else.

Knows the vocabulary of units. Knows no scheduler, no submitit, no manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from hpcq.core.work import Kind, State, Work
from hpcq.launch.recovery.retry_policy import Policy


class Dependency(StrEnum):
    """How an array waits for the arrays that it names in `depends_on`.

    aftercorr: element i waits for the success of element i of each of them (same length, same order); the element is
    cancelled if that one fails. afterok: everything waits for the success of every element. afterany: everything waits
    for the end of every element, whatever it is.
    """

    NONE = "none"
    AFTERCORR = "aftercorr"
    AFTEROK = "afterok"
    AFTERANY = "afterany"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where a unit's worker finds its tools.

    python: the interpreter's path. modules: environment modules to load. setup: shell lines of the cluster's
    administrator, run as they stand. variables: exported, quoted.
    """

    name: str
    python: str
    modules: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class UnitOrder:
    """One unit, and the record that its worker receives. planned: what its attempts record of the plan (plain JSON)."""

    unit_id: str
    work: Work
    planned: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ArrayOrder:
    """Units of one kind that share a GPU class, a shape and an environment.

    memory_gib: host memory of one unit on one node (None: the scheduler's default). throttle: units at once (None: as
    many as fit). extra: further options of sbatch, by their long names without dashes; True is an option without a
    value. depends_on: names of arrays. element: where given, the dependency is on that element of them alone; they are
    then orders of the same submission. retries: what becomes of a unit whose attempt fails.
    """

    name: str
    run: str
    kind: Kind
    units: tuple[UnitOrder, ...]
    environment: Environment
    partition: str | None = None
    nodes: int = 1
    gpus_per_node: int = 0
    gres_type: str | None = None
    features: str | None = None
    cpus_per_unit: int = 1
    memory_gib: float | None = None
    time_limit_minutes: int = 60
    throttle: int | None = None
    account: str | None = None
    qos: str | None = None
    exclude: str | None = None
    extra: Mapping[str, str | int | bool] = field(default_factory=dict)
    depends_on: tuple[str, ...] = ()
    dependency: Dependency = Dependency.NONE
    element: int | None = None
    retries: Policy = field(default_factory=Policy)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One array that the scheduler accepted: `units[i]` is element i of `job_id`.

    An order longer than the scheduler's largest array becomes several submissions, told apart by `part`. folder:
    submitit's folder of this submission (batch script, pickles, what was printed before a unit began).
    """

    array: str
    part: int
    job_id: str
    units: tuple[str, ...]
    folder: str
    time: str
    schema: int = 1

    def launcher_log(self, index: int) -> Path:
        """What element `index` printed before its unit began: where to look when no attempt was recorded."""
        element = f"{self.job_id}_{index}" if len(self.units) > 1 else self.job_id
        return Path(self.folder) / f"{element}_0_log.err"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a unit ended that a launcher saw to its end (the local one): done, failed or cancelled, with the reason."""

    unit_id: str
    state: State
    reason: str | None = None
