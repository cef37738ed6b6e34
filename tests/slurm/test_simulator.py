"""Simulator compared with a real Slurm: order of the units and makespan."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

from hpcq.core.attempts import read_attempts
from hpcq.launch.build_array_spec import build_array_spec
from hpcq.launch.slurm_launcher import SlurmLauncher
from hpcq.manifest.profiles import EnvironmentSettings, GpuClass, Profile, SlurmSettings
from hpcq.plan.arrays import make_arrays
from hpcq.plan.schedule.simulator import simulate
from hpcq.plan.units import PlannedUnit, Shape
from tests.slurm.cluster import VirtualCluster
from tests.slurm.synthetic_units import layout_at, synthetic_unit
from tests.slurm.waiting import wait_until_ended

SECONDS = {"third": 4.0, "first": 12.0, "fourth": 1.0, "second": 7.0}
MAX_RATIO = 20.0
"""Maximum measured makespan divided by the simulated one. A slow machine takes seconds to start a job."""


def test_units_start_in_the_simulated_order_and_end_no_sooner(cluster: VirtualCluster, tmp_path: Path) -> None:
    """Units of a whole node run one after the other, longest first, in the simulated time plus the overhead of jobs."""
    layout = layout_at(tmp_path, name="simulated")
    offer = GpuClass(
        partition="a6000",
        gpu="A6000-48",
        gres_type="a6000",
        gpus_per_node=4,
        cpus_per_node=48,
        cpus_per_unit=1,
        memory_gib=200,
        memory_gib_per_unit=1,
    )
    profile = Profile(
        name="virtual",
        scheduler="slurm",
        slurm=SlurmSettings(time_limit_minutes=30),
        gpu_classes={"a6000": offer},
        environments={"core": EnvironmentSettings(python=sys.executable)},
    )
    units = [
        PlannedUnit(
            id=name,
            work=synthetic_unit(layout, name, seconds=lasts).work,
            environment="core",
            shape=Shape(gpu_class="a6000", gpus_per_node=4),
            seconds=lasts,
        )
        for name, lasts in SECONDS.items()
    ]
    arrays = make_arrays(units, profile)
    line = simulate(arrays, profile, SECONDS)
    SlurmLauncher(layout).submit([build_array_spec(layout.name, array, profile) for array in arrays])
    wait_until_ended(layout)
    attempts = {name: records[0] for name, records in read_attempts(layout.attempts).items()}
    starts = {name: record.start for name, record in attempts.items()}
    assert sorted(starts, key=starts.__getitem__) == sorted(line.starts, key=line.starts.__getitem__)
    assert sorted(starts, key=starts.__getitem__) == ["first", "second", "third", "fourth"]
    last = datetime.fromisoformat(str(attempts["fourth"].end))
    wall = (last - datetime.fromisoformat(starts["first"])).total_seconds()
    assert line.wall_seconds <= wall <= MAX_RATIO * line.wall_seconds
    cluster.cancel_all_jobs()
