"""Jobs of a run where squeue is cached, or where the site has replaced the comments of jobs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.paths import RunLayout
from hpcq.core.work_records import UnitKind, UnitState
from hpcq.launch import submissions
from hpcq.launch.home_cluster import require_home_cluster
from hpcq.launch.job_status import unit_jobs
from hpcq.launch.slurm_launcher import SlurmLauncher
from hpcq.monitor.status import run_status
from hpcq.monitor.units import UnitRecord
from hpcq.slurm import client as slurm_client
from hpcq.slurm import sbatch
from hpcq.slurm.jobs import SlurmJob
from hpcq.slurm.scontrol import parse_array
from hpcq.slurm.squeue import parse_queue
from tests.slurm.synthetic_units import layout_at, synthetic_array, synthetic_unit

ARRAY = """\
JobId=101 ArrayJobId=100 ArrayTaskId=0 JobName=hpcq:synthetic:a:0 UserId=me(1) JobState=RUNNING Reason=None Restarts=0
JobId=100 ArrayJobId=100 ArrayTaskId=1,3-4%2 ArrayTaskThrottle=2 JobName=hpcq:synthetic:a:0 JobState=PENDING Reason=X
"""
Client = Callable[[str, str], None]


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """A run."""
    return layout_at(tmp_path)


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Install a client of Slurm with a body in bash; it counts its calls."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")

    def install(name: str, body: str) -> None:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/usr/bin/env bash\necho "$*" >>"{path}.calls"\n{body}\n')
        path.chmod(0o700)

    return install


def calls(tmp_path: Path, name: str) -> int:
    """Return how often the client was called."""
    path = tmp_path / "bin" / f"{name}.calls"
    return len(path.read_text().splitlines()) if path.exists() else 0


def record(layout: RunLayout, units: int = 5, age: timedelta = timedelta(0), home: str | None = None) -> None:
    """Record a submission of array a as job 100."""
    array = synthetic_array(layout, "a", [synthetic_unit(layout, f"u{index}") for index in range(units)])
    folder = layout.launcher_logs / "a.0.x"
    folder.mkdir(parents=True)
    spec = submissions.write_spec(folder, layout, array, 0, array.units, home=home)
    done = submissions.record_submission(layout, folder, spec, "100")
    submissions._write(layout, replace(done, time=(datetime.now(UTC) - age).isoformat()))


def write_folder(layout: RunLayout, suffix: str, units: int = 1) -> Path:
    """Write the folder of a submission of array a that has no record."""
    array = synthetic_array(layout, "a", [synthetic_unit(layout, f"u{index}") for index in range(units)])
    folder = layout.launcher_logs / f"a.0.{suffix}"
    folder.mkdir(parents=True)
    submissions.write_spec(folder, layout, array, 0, array.units)
    return folder


def queued(*comments: str) -> dict[str, SlurmJob]:
    """Return pending jobs of array a with these comments, from 100 on."""
    rows = [f"{100 + index}|N/A|PENDING|0||X|hpcq:synthetic:a:0|{comment}|" for index, comment in enumerate(comments)]
    return parse_queue("\n".join(rows), "synthetic")


def test_a_job_whose_comment_the_site_has_replaced_is_found_by_its_name(layout: RunLayout) -> None:
    """Observed: such a job is never found after a lost answer, and its units are submitted again."""
    folder = write_folder(layout, "abcdefgh")
    assert submissions.unrecorded_jobs(layout, queued("cost centre 17"), None) == [("100", folder)]


@pytest.mark.parametrize(
    ("folders", "comments"),
    [(2, ("x",)), (1, ("x", "y")), (0, ("x",)), (1, ("/elsewhere/logs/synthetic/submitit/a.0.zzzzzzzz",))],
    ids=["two folders", "two jobs", "no folder", "another run"],
)
def test_a_name_that_does_not_decide_is_not_used(layout: RunLayout, folders: int, comments: tuple[str, ...]) -> None:
    """A job of another run of the same name would be cancelled with this one's."""
    for index in range(folders):
        write_folder(layout, f"abcdefg{index}")
    assert submissions.unrecorded_jobs(layout, queued(*comments), None) == []


