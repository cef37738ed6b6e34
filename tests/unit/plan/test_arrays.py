"""Arrays: grouping of units, and dependencies of evaluations on their quantizations."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hpcq.core.work_records import EvaluateWork, MergeWork, Model, QuantizeWork, Scheme, Shard, UnitKind, Variant
from hpcq.manifest.profiles import GpuClass, Profile, SlurmSettings
from hpcq.plan.arrays import make_arrays
from hpcq.plan.units import PlannedUnit, Shape


def profile() -> Profile:
    """Return a Slurm cluster with two classes."""
    return Profile(
        name="two",
        scheduler="slurm",
        slurm=SlurmSettings(time_limit_minutes=60),
        gpu_classes={
            "big": GpuClass(
                gpu="H100-80", gpus_per_node=8, cpus_per_node=64, memory_gib=512, max_minutes=30, throttle=5
            ),
            "small": GpuClass(gpu="A6000-48", gpus_per_node=4, cpus_per_node=32, memory_gib=128),
        },
    )


def units_of(variants: list[tuple[bool, str, int]]) -> list[PlannedUnit]:
    """Return units of variants given as (is quantized, class of the evaluation, shards), and the merge."""
    units: list[PlannedUnit] = []
    for number, (is_quantized, gpu_class, shards) in enumerate(variants):
        tool = "synthetic" if is_quantized else "none"
        scheme = Scheme(name=f"s{number}", tool=tool, method="none", weights="bf16", activations="bf16", damping=number)
        variant = Variant(model=Model(id="m"), scheme=scheme)
        depends_on: tuple[str, ...] = ()
        if is_quantized:
            quantize = PlannedUnit(
                id=f"quantize.{variant.id}",
                work=QuantizeWork(variant=variant, checkpoint_path="c"),
                environment="core",
                shape=Shape(gpu_class="big", gpus_per_node=1),
            )
            units.append(quantize)
            depends_on = (quantize.id,)
        for index in range(shards):
            work = EvaluateWork(
                variant=variant,
                tasks=(),
                backend="synthetic",
                dtype="float32",
                checkpoint_path="c",
                segments_path="s",
                shard=Shard(index=index, count=shards),
            )
            units.append(
                PlannedUnit(
                    id=f"evaluate.{variant.id}.{index}of{shards}",
                    work=work,
                    environment="core",
                    shape=Shape(gpu_class=gpu_class, gpus_per_node=1),
                    depends_on=depends_on,
                )
            )
    merge = MergeWork(run="r", evaluations=(), segments_path="s", results_path="r")
    evaluations = tuple(unit.id for unit in units if unit.kind is UnitKind.EVALUATE)
    units.append(
        PlannedUnit(
            id="merge.r", work=merge, environment="core", shape=Shape(gpu_class="small"), depends_on=evaluations
        )
    )
    return units


VARIANTS = st.lists(
    st.tuples(st.booleans(), st.sampled_from(["big", "small"]), st.integers(1, 4)), min_size=1, max_size=8
)


@given(VARIANTS)
def test_every_unit_is_in_one_array_after_its_dependencies(variants: list[tuple[bool, str, int]]) -> None:
    """Arrays partition the units, and each array's dependency is exactly that of its units."""
    units = units_of(variants)
    arrays = make_arrays(units, profile())
    assert sorted(unit.id for array in arrays for unit in array.units) == sorted(unit.id for unit in units)
    assert len({array.name for array in arrays}) == len(arrays)
    previous = {}
    for array in arrays:
        assert all(name in previous for name in array.depends_on)
        if array.dependency == "aftercorr":
            (needed,) = array.depends_on
            assert [unit.depends_on for unit in array.units] == [(unit.id,) for unit in previous[needed].units]
        elif array.dependency == "afterok":
            (needed,) = array.depends_on
            assert {unit.depends_on for unit in array.units} == {(previous[needed].units[array.element].id,)}
        elif array.kind is UnitKind.EVALUATE:
            assert all(not unit.depends_on for unit in array.units)
        previous[array.name] = array
    assert arrays[-1].kind is UnitKind.MERGE
    assert set(arrays[-1].depends_on) == set(previous) - {arrays[-1].name}
    assert arrays[-1].dependency == "afterany"


def test_variants_with_equal_resources_share_arrays() -> None:
    """50 quantized variants of two shards each make one array of quantizations and two of evaluations, not 100."""
    arrays = make_arrays(units_of([(True, "small", 2)] * 50), profile())
    assert [(str(array.kind), len(array.units)) for array in arrays] == [
        ("quantize", 50),
        ("evaluate", 50),
        ("evaluate", 50),
        ("merge", 1),
    ]


def test_shards_of_few_variants_share_arrays() -> None:
    """Two quantized variants of 50 shards each make two arrays of evaluations, not 50."""
    arrays = make_arrays(units_of([(True, "small", 50)] * 2), profile())
    assert [(str(array.kind), len(array.units), array.dependency, array.element) for array in arrays] == [
        ("quantize", 2, "none", None),
        ("evaluate", 50, "afterok", 0),
        ("evaluate", 50, "afterok", 1),
        ("merge", 1, "afterany", None),
    ]


def test_an_evaluation_waits_for_a_quantization_submitted_before() -> None:
    """A resumed evaluation depends on the array submitted before, and the merge on both."""
    units = units_of([(True, "small", 1)])
    quantize, *rest = units
    arrays = make_arrays(rest, profile(), active_arrays={quantize.id: "earlier"})
    assert [(array.dependency, array.depends_on) for array in arrays] == [
        ("afterany", ("earlier",)),
        ("afterany", (arrays[0].name,)),
    ]


def test_the_shorter_of_two_time_limits_applies() -> None:
    """A class's max_minutes caps the cluster's time limit. Without it, the cluster's limit applies."""
    limits = {
        array.shape.gpu_class: array.time_limit_minutes
        for array in make_arrays(units_of([(False, "big", 1), (False, "small", 1)]), profile())
    }
    assert limits == {"big": 30, "small": 60}
