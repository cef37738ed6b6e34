"""Setup lines, modules and interpreters of the cluster profile that fail on a node, or on all nodes."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hpcq.core.attempts import read_attempts
from hpcq.core.failures import Failure
from hpcq.core.outcomes import Action
from hpcq.core.paths import RunLayout
from hpcq.core.work_records import UnitState
from hpcq.launch.recovery.node_exclusion import nodes_to_exclude
from hpcq.launch.recovery.retry_policy import RetryPolicy
from hpcq.launch.slurm_launcher import SlurmLauncher
from tests.slurm.cluster import VirtualCluster
from tests.slurm.synthetic_units import layout_at, synthetic_array, synthetic_unit
from tests.slurm.waiting import wait_for, wait_until_ended

NUMBERS = itertools.count()

HARMLESS = ('[ -n "$PS1" ] && echo interactive', "grep -q nothing /dev/null", "unset no_such_name", "false")

BROKEN = {
    "exit": ({"setup": ("cd /no/such/folder", "exit 3")}, "cd: /no/such/folder: No such file or directory"),
    "silent": ({"setup": ("false", "exit 3")}, "ended the shell with exit code 3; the last that failed: false"),
    "success": ({"setup": ("exit 0",)}, "the setup lines of the cluster profile ended the shell with exit code 0"),
    "module": ({"modules": ("no-such/1.0",)}, "'module load no-such/1.0' failed on node"),
    "interpreter": ({"python": "/no/such/python"}, "has no interpreter /no/such/python"),
    "package": ({"python": "/bin/false"}, "srun: error:"),
}
"""Changes of the environment that no node supports, and what the reason says."""


@pytest.fixture
def layout(cluster: VirtualCluster, tmp_path: Path) -> Iterator[RunLayout]:
    """A new run on an idle cluster."""
    yield layout_at(tmp_path, name=f"setup-{next(NUMBERS)}")
    cluster.cancel_all_jobs()


def test_setup_lines_may_return_an_error(layout: RunLayout) -> None:
    """Observed: they killed the batch shell under `set -e`, and the reason shown was hpcq's own requeue."""
    spec = synthetic_array(layout, "harmless", [synthetic_unit(layout, "unit")])
    spec = replace(spec, environment=replace(spec.environment, setup=HARMLESS))
    SlurmLauncher(layout).submit([spec])
    assert {job.state.unit_state for job in wait_until_ended(layout).values()} == {UnitState.DONE}


def test_an_exit_trap_of_setup_lines_does_not_stop_a_retry(layout: RunLayout, tmp_path: Path) -> None:
    """Observed: it replaced hpcq's trap, so a unit that was killed was not requeued. Its command runs at each end."""
    removed = tmp_path / "removed"
    lines = (f"trap 'echo $? >>{removed}' EXIT",)
    spec = synthetic_array(layout, "trap", [synthetic_unit(layout, "unit", seconds=8)])
    spec = replace(spec, environment=replace(spec.environment, setup=lines))
    (submitted,) = SlurmLauncher(layout).submit([spec])
    wait_for("the unit runs", lambda: bool(read_attempts(layout.attempts)))
    process = read_attempts(layout.attempts)["unit"][0].pid
    os.kill(process, signal.SIGKILL)
    wait_for("the job is requeued", lambda: len(read_attempts(layout.attempts)["unit"]) == 2)
    assert {job.state.unit_state for job in wait_until_ended(layout).values()} == {UnitState.DONE}
    first, second = read_attempts(layout.attempts)["unit"]
    assert (first.failure, first.decision) == (Failure.KILLED, Action.RETRY)
    assert second.job_id == submitted.job_id
    assert [int(line) > 0 for line in removed.read_text().splitlines()] == [True, False]


def test_what_no_node_has_costs_few_attempts_and_says_so(layout: RunLayout) -> None:
    """Each unit is tried on two nodes at most and then waits for the user; no node is excluded for it."""
    arrays = []
    for name, (changes, _) in BROKEN.items():
        units = [synthetic_unit(layout, f"{name}-{index}") for index in range(2)]
        spec = synthetic_array(layout, name, units, partition="h100")
        arrays.append(replace(spec, environment=replace(spec.environment, **changes)))
    SlurmLauncher(layout).submit(arrays)
    wait_until_ended(layout)
    attempts = read_attempts(layout.attempts)
    assert len(attempts) == 2 * len(BROKEN)
    for unit, records in attempts.items():
        assert len(records) <= 2, records
        last, reason = records[-1], BROKEN[unit.partition("-")[0]][1]
        assert (last.failure, last.decision) == (Failure.MISSING_RESOURCE, Action.HOLD), last
        assert reason in str(last.reason)
    assert nodes_to_exclude(attempts, "h100", RetryPolicy()) == ()
