"""Array specifications: what a launcher submits, and the records of what it submitted or ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from pathlib import Path
from typing import Any

from hpcq.catalog.plugins import Plugin
from hpcq.core.frozen import dataclass
from hpcq.core.work_records import UnitKind, UnitState, Work
from hpcq.launch.recovery.retry_policy import RetryPolicy


class Dependency(StrEnum):
    """How an array waits for the arrays in its `depends_on`: the dependency types of sbatch.

    Attributes:
        AFTERCORR: Element i waits for the success of element i of each array (same length, same order). It is cancelled
            if that element fails.
        AFTEROK: The array waits for the success of all elements.
        AFTERANY: The array waits for the termination of all elements, in any state.
    """

    NONE = "none"
    AFTERCORR = "aftercorr"
    AFTEROK = "afterok"
    AFTERANY = "afterany"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Environment of a unit's worker.

    Attributes:
        python: Path of the interpreter.
        modules: Environment modules to load.
        module_path: Folder with hpcq's own modulefiles, if `modules` has one; '' otherwise.
        setup: Shell lines from the cluster profile, run unchanged.
        variables: Environment variables to export. Their values are quoted.
    """

    name: str
    python: str
    modules: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    module_path: str = ""


@dataclass(frozen=True, kw_only=True)
class UnitSpec:
    """One unit of an array.

    Attributes:
        work: Record that the unit's worker receives.
        planned: Estimates of the plan that each attempt records (plain JSON).
    """

    unit_id: str
    work: Work
    planned: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """Units of one kind that share a GPU class, a shape and an environment.

    Attributes:
        memory_gib: Host memory per unit and node. None: the scheduler's default.
        throttle: Maximum number of units that run at the same time. None: no limit.
        memory_option: Option that requests `memory_gib`: mem, mem-per-cpu, mem-per-gpu. none: it is not requested.
        gpu_option: Option that requests the GPUs: gres, gpus, gpus-per-node. none: they are not requested.
        comment: Text that the site requires in the job's comment.
        max_array_size: Maximum number of elements, if it is less than Slurm's.
        extra: Further sbatch options by their long names without dashes. True: an option without a value.
        depends_on: Names of arrays.
        element: Index of the only element of these arrays to depend on. They must be submitted in the same call. None:
            depend on all elements.
        retries: Policy for units whose attempt fails.
        plugins: Plugins that the units use and that their environment does not contain.
    """

    name: str
    run: str
    kind: UnitKind
    units: tuple[UnitSpec, ...]
    environment: Environment
    partition: str | None = None
    nodes: int = 1
    gpus_per_node: int = 0
    gres_type: str | None = None
    features: str | None = None
    cpus_per_unit: int = 1
    memory_gib: float | None = None
    memory_option: str = "mem"
    gpu_option: str = "gres"
    time_limit_minutes: int = 60
    throttle: int | None = None
    account: str | None = None
    qos: str | None = None
    exclude: str | None = None
    comment: str | None = None
    max_array_size: int | None = None
    extra: Mapping[str, str | int | bool] = field(default_factory=dict)
    depends_on: tuple[str, ...] = ()
    dependency: Dependency = Dependency.NONE
    element: int | None = None
    retries: RetryPolicy = field(default_factory=RetryPolicy)
    plugins: tuple[Plugin, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One array that the scheduler accepted: `units[i]` is element i of `job_id`.

    Attributes:
        part: Number of this submission among those of its array. An array longer than the scheduler's maximum is
            split into several submissions.
        folder: Folder of this submission: batch script, records of the units, output before a unit started.
        time: Time of submission, UTC, ISO 8601, by the clock of the submitting host.
        number: Number of the submission within its run, from 1: the order of submissions, which no clock can change.
            0: recorded by an earlier version.
        cluster: Cluster of the job. None: that of the machine on which hpcq runs.
        home: ClusterName of the job's cluster. None: not known, or recorded by an earlier version.
    """

    array: str
    part: int
    job_id: str
    units: tuple[str, ...]
    folder: str
    time: str
    number: int = 0
    cluster: str | None = None
    home: str | None = None
    schema: int = 1

    def element(self, index: int) -> str:
        """Job id of unit `index` in Slurm's notation; submitit submits a single unit as a plain job."""
        return f"{self.job_id}_{index}" if len(self.units) > 1 else self.job_id

    def launcher_log(self, index: int) -> Path:
        """Path of the output of element `index` before its unit started: the log to read if no attempt was recorded."""
        return Path(self.folder) / f"{self.element(index)}_0_log.err"


@dataclass(frozen=True, kw_only=True)
class UnitResult:
    """State of a unit that the local launcher runs: running, done, failed or cancelled, with the reason."""

    unit_id: str
    state: UnitState
    reason: str | None = None
