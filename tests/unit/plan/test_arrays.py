"""Arrays: evaluations stand in step with the quantizations that they need."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hpcq.core.work import EvaluateWork, Kind, MergeWork, Model, QuantizeWork, Scheme, Shard, Variant
from hpcq.manifest.profiles import GpuClass, Profile, SlurmSettings
from hpcq.plan.arrays import make_arrays
from hpcq.plan.units import PlannedUnit, Shape


def profile() -> Profile:
    """A Slurm cluster with two classes."""
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
    """Units of variants given as (is quantized, class that evaluates, shards), and the merge."""
    units: list[PlannedUnit] = []
    for number, (is_quantized, gpu_class, shards) in enumerate(variants):
        tool = "synthetic" if is_quantized else "none"
        scheme = Scheme(name=f"s{number}", tool=tool, method="none", weights="bf16", activations="bf16", damping=number)
        variant = Variant(model=Model(id="m"), scheme=scheme)
        needs: tuple[str, ...] = ()
        if is_quantized:
            quantize = PlannedUnit(
                id=f"quantize.{variant.id}",
                work=QuantizeWork(variant=variant, checkpoint_path="c"),
                environment="core",
                shape=Shape(gpu_class="big", gpus_per_node=1),
            )
            units.append(quantize)
            needs = (quantize.id,)
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
                    depends_on=needs,
                )
            )
    merge = MergeWork(run="r", evaluations=(), segments_path="s", results_path="r")
    evaluations = tuple(unit.id for unit in units if unit.kind is Kind.EVALUATE)
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
def test_every_unit_is_in_one_array_after_what_it_needs(variants: list[tuple[bool, str, int]]) -> None:
    """Arrays partition the units, and each array's one dependency is just what its units need."""
    units = units_of(variants)
    arrays = make_arrays(units, profile())
    assert sorted(unit.id for array in arrays for unit in array.units) == sorted(unit.id for unit in units)
    assert len({array.name for array in arrays}) == len(arrays)
    seen = {}
    for array in arrays:
        assert all(name in seen for name in array.depends_on)
        if array.dependency == "aftercorr":
            (needed,) = array.depends_on
            assert [unit.depends_on for unit in array.units] == [(unit.id,) for unit in seen[needed].units]
        elif array.dependency == "afterok":
            (needed,) = array.depends_on
            assert {unit.depends_on for unit in array.units} == {(seen[needed].units[array.element].id,)}
        elif array.kind is Kind.EVALUATE:
            assert all(not unit.depends_on for unit in array.units)
        seen[array.name] = array
    assert arrays[-1].kind is Kind.MERGE
    assert set(arrays[-1].depends_on) == set(seen) - {arrays[-1].name}
    assert arrays[-1].dependency == "afterany"


def test_variants_that_run_alike_share_arrays() -> None:
    """Fifty quantized variants of two shards each take one array to quantize and two to evaluate, not a hundred."""
    arrays = make_arrays(units_of([(True, "small", 2)] * 50), profile())
    assert [(str(array.kind), len(array.units)) for array in arrays] == [
        ("quantize", 50),
        ("evaluate", 50),
        ("evaluate", 50),
        ("merge", 1),
    ]


def test_shards_of_few_variants_share_arrays() -> None:
    """Two quantized variants of fifty shards each take two arrays to evaluate, not fifty."""
    arrays = make_arrays(units_of([(True, "small", 50)] * 2), profile())
    assert [(str(array.kind), len(array.units), array.dependency, array.element) for array in arrays] == [
        ("quantize", 2, "none", None),
        ("evaluate", 50, "afterok", 0),
        ("evaluate", 50, "afterok", 1),
        ("merge", 1, "afterany", None),
    ]


def test_an_evaluation_whose_quantization_is_under_way_waits_for_that_job() -> None:
    """A resumed evaluation is queued after the array handed over earlier, and the merge after both."""
    units = units_of([(True, "small", 1)])
    quantize, *rest = units
    arrays = make_arrays(rest, profile(), under_way={quantize.id: "earlier"})
    assert [(array.dependency, array.depends_on) for array in arrays] == [
        ("afterany", ("earlier",)),
        ("afterany", (arrays[0].name,)),
    ]


def test_the_shorter_of_two_time_limits_holds() -> None:
    """A class's max_minutes caps the cluster's time limit; where a class has none the cluster's holds."""
    limits = {
        array.shape.gpu_class: array.time_limit_minutes
        for array in make_arrays(units_of([(False, "big", 1), (False, "small", 1)]), profile())
    }
    assert limits == {"big": 30, "small": 60}
