"""The simulated timeline: it never overfills a class, keeps to dependencies and throttles, and no bound exceeds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.parts.lower_bound import lower_bound
from hpcq.core.work import EvaluateWork, Kind, MergeWork, Model, QuantizeWork, Scheme, Shard, Variant
from hpcq.manifest.profiles import GpuClass, Profile, SlurmSettings
from hpcq.plan.arrays import make_arrays
from hpcq.plan.schedule.resources import nodes_of, taken_of
from hpcq.plan.schedule.simulator import Timeline, timeline
from hpcq.plan.units import PlannedArray, PlannedUnit, Shape


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A variant: seconds of its quantization (None: it has none) and of each of its shards, and their shape."""

    quantize: int | None = None
    evaluate: int = 10
    shards: int = 1
    nodes: int = 1
    gpus: int = 1


def profile(*, nodes: int = 2, throttle: int | None = None) -> Profile:
    """Nodes of 8 GPUs that evaluate, and one of 4 that does all else."""
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


def units_of(wishes: Sequence[Wish]) -> list[PlannedUnit]:
    """The units of these variants, and the merge."""
    units: list[PlannedUnit] = []
    for number, wish in enumerate(wishes):
        scheme = Scheme(
            name=f"s{number}", tool="none", method="none", weights="bf16", activations="bf16", damping=number
        )
        variant = Variant(model=Model(id="m"), scheme=scheme)
        needs: tuple[str, ...] = ()
        if wish.quantize is not None:
            needs = (f"quantize.{number}",)
            work = QuantizeWork(variant=variant, checkpoint_path="c")
            shape = Shape(gpu_class="small", gpus_per_node=1)
            units.append(
                PlannedUnit(id=needs[0], work=work, environment="core", shape=shape, seconds=float(wish.quantize))
            )
        evaluation = EvaluateWork(
            variant=variant, tasks=(), backend="synthetic", dtype="float32", checkpoint_path="c", segments_path="s"
        )
        units += [
            PlannedUnit(
                id=f"evaluate.{number}.{index}",
                work=replace(evaluation, shard=Shard(index=index, count=wish.shards)),
                environment="core",
                shape=Shape(gpu_class="big", nodes=wish.nodes, gpus_per_node=wish.gpus),
                seconds=float(wish.evaluate),
                depends_on=needs,
            )
            for index in range(wish.shards)
        ]
    merge = MergeWork(run="r", evaluations=(), segments_path="s", results_path="r")
    needed = tuple(unit.id for unit in units if unit.kind is Kind.EVALUATE)
    place = Shape(gpu_class="small")
    units.append(PlannedUnit(id="merge.r", work=merge, environment="core", shape=place, seconds=1.0, depends_on=needed))
    return units


def planned(
    wishes: Sequence[Wish], where: Profile
) -> tuple[list[PlannedUnit], tuple[PlannedArray, ...], dict[str, float], Timeline]:
    """Units, arrays, seconds and the timeline."""
    units = units_of(wishes)
    seconds = {unit.id: unit.seconds or 0.0 for unit in units}
    arrays = make_arrays(units, where)
    return units, arrays, seconds, timeline(arrays, where, seconds)


