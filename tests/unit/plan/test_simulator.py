"""Simulator: it respects capacity, dependencies and throttles, and no lower bound exceeds its makespan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.parts.lower_bound import lower_bound
from hpcq.core.work_records import EvaluateWork, MergeWork, Model, QuantizeWork, Scheme, Shard, UnitKind, Variant
from hpcq.manifest.profiles import GpuClass, Profile, SlurmSettings
from hpcq.plan.arrays import make_arrays
from hpcq.plan.schedule.resources import unit_nodes, unit_resources
from hpcq.plan.schedule.simulator import Timeline, simulate
from hpcq.plan.units import PlannedArray, PlannedUnit, Shape


@dataclass(frozen=True, kw_only=True)
class VariantSpec:
    """A variant.

    Attributes:
        quantize: Seconds of its quantization; None: it is not quantized.
        evaluate: Seconds of each shard of its evaluation.
        shards: Number of shards.
        nodes: Nodes of each shard.
        gpus: GPUs of each shard on each node.
    """

    quantize: int | None = None
    evaluate: int = 10
    shards: int = 1
    nodes: int = 1
    gpus: int = 1


def profile(*, nodes: int = 2, throttle: int | None = None) -> Profile:
    """Nodes of 8 GPUs for evaluations, and one node of 4 GPUs for everything else."""
    return Profile(
        name="two",
        scheduler="slurm",
        slurm=SlurmSettings(time_limit_minutes=60),
        gpu_classes={
            "big": GpuClass(
                gpu="H100-80", gpus_per_node=8, nodes=nodes, cpus_per_node=64, memory_gib=512, throttle=throttle
            ),
            "small": GpuClass(gpu="A6000-48", gpus_per_node=4, cpus_per_node=32, memory_gib=128),
        },
    )


def units_of(variants: Sequence[VariantSpec]) -> list[PlannedUnit]:
    """Return the units of these variants, and the merge."""
    units: list[PlannedUnit] = []
    for number, spec in enumerate(variants):
        scheme = Scheme(
            name=f"s{number}", tool="none", method="none", weights="bf16", activations="bf16", damping=number
        )
        variant = Variant(model=Model(id="m"), scheme=scheme)
        depends_on: tuple[str, ...] = ()
        if spec.quantize is not None:
            depends_on = (f"quantize.{number}",)
            work = QuantizeWork(variant=variant, checkpoint_path="c")
            shape = Shape(gpu_class="small", gpus_per_node=1)
            units.append(
                PlannedUnit(id=depends_on[0], work=work, environment="core", shape=shape, seconds=float(spec.quantize))
            )
        evaluation = EvaluateWork(
            variant=variant, tasks=(), backend="synthetic", dtype="float32", checkpoint_path="c", segments_path="s"
        )
        units += [
            PlannedUnit(
                id=f"evaluate.{number}.{index}",
                work=replace(evaluation, shard=Shard(index=index, count=spec.shards)),
                environment="core",
                shape=Shape(gpu_class="big", nodes=spec.nodes, gpus_per_node=spec.gpus),
                seconds=float(spec.evaluate),
                depends_on=depends_on,
            )
            for index in range(spec.shards)
        ]
    merge = MergeWork(run="r", evaluations=(), segments_path="s", results_path="r")
    needed = tuple(unit.id for unit in units if unit.kind is UnitKind.EVALUATE)
    shape = Shape(gpu_class="small")
    units.append(PlannedUnit(id="merge.r", work=merge, environment="core", shape=shape, seconds=1.0, depends_on=needed))
    return units


def planned(
    variants: Sequence[VariantSpec], cluster: Profile
) -> tuple[list[PlannedUnit], tuple[PlannedArray, ...], dict[str, float], Timeline]:
    """Return units, arrays, seconds by unit, and the simulated timetimeline."""
    units = units_of(variants)
    seconds = {unit.id: unit.seconds or 0.0 for unit in units}
    arrays = make_arrays(units, cluster)
    return units, arrays, seconds, simulate(arrays, cluster, seconds)


VARIANTS = st.lists(
    st.builds(
        VariantSpec,
        quantize=st.none() | st.integers(1, 50),
        evaluate=st.integers(1, 100),
        shards=st.integers(1, 5),
        nodes=st.integers(1, 3),
        gpus=st.integers(1, 8),
    ),
    min_size=1,
    max_size=8,
)
CLUSTERS = st.builds(profile, nodes=st.integers(1, 4), throttle=st.none() | st.integers(1, 6))


@given(VARIANTS, CLUSTERS)
def test_running_units_never_exceed_class_node_or_throttle(variants: list[VariantSpec], cluster: Profile) -> None:
    """Every unit starts once. At each start, the running units fit on the nodes, and each array keeps its throttle."""
    units, arrays, seconds, timeline = planned(variants, cluster)
    assert sorted(timeline.starts) == sorted(unit.id for unit in units)
    for now in set(timeline.starts.values()):
        running = {name for name, start in timeline.starts.items() if start <= now < start + seconds[name]}
        for name, offer in cluster.gpu_classes.items():
            used = [
                (unit_resources(cluster, unit.shape)[0], unit_nodes(cluster, unit.shape))
                for unit in units
                if unit.id in running and unit.shape.gpu_class == name
            ]
            assert sum(gpus * nodes for gpus, nodes in used) <= offer.nodes * offer.gpus_per_node
            assert sum(nodes for gpus, nodes in used if gpus > offer.gpus_per_node / 2) <= offer.nodes
        for array in arrays:
            assert sum(unit.id in running for unit in array.units) <= (array.throttle or len(array.units))


@given(VARIANTS, CLUSTERS)
def test_no_unit_starts_before_its_dependencies_end(variants: list[VariantSpec], cluster: Profile) -> None:
    """The units that a unit depends on have ended when it starts. The makespan is the end of the last unit."""
    units, _, seconds, timeline = planned(variants, cluster)
    ends = {name: start + seconds[name] for name, start in timeline.starts.items()}
    assert all(ends[needed] <= timeline.starts[unit.id] for unit in units for needed in unit.depends_on)
    assert timeline.wall_seconds == max(ends.values())


@given(VARIANTS, CLUSTERS)
def test_no_timeline_beats_the_lower_bound(variants: list[VariantSpec], cluster: Profile) -> None:
    """The lower bound holds for the planner's order of arrays and for the reverse order."""
    _, arrays, seconds, timeline = planned(variants, cluster)
    assert lower_bound(arrays, cluster, seconds) <= timeline.wall_seconds + 1e-6
    merge, *others = reversed(arrays)
    reordered = [array for array in others if array.dependency == "none"]
    reordered += [array for array in reversed(others) if array.dependency != "none"]
    wall_s = simulate([*reordered, merge], cluster, seconds).wall_seconds
    assert lower_bound(arrays, cluster, seconds) <= wall_s + 1e-6


