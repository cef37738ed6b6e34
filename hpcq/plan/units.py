"""What a plan is made of: units with their place, arrays of units, refusals. Frozen records without logic."""

from __future__ import annotations

from dataclasses import dataclass

from hpcq.core.work import EvaluateWork, Kind, MergeWork, QuantizeWork, Shard, Variant, Work
from hpcq.plan.memory.gpu_memory import Need
from hpcq.plan.memory.offload import Offloaded


@dataclass(frozen=True, kw_only=True, order=True)
class Shape:
    """The piece of a cluster that one unit takes. gpus_per_node 0: CPUs alone.

    host_gib: of a node's memory that it needs, where that may be more than its share by GPUs; 0: the share is enough.
    """

    gpu_class: str
    nodes: int = 1
    gpus_per_node: int = 0
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    host_gib: float = 0.0

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, kw_only=True)
class Reckoned:
    """Seconds of a unit's parts. start: of processes. load: of the checkpoint. work: of all that is computed."""

    start: float
    load: float
    work: float


@dataclass(frozen=True, kw_only=True)
class PlannedUnit:
    """One piece of work and where it runs.

    memory_gib_per_gpu: estimated; None where there is no GPU or no known shape. need: what it is made of, where it
    evaluates. kernel: what it is computed with, where that is known. seconds: of the whole unit, loading included,
    estimated; None: unknown. ample_seconds: with slack, for its time limit; None: as long as may be. reckoned: what
    `seconds` are made of, before earlier attempts put them right. offloaded: weights that
    the GPUs have no room for, if there are any.
    """

    id: str
    work: Work
    environment: str
    shape: Shape
    memory_gib_per_gpu: float | None = None
    need: Need | None = None
    kernel: str | None = None
    seconds: float | None = None
    ample_seconds: float | None = None
    reckoned: Reckoned | None = None
    offloaded: Offloaded | None = None
    depends_on: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """What the unit does."""
        return self.work.kind

    @property
    def variant(self) -> Variant | None:
        """The variant that it makes or evaluates; None for the merge."""
        return None if isinstance(self.work, MergeWork) else self.work.variant

    @property
    def shard(self) -> Shard | None:
        """Its slice of the variant's requests, where it evaluates."""
        return self.work.shard if isinstance(self.work, EvaluateWork) else None

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint folder that it makes, where it quantizes."""
        return self.work.checkpoint_path if isinstance(self.work, QuantizeWork) else None


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """What cannot run, why, and the nearest thing that can."""

    variant: str | None
    reason: str
    cure: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every unit of a run, done or not.

    `address` identifies what the run computes; `notes` are caveats for its readers; `compare` names the published
    studies that its report shows beside the scores. `reckoning` says what the seconds rest on. results_bytes: of
    the responses and the merged results, estimated.
    """

    run: str
    address: str
    units: tuple[PlannedUnit, ...]
    refused: tuple[Refusal, ...] = ()
    checkpoint_bytes: int = 0
    notes: tuple[str, ...] = ()
    compare: tuple[str, ...] = ()
    reckoning: tuple[str, ...] = ()
    results_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class PlannedArray:
    """Units of one kind, shape and environment.

    dependency: none, aftercorr, afterok or afterany (Slurm's words) on the arrays in `depends_on`; with `element`, on
    that element of them alone.
    """

    name: str
    kind: Kind
    shape: Shape
    environment: str
    units: tuple[PlannedUnit, ...]
    throttle: int | None
    time_limit_minutes: int
    depends_on: tuple[str, ...] = ()
    dependency: str = "none"
    element: int | None = None