WISHES = st.lists(
    st.builds(
        Wish,
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


@given(WISHES, CLUSTERS)
def test_what_runs_at_once_never_exceeds_class_node_or_throttle(wishes: list[Wish], where: Profile) -> None:
    """Every unit starts once; at no start do running units take more GPUs than there are, or break a throttle."""
    units, arrays, seconds, line = planned(wishes, where)
    assert sorted(line.starts) == sorted(unit.id for unit in units)
    for now in set(line.starts.values()):
        running = {name for name, start in line.starts.items() if start <= now < start + seconds[name]}
        for name, offer in where.gpu_classes.items():
            taken = [
                (taken_of(where, unit.shape)[0], nodes_of(where, unit.shape))
                for unit in units
                if unit.id in running and unit.shape.gpu_class == name
            ]
            assert sum(gpus * nodes for gpus, nodes in taken) <= offer.nodes * offer.gpus_per_node
            assert sum(nodes for gpus, nodes in taken if gpus > offer.gpus_per_node / 2) <= offer.nodes
        for array in arrays:
            assert sum(unit.id in running for unit in array.units) <= (array.throttle or len(array.units))


@given(WISHES, CLUSTERS)
def test_nothing_starts_before_what_it_needs_has_ended(wishes: list[Wish], where: Profile) -> None:
    """The units that a unit depends on have ended when it starts, and the end of all is the last unit's."""
    units, _, seconds, line = planned(wishes, where)
    ends = {name: start + seconds[name] for name, start in line.starts.items()}
    assert all(ends[needed] <= line.starts[unit.id] for unit in units for needed in unit.depends_on)
    assert line.wall_seconds == max(ends.values())


@given(WISHES, CLUSTERS)
def test_no_timeline_beats_the_lower_bound(wishes: list[Wish], where: Profile) -> None:
    """The bound holds for the planner's arrays and for a job a unit in any other order."""
    _, arrays, seconds, line = planned(wishes, where)
    assert lower_bound(arrays, where, seconds) <= line.wall_seconds + 1e-6
    merge, *others = reversed(arrays)
    turned = [array for array in others if array.dependency == "none"]
    turned += [array for array in reversed(others) if array.dependency != "none"]
    worse = timeline([*turned, merge], where, seconds).wall_seconds
    assert lower_bound(arrays, where, seconds) <= worse + 1e-6


@given(WISHES, CLUSTERS)
def test_the_critical_path_is_without_a_gap(wishes: list[Wish], where: Profile) -> None:
    """Each unit of the path starts when the one before it ends, the first at once, and the last ends the run."""
    _, _, seconds, line = planned(wishes, where)
    now = 0.0
    for unit in line.critical_path:
        assert line.starts[unit] == now
        now += seconds[unit]
    assert now == line.wall_seconds


def test_the_longest_begins_first() -> None:
    """Of units for the same GPUs the one that lasts longest comes first, whatever the manifest's order."""
    wishes = [Wish(evaluate=lasts, gpus=8) for lasts in (10, 30, 20)]
    _, _, _, line = planned(wishes, profile(nodes=1))
    assert [line.starts[f"evaluate.{number}.0"] for number in (1, 2, 0)] == [0, 30, 50]


def test_a_quantization_before_long_evaluations_comes_first() -> None:
    """What counts is the time until all that needs a unit has ended, not the unit's own."""
    wishes = [Wish(quantize=20, evaluate=1)] * 4 + [Wish(quantize=10, evaluate=100)]
    _, _, _, line = planned(wishes, profile())
    assert line.starts["quantize.4"] == 0
    assert line.wall_seconds == 111


def test_a_short_unit_fills_what_a_wide_one_leaves() -> None:
    """While units of two of three nodes run one after the other, those of one node run on the third."""
    wishes = [Wish(evaluate=100, shards=3, nodes=2, gpus=8), Wish(evaluate=60, shards=5, gpus=8)]
    _, _, _, line = planned(wishes, profile(nodes=3))
    assert line.wall_seconds == 301


def test_a_unit_that_waits_for_nodes_is_not_overtaken_for_ever() -> None:
    """Later units whose time limits outlast the wait do not take nodes that are kept for an earlier one."""
    small, wide = Shape(gpu_class="big", gpus_per_node=4), Shape(gpu_class="big", nodes=2, gpus_per_node=8)
    units = [
        replace(unit, shape=wide if number == 1 else small, id=f"u{number}", depends_on=())
        for number, unit in enumerate(units_of([Wish()] * 6)[:6])
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
    starts = timeline(arrays, profile(), dict.fromkeys((unit.id for unit in units), 10.0)).starts
    assert starts == {"u0": 0, "u1": 10, "u2": 20, "u3": 20, "u4": 20, "u5": 20}


def test_the_bound_counts_what_whole_units_must_leave_idle() -> None:
    """Units of five of eight GPUs, of three of five nodes, five for four GPUs: no order could do better."""
    for wishes, nodes in (
        ([Wish(evaluate=10, shards=6, gpus=5)], 2),
        ([Wish(evaluate=10, shards=4, nodes=3, gpus=8)], 5),
        ([Wish(quantize=50, evaluate=10)] * 5, 2),
    ):
        where = profile(nodes=nodes)
        _, arrays, seconds, line = planned(wishes, where)
        assert lower_bound(arrays, where, seconds) == line.wall_seconds
