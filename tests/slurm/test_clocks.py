"""Login nodes whose clocks differ: the order of submissions, and units with more than one job."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcq.core.paths import RunLayout
from hpcq.core.work_records import UnitState
from hpcq.launch import submissions
from hpcq.launch.array_spec import ArraySpec
from hpcq.launch.job_status import all_jobs, unit_jobs
from hpcq.launch.slurm_launcher import SlurmLauncher
from hpcq.slurm.squeue import cancel
from tests.slurm.cluster import VirtualCluster
from tests.slurm.synthetic_units import layout_at, synthetic_array, synthetic_unit
from tests.slurm.waiting import wait_until_ended

NUMBERS = itertools.count()


@pytest.fixture
def layout(cluster: VirtualCluster, tmp_path: Path) -> Iterator[RunLayout]:
    """A new run on an idle cluster."""
    yield layout_at(tmp_path, name=f"clocks-{next(NUMBERS)}")
    cluster.cancel_all_jobs()


def held(layout: RunLayout) -> ArraySpec:
    """Return an array that does not begin within an hour."""
    return synthetic_array(layout, "held", [synthetic_unit(layout, "unit")], extra={"begin": "now+3600"})


def test_the_last_submission_counts_with_any_clock_of_its_host(
    layout: RunLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Observed: the older submission won, its dead jobs were shown, and the live ones were submitted again."""
    (first,) = SlurmLauncher(layout).submit([held(layout)])
    cancel([first.job_id])
    wait_until_ended(layout)
    monkeypatch.setattr(submissions, "utc_now", lambda: "2020-01-01T00:00:00+00:00")
    (second,) = SlurmLauncher(layout).submit([held(layout)])
    job = unit_jobs(layout)["unit"]
    assert (job.job_id, job.state) == (second.job_id, UnitState.PENDING)


def test_a_live_job_counts_before_a_later_one_that_ended(layout: RunLayout) -> None:
    """All jobs of a unit are known, so that `cancel` can end each of them."""
    (first,) = SlurmLauncher(layout).submit([held(layout)])
    (second,) = SlurmLauncher(layout).submit([held(layout)])
    cancel([second.job_id])
    assert [job.job_id for _, job in all_jobs(layout)] == [first.job_id, second.job_id]
    assert unit_jobs(layout)["unit"].job_id == first.job_id
