"""`submit` that is killed at any moment and typed again runs every unit exactly once."""

from __future__ import annotations

from pathlib import Path

from tests.slurm.cluster import VirtualCluster
from tests.slurm.submit_kills import run_trials


def test_a_killed_submit_that_is_repeated_runs_every_unit_once(
    cluster: VirtualCluster, core_python: Path, tmp_path: Path
) -> None:
    """SIGINT and SIGKILL, to the process and to its group, in the whole life of the command. 100 kills are a command.

    Observed: jobs that were adopted later waited for pickles in vain, five attempts long; others were submitted twice.
    """
    cluster.cancel_all_jobs()
    cluster.write_profile({"core": str(core_python), "transformers": str(core_python)})
    trials, problems = run_trials(tmp_path, cluster, core_python, kills=6, seed=20)
    assert problems == []
    assert len({trial.calls for trial in trials}) > 1
