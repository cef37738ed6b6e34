"""What sbatch answers elsewhere: texts around the job id, lost answers, messages of filters, limits; interrupts."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcq.core.attempts import read_attempts
from hpcq.core.errors import SetupError
from hpcq.core.paths import RunLayout
from hpcq.core.work_records import UnitState
from hpcq.launch.array_spec import ArraySpec
from hpcq.launch.job_status import unit_jobs
from hpcq.launch.slurm_launcher import SlurmLauncher
from hpcq.launch.submissions import read_submissions, was_submitted
from hpcq.slurm import squeue
from tests.slurm.cluster import VirtualCluster
from tests.slurm.sites import enter_site, misleading_variables
from tests.slurm.synthetic_units import layout_at, synthetic_array, synthetic_unit
from tests.slurm.waiting import wait_for, wait_until_ended

NUMBERS = itertools.count()

SUBMIT = """
import pickle, sys
from hpcq.launch.slurm_launcher import SlurmLauncher
layout, arrays = pickle.loads(bytes.fromhex(sys.argv[1]))
SlurmLauncher(layout).submit(arrays)
"""


@pytest.fixture
def layout(cluster: VirtualCluster, tmp_path: Path) -> Iterator[RunLayout]:
    """A new run on an idle cluster."""
    yield layout_at(tmp_path, name=f"answers-{next(NUMBERS)}")
    cluster.cancel_all_jobs()


def two_arrays(layout: RunLayout) -> list[ArraySpec]:
    """Return an array of two units and one of a single unit, which is a plain job."""
    return [
        synthetic_array(layout, "pair", [synthetic_unit(layout, "a"), synthetic_unit(layout, "b")]),
        synthetic_array(layout, "single", [synthetic_unit(layout, "c")]),
    ]


@pytest.mark.parametrize("site", ["id_only", "banner", "lost_answer", "silent"])
def test_a_job_is_recorded_with_its_own_id(layout: RunLayout, site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Observed: all five arrays became "job 120"; jobs whose answer was lost waited 60 s for a pickle, and gave up."""
    enter_site(monkeypatch, site)
    submitted = SlurmLauncher(layout).submit(two_arrays(layout))
    states = wait_until_ended(layout)
    assert {one.element(index) for one in submitted for index in range(len(one.units))} == set(states)
    assert {job.state.unit_state for job in states.values()} == {UnitState.DONE}
    assert {unit: len(records) for unit, records in read_attempts(layout.attempts).items()} == {"a": 1, "b": 1, "c": 1}


def test_all_messages_of_a_rejection_are_shown(layout: RunLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Observed: a submit filter's explanation was cut; only "Unspecified error" was shown."""
    enter_site(monkeypatch, "submit_filter")
    with pytest.raises(SetupError) as error:
        SlurmLauncher(layout).submit(two_arrays(layout))
    assert str(error.value).splitlines() == [
        "sbatch rejected array pair (partition None):",
        "  Parameter --gres=gpu:1 no longer acceptable, switch to --gpus=1",
        "  Batch job submission failed: Unspecified error",
        "Correct the cluster profile and run the command again.",
    ]


def test_a_limit_on_jobs_is_no_fault_of_the_profile(layout: RunLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what is queued already, how to take it back, and to wait."""
    enter_site(monkeypatch, "job_limit")
    arrays = [synthetic_array(layout, name, [synthetic_unit(layout, name, seconds=60)]) for name in ("one", "two")]
    with pytest.raises(SetupError) as error:
        SlurmLauncher(layout).submit(arrays)
    (accepted,) = read_submissions(layout)
    message = str(error.value)
    assert f"Submitted before: one as job {accepted.job_id}. `hpcq cancel {layout.name}` cancels them." in message
    assert "QOSMaxSubmitJobPerUserLimit" in message
    assert "wait until some of your jobs have ended" in message
    assert "profile" not in message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("of_group", [False, True], ids=["process", "group"])
def test_a_submission_that_is_cut_is_completed(
    layout: RunLayout, tmp_path: Path, number: signal.Signals, *, of_group: bool
) -> None:
    """Killed while sbatch runs: the job, if Slurm has accepted it, is found, runs to its end, and waits for nothing.

    Observed: jobs that were adopted later could never start, because their pickles had no name yet.
    """
    arrays = two_arrays(layout)
    site = tmp_path / "site"
    site.mkdir()
    target = "-$(ps -o pgid= -p $PPID | tr -d ' ')" if of_group else "$PPID"
    wrapper = site / "sbatch"
    kill = f"kill -{number.name.removeprefix('SIG')} -- {target}"
    wrapper.write_text(f'#!/usr/bin/env bash\nPATH=${{PATH#*:}}\nsbatch "$@" || exit\n{kill}\n')
    wrapper.chmod(0o700)
    ended = subprocess.run(
        [sys.executable, "-c", SUBMIT, pickle.dumps((layout, arrays)).hex()],
        env={**os.environ, **misleading_variables(), "PATH": f"{site}{os.pathsep}{os.environ['PATH']}"},
        start_new_session=True,
        capture_output=True,
        check=False,
    )
    assert ended.returncode == -number, ended.stderr
    assert was_submitted(layout)
    wait_for("the queue has the job", lambda: bool(squeue.poll(layout.name)))
    jobs = unit_jobs(layout)
    assert set(jobs) == {"a", "b"}
    assert len(read_submissions(layout)) == 1
    states = wait_until_ended(layout)
    assert {job.state.unit_state for job in states.values()} == {UnitState.DONE}
    assert {unit: len(records) for unit, records in read_attempts(layout.attempts).items()} == {"a": 1, "b": 1}
