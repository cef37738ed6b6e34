"""The merge of the last portion, where a limit on jobs has left room for the units only."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpcq.batch import epilogue
from hpcq.core.errors import JobLimitError
from hpcq.core.work_records import UnitKind
from hpcq.launch import submissions
from hpcq.launch.submissions import SubmissionSpec
from hpcq.monitor.unit_job import UnitJobStatus
from hpcq.run.load import LoadedRun, load_manifest
from hpcq.run.next_submission import next_submission
from hpcq.slurm.jobs import SlurmJob, SlurmState
from tests.slurm.synthetic_units import layout_at, synthetic_array, synthetic_unit

MANIFEST = """
[run]
name = "r"
[[models]]
id = "meta-llama/Llama-3.1-8B"
revision = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
[schemes]
use = ["bf16"]
[tasks]
use = ["arc_challenge"]
limit = 2
[evaluate]
backend = "synthetic"
"""


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedRun:
    """A planned run on Slurm."""
    monkeypatch.chdir(tmp_path)
    Path("m.toml").write_text(MANIFEST)
    return load_manifest(Path("m.toml"))


def jobs_of(loaded: LoadedRun, evaluations: SlurmState, merge: SlurmState) -> dict[str, UnitJobStatus]:
    """Return a job per unit."""
    found = {}
    for number, unit in enumerate(loaded.plan.units, 1):
        state = merge if unit.kind is UnitKind.MERGE else evaluations
        job = SlurmJob(job_id=str(number), state=state)
        found[unit.id] = UnitJobStatus(job_id=str(number), array=f"array-{number}", job=job)
    return found


@pytest.mark.parametrize(
    ("unattended", "evaluations", "merge", "expected"),
    [
        (True, SlurmState.RUNNING, SlurmState.RUNNING, 1),
        (True, SlurmState.PENDING, SlurmState.RUNNING, 1),
        (True, SlurmState.RUNNING, SlurmState.PENDING, 0),
        (False, SlurmState.RUNNING, SlurmState.RUNNING, 0),
    ],
)
def test_a_requeued_merge_is_followed_by_one_after_the_units(
    loaded: LoadedRun, evaluations: SlurmState, merge: SlurmState, *, unattended: bool, expected: int
) -> None:
    """Observed: its units ran, the requeued merge found nothing to submit, and nothing merged their responses."""
    jobs = jobs_of(loaded, evaluations, merge)
    arrays = next_submission(loaded, jobs, unattended=unattended).arrays
    assert [array.kind for array in arrays] == [UnitKind.MERGE] * expected
    for array in arrays:
        assert set(array.depends_on) == {job.array for job in jobs.values()}


@pytest.mark.parametrize(("restarts", "is_requeued"), [(0, True), (1007, True), (1008, False)])
def test_a_merge_at_a_limit_gives_up_after_a_week(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    restarts: int,
    *,
    is_requeued: bool,
) -> None:
    """Observed: a limit on the size of jobs, which has the same error, was requeued every ten minutes without end."""

    def refuse(*_: object) -> None:
        raise JobLimitError("sbatch rejected array a.")

    requeued: list[str] = []
    job = SlurmJob(job_id="9", state=SlurmState.RUNNING, restarts=restarts)
    monkeypatch.setattr(epilogue, "show_job", lambda _: job)
    monkeypatch.setattr(epilogue, "requeue", requeued.append)
    monkeypatch.setattr(epilogue, "update_jobs", lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "hpcq.batch.resubmit", SimpleNamespace(resubmit_missing=refuse))
    assert epilogue._run(tmp_path, merge_spec(tmp_path), job, 0, 0) == epilogue.NOT_DONE
    assert requeued == (["9"] if is_requeued else [])
    printed = capsys.readouterr().err
    assert printed.startswith("hpcq: sbatch rejected array a.\n")
    assert ("gives up" in printed) is not is_requeued


def merge_spec(folder: Path) -> SubmissionSpec:
    """Return the specification of a merge's submission."""
    layout = layout_at(folder)
    array = synthetic_array(layout, "merge", [synthetic_unit(layout, "merge")], kind=UnitKind.MERGE)
    return submissions.write_spec(folder, layout, array, 0, array.units)