def test_sbatch_is_repeated_while_the_controller_does_not_respond(
    layout: RunLayout, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Observed: one failing sbatch in a merge's epilogue stopped the run, or left its units without a merge."""
    monkeypatch.setattr(slurm_client, "_FIRST_PAUSE_S", 0.01)
    failed = 'echo "sbatch: error: Unable to contact slurm controller" >&2; exit 1'
    client("sbatch", f'[ "$(wc -l <"$0.calls")" -gt 2 ] && echo 77 || {{ {failed}; }}')
    client("squeue", "")
    client("srun", "")
    client("scontrol", "echo MaxArraySize = 100; echo ClusterName = here")
    array = synthetic_array(layout, "a", [synthetic_unit(layout, "u0")])
    with pytest.raises(SetupError, match="Slurm did not respond in time"):
        SlurmLauncher(layout).submit([array])
    assert calls(tmp_path, "sbatch") == 1
    with slurm_client.patience(60.0):
        (submitted,) = SlurmLauncher(layout).submit([array])
    assert submitted.job_id == "77"
    assert calls(tmp_path, "sbatch") == 3


def test_an_sbatch_that_hangs_is_no_fault_of_the_profile(
    layout: RunLayout, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says that Slurm did not respond, and what to do."""
    monkeypatch.setattr(sbatch, "TIMEOUT_S", 0.5)
    client("sbatch", "exec sleep 600")
    client("squeue", "exit 1")
    client("srun", "")
    client("scontrol", "echo MaxArraySize = 100")
    with pytest.raises(SetupError) as error:
        SlurmLauncher(layout).submit([synthetic_array(layout, "a", [synthetic_unit(layout, "u0")])])
    assert "sbatch did not end within 0.5 s." in str(error.value)
    assert "run the command again in a few minutes" in str(error.value)
    assert "profile" not in str(error.value)


def test_sbatch_is_not_repeated_if_slurm_has_accepted_the_job(
    layout: RunLayout, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue is asked before each repetition, and must answer: a repetition would be a second job."""
    monkeypatch.setattr(slurm_client, "_FIRST_PAUSE_S", 0.01)
    client("sbatch", 'echo "Socket timed out on send/recv operation" >&2; exit 1')
    folder = "$(echo " + str(layout.launcher_logs) + "/a.0.*)"
    row = f"echo 88\\|N/A\\|PENDING\\|0\\|\\|X\\|hpcq:synthetic:a:0\\|{folder}\\|"
    client("squeue", f'[ "$(wc -l <"$0.calls")" -gt 2 ] || {{ echo "Connection refused" >&2; exit 1; }}; {row}')
    client("srun", "")
    client("scontrol", "echo MaxArraySize = 100; echo ClusterName = here")
    with slurm_client.patience(60.0):
        (submitted,) = SlurmLauncher(layout).submit([synthetic_array(layout, "a", [synthetic_unit(layout, "u0")])])
    assert (submitted.job_id, calls(tmp_path, "sbatch")) == ("88", 1)


def test_a_run_of_another_cluster_is_refused(layout: RunLayout, client: Client) -> None:
    """Observed: on the second of two clusters with one file system, all units were submitted again."""
    record(layout, home="first")
    client("scontrol", "echo ClusterName = second")
    with pytest.raises(UserInputError) as error:
        require_home_cluster(layout, lambda: {"u1"})
    message = str(error.value)
    assert "its jobs run on cluster first, and this machine belongs to cluster second" in message
    assert f"remove their records ({layout.submissions / 'a.100.json'})." in message
    require_home_cluster(layout, lambda: {"another"})
    client("scontrol", "echo ClusterName = first")
    require_home_cluster(layout, lambda: {"u1"})


def test_a_run_of_an_earlier_version_or_with_a_named_cluster_needs_no_call(
    layout: RunLayout, client: Client, tmp_path: Path
) -> None:
    """With `slurm.cluster`, each job is looked for where it is."""
    client("scontrol", "exit 1")
    record(layout)
    (one,) = submissions.read_submissions(layout)
    require_home_cluster(layout, lambda: {"u1"})
    submissions._write(layout, replace(one, cluster="first", home="first"))
    require_home_cluster(layout, lambda: {"u1"})
    assert calls(tmp_path, "scontrol") == 0


def test_status_says_that_jobs_of_another_cluster_are_unknown(layout: RunLayout, client: Client) -> None:
    """Without a further call: Slurm knows no job of the run, and the units have not recorded their end."""
    record(layout, home="first", age=timedelta(hours=1))
    client("squeue", "")
    units = [UnitRecord(id=f"u{index}", kind=UnitKind.EVALUATE) for index in range(5)]
    (warning,) = run_status(layout, units, unit_jobs(layout)).warnings
    assert "submitted on cluster first" in warning
    assert "their states are unknown" in warning
    client("squeue", "echo '100|0|RUNNING|0|n|None|hpcq:synthetic:a:0|x|'")
    assert run_status(layout, units, unit_jobs(layout)).warnings == ()


def test_elements_of_an_array_are_parsed() -> None:
    """Each element has a job; pending ones share a record."""
    assert {name: job.state for name, job in parse_array(f"CLUSTER: x\n{ARRAY}").items()} == {
        "100_0": "RUNNING",
        "100_1": "PENDING",
        "100_3": "PENDING",
        "100_4": "PENDING",
    }


@pytest.mark.parametrize("age", [timedelta(0), timedelta(minutes=9), timedelta(minutes=-9)])
def test_a_new_job_that_squeue_does_not_list_has_not_ended(
    layout: RunLayout, client: Client, tmp_path: Path, age: timedelta
) -> None:
    """Observed where squeue is cached: `submit --wait` ended with "resume --failed", which submits everything twice."""
    record(layout, age=age)
    client("squeue", "")
    client("scontrol", f'echo "{ARRAY}"')
    states = {unit: job.state for unit, job in unit_jobs(layout).items()}
    assert states == {
        "u0": UnitState.RUNNING,
        "u1": UnitState.PENDING,
        "u2": None,
        "u3": UnitState.PENDING,
        "u4": UnitState.PENDING,
    }
    assert calls(tmp_path, "scontrol") == 1


def test_a_new_job_that_slurm_has_forgotten_has_ended(layout: RunLayout, client: Client) -> None:
    """Sites may set MinJobAge to a few seconds."""
    record(layout)
    client("squeue", "")
    client("scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert {job.state for job in unit_jobs(layout).values()} == {None}


@pytest.mark.parametrize("listing", ["", "100|0|RUNNING|0|n|None|hpcq:synthetic:a:0|x|"])
def test_old_and_listed_jobs_need_no_further_call(
    layout: RunLayout, client: Client, tmp_path: Path, listing: str
) -> None:
    """`status` is one call to Slurm."""
    record(layout, age=timedelta(0) if listing else timedelta(hours=1))
    client("squeue", f"echo '{listing}'")
    client("scontrol", "exit 1")
    unit_jobs(layout)
    assert (calls(tmp_path, "squeue"), calls(tmp_path, "scontrol")) == (1, 0)
