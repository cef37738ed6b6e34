"""What a plan says about the host memory of quantizations, and about the limits of partitions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpcq.core.work_records import QuantizeWork
from hpcq.manifest.profiles import GpuClass, Profile, SlurmSettings
from hpcq.plan.arrays import make_arrays
from hpcq.plan.units import PlannedUnit, Shape
from hpcq.run.partition_checks import warnings_for
from hpcq.run.slurm_notes import memory_notes
from hpcq.slurm.partitions import Partition
from tests.slurm.synthetic_units import layout_at, synthetic_unit

H100 = GpuClass(partition="gpu", gpu="H100-80", gpus_per_node=8, cpus_per_node=64, memory_gib=2000, nodes=4)
PROFILE = Profile(name="ours", scheduler="slurm", slurm=SlurmSettings(account="proj42"), gpu_classes={"h100": H100})
EVALUATION = PlannedUnit(
    id="evaluate.x",
    work=synthetic_unit(layout_at(Path("/missing")), "x").work,
    environment="core",
    shape=Shape(gpu_class="h100", gpus_per_node=1),
)
GPU = Partition(
    name="gpu",
    is_default=True,
    state="UP",
    max_minutes=None,
    max_nodes=None,
    allowed={"account": (), "qos": ()},
    denied={"account": (), "qos": ()},
)


def quantization(**shape: float) -> PlannedUnit:
    """Return a quantization with this shape."""
    work = QuantizeWork(variant=EVALUATION.variant, checkpoint_path="/missing")  # type: ignore[arg-type]
    return PlannedUnit(id="quantize.x", work=work, environment="core", shape=Shape(gpu_class="h100", **shape))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "unit", "note"),
    [
        ("mem", quantization(gpus_per_node=1, host_memory_gib=812), "up to 812 GiB of host memory with 1 GPU (--mem)."),
        ("mem-per-gpu", quantization(gpus_per_node=4), "takes 4 GPUs for their share of host memory: with memory_"),
    ],
)
def test_a_plan_says_how_a_quantization_gets_its_memory(option: str, unit: PlannedUnit, note: str) -> None:
    """By a request of its own, or by GPUs; a quantization for which one share is enough has no note."""
    profile = PROFILE.model_copy(update={"gpu_classes": {"h100": H100.model_copy(update={"memory_option": option})}})
    (found,) = memory_notes([unit, quantization(gpus_per_node=1), EVALUATION], profile)
    assert note in found


@pytest.mark.parametrize(
    ("limits", "warning"),
    [
        ({"max_minutes": 30}, "exceeds the maximum of partition 'gpu': set gpu_classes.h100.max_minutes = 30"),
        ({"state": "DRAIN"}, "partition 'gpu' is DRAIN. To use another, set gpu_classes.h100.partition."),
        (
            {"allowed": {"account": ("a", "b"), "qos": ()}},
            "does not allow the account 'proj42'; allowed: a, b. Correct slurm.account",
        ),
        (
            {"denied": {"account": ("proj42",), "qos": ()}},
            "allowed: all except proj42. Correct slurm.account or",
        ),
    ],
)
def test_an_array_that_a_partition_would_never_start_has_a_warning(limits: dict[str, Any], warning: str) -> None:
    """Time limit, state and account, each with the key to correct."""
    arrays = make_arrays([EVALUATION], PROFILE)
    assert warnings_for(PROFILE, arrays, {"gpu": GPU}) == []
    (found,) = warnings_for(PROFILE, arrays, {"gpu": replace(GPU, **limits)})
    assert warning in found