@given(VARIANTS, CLUSTERS)
def test_the_critical_path_has_no_gap(variants: list[VariantSpec], cluster: Profile) -> None:
    """The first unit of the path starts at 0, each other when the previous one ends, and the last ends the run."""
    _, _, seconds, timeline = planned(variants, cluster)
    now = 0.0
    for unit in timeline.critical_path:
        assert timeline.starts[unit] == now
        now += seconds[unit]
    assert now == timeline.wall_seconds


def test_the_longest_starts_first() -> None:
    """Units for the same GPUs start in order of their duration, longest first, not in the manifest's order."""
    variants = [VariantSpec(evaluate=seconds, gpus=8) for seconds in (10, 30, 20)]
    _, _, _, timeline = planned(variants, profile(nodes=1))
    assert [timeline.starts[f"evaluate.{number}.0"] for number in (1, 2, 0)] == [0, 30, 50]


def test_a_quantization_before_long_evaluations_comes_first() -> None:
    """Units are ordered by the time until all their dependents have ended, not by their own duration."""
    variants = [VariantSpec(quantize=20, evaluate=1)] * 4 + [VariantSpec(quantize=10, evaluate=100)]
    _, _, _, timeline = planned(variants, profile())
    assert timeline.starts["quantize.4"] == 0
    assert timeline.wall_seconds == 111


def test_one_node_units_run_alongside_multi_node_units() -> None:
    """While units of two of three nodes run one after the other, units of one node run on the third node."""
    variants = [VariantSpec(evaluate=100, shards=3, nodes=2, gpus=8), VariantSpec(evaluate=60, shards=5, gpus=8)]
    _, _, _, timeline = planned(variants, profile(nodes=3))
    assert timeline.wall_seconds == 301


def test_a_unit_that_waits_for_nodes_does_not_starve() -> None:
    """A later unit does not take reserved nodes if its time limit ends after the reservation starts."""
    small, wide = Shape(gpu_class="big", gpus_per_node=4), Shape(gpu_class="big", nodes=2, gpus_per_node=8)
    units = [
        replace(unit, shape=wide if number == 1 else small, id=f"u{number}", depends_on=())
        for number, unit in enumerate(units_of([VariantSpec()] * 6)[:6])
    ]
    arrays = [
        PlannedArray(
            name=unit.id,
            kind=unit.kind,
            shape=unit.shape,
            environment="core",
            units=(unit,),
            throttle=None,
            time_limit_minutes=30 if unit.id == "u0" else 60,
        )
        for unit in units
    ]
    starts = simulate(arrays, profile(), dict.fromkeys((unit.id for unit in units), 10.0)).starts
    assert starts == {"u0": 0, "u1": 10, "u2": 20, "u3": 20, "u4": 20, "u5": 20}


def test_the_bound_counts_resources_that_must_stay_idle() -> None:
    """Units of 5 of 8 GPUs, units of 3 of 5 nodes, 5 units for 4 GPUs: the bound equals the simulated makespan."""
    for variants, nodes in (
        ([VariantSpec(evaluate=10, shards=6, gpus=5)], 2),
        ([VariantSpec(evaluate=10, shards=4, nodes=3, gpus=8)], 5),
        ([VariantSpec(quantize=50, evaluate=10)] * 5, 2),
    ):
        cluster = profile(nodes=nodes)
        _, arrays, seconds, timeline = planned(variants, cluster)
        assert lower_bound(arrays, cluster, seconds) == timeline.wall_seconds
