"""Records of a plan: units with their resources, arrays of units, refusals. Frozen, without logic."""

from __future__ import annotations

from hpcq.core.frozen import dataclass
from hpcq.core.work_records import EvaluateWork, QuantizeWork, Shard, StageWork, UnitKind, Variant, Work
from hpcq.plan.memory.gpu_memory import GpuMemory
from hpcq.plan.memory.offload import OffloadPlan


@dataclass(frozen=True, kw_only=True, order=True)
class Shape:
    """Resources of one unit on a cluster.

    Attributes:
        gpu_class: Name of the class in the cluster profile.
        nodes: Number of nodes.
        gpus_per_node: GPUs on each node; 0: the unit runs on CPUs alone.
        tensor_parallel: GPUs that share each weight matrix.
        pipeline_parallel: Groups of GPUs that share the layers.
        expert_parallel: The GPUs that share the weight matrices have whole experts.
        host_memory_gib: Memory needed on each node, where this may exceed the unit's share of the node by GPUs;
            0: the share is enough.
    """

    gpu_class: str
    nodes: int = 1
    gpus_per_node: int = 0
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: bool = False
    host_memory_gib: float = 0.0

    @property
    def gpus(self) -> int:
        """GPUs on all nodes together."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, kw_only=True)
class PhaseSeconds:
    """Estimated seconds of a unit by phase: starting processes, loading the checkpoint, computing."""

    start: float
    load: float
    work: float


@dataclass(frozen=True, kw_only=True)
class PlannedUnit:
    """One piece of work and where it runs.

    Attributes:
        id: Name of the unit, unique in its run.
        work: What to compute; its address identifies the result.
        environment: Name of the Python environment.
        shape: Resources.
        memory_gib_per_gpu: Estimated memory of the fullest GPU; None without GPUs, or if the model's size is unknown.
        gpu_memory: The parts of that estimate, for evaluations.
        kernel: Name of the kernel that multiplies the weights, if known.
        seconds: Estimated run time, including loading; None: unknown.
        padded_seconds: `seconds` with slack, for the time limit; None: request the longest limit.
        uncalibrated_seconds: The estimate by phase before calibration from earlier attempts.
        offloaded: Weights that do not fit on the GPUs, if any.
        depends_on: Ids of the units that must finish first.
    """

    id: str
    work: Work
    environment: str
    shape: Shape
    memory_gib_per_gpu: float | None = None
    gpu_memory: GpuMemory | None = None
    kernel: str | None = None
    seconds: float | None = None
    padded_seconds: float | None = None
    uncalibrated_seconds: PhaseSeconds | None = None
    offloaded: OffloadPlan | None = None
    depends_on: tuple[str, ...] = ()

    @property
    def kind(self) -> UnitKind:
        """The unit's kind of work."""
        return self.work.kind

    @property
    def variant(self) -> Variant | None:
        """The variant that the unit quantizes or evaluates; None for other units."""
        return self.work.variant if isinstance(self.work, QuantizeWork | EvaluateWork) else None

    @property
    def variant_id(self) -> str | None:
        """Id of that variant."""
        return self.variant.id if self.variant else None

    @property
    def address(self) -> str | None:
        """Content address of what the unit stages, or of the variant's responses (the same for all shards); or None."""
        return self.work.address if isinstance(self.work, StageWork | EvaluateWork) else None

    @property
    def shard(self) -> Shard | None:
        """The part of the variant's requests that the unit evaluates; None for other units."""
        return self.work.shard if isinstance(self.work, EvaluateWork) else None

    @property
    def gpu_class(self) -> str:
        """Name of the node class."""
        return self.shape.gpu_class

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint folder that the unit writes, if it quantizes."""
        return self.work.checkpoint_path if isinstance(self.work, QuantizeWork) else None


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A variant or benchmark that cannot run.

    Attributes:
        variant: Id of the variant; None for a benchmark.
        reason: Why it cannot run, with numbers.
        suggestion: The nearest alternative that can.
    """

    variant: str | None
    reason: str
    suggestion: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All units of a run, finished or not.

    Attributes:
        run: Name of the run.
        address: Identifies what the run computes.
        units: Units in the order quantize, evaluate of each variant, then the merge.
        refused: Variants and benchmarks that cannot run.
        checkpoint_bytes: Estimated size of the quantized checkpoints.
        notes: Caveats for readers of the results.
        compare: Published studies that the report shows next to the scores.
        margin_points: Largest difference, in percentage points, that the report calls equivalent.
        estimate_notes: What the estimated seconds are based on.
        results_bytes: Estimated size of the responses and the merged results.
    """

    run: str
    address: str
    units: tuple[PlannedUnit, ...]
    refused: tuple[Refusal, ...] = ()
    checkpoint_bytes: int = 0
    notes: tuple[str, ...] = ()
    compare: tuple[str, ...] = ()
    margin_points: float = 1.0
    estimate_notes: tuple[str, ...] = ()
    results_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class PlannedArray:
    """A Slurm job array: units of one kind, shape and environment.

    Attributes:
        name: Name of the array, unique in its run.
        kind: Kind of the units.
        shape: Resources of each unit.
        environment: Python environment of each unit.
        units: The array's elements, in order.
        throttle: Maximum number of elements that run at once; None: no limit.
        time_limit_minutes: Time limit of each element.
        depends_on: Names of the arrays that this one waits for.
        dependency: Slurm's dependency type (aftercorr, afterok, afterany), or none.
        element: The element of those arrays that this array waits for; None: all elements.
        memory_gib: Host memory to request for each unit on each of its nodes; None: Slurm's default.
        memory_option: Option of sbatch that requests it.
    """

    name: str
    kind: UnitKind
    shape: Shape
    environment: str
    units: tuple[PlannedUnit, ...]
    throttle: int | None
    time_limit_minutes: int
    depends_on: tuple[str, ...] = ()
    dependency: str = "none"
    element: int | None = None
    memory_gib: float | None = None
    memory_option: str = "mem"
