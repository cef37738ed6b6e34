"""What a unit's job leaves behind: its attempt, its log, and its exception for the scheduler."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcq.core.attempts import AttemptRecord, read_attempts
from hpcq.core.failures import EXIT_CODES, Failure
from hpcq.core.paths import RunLayout
from hpcq.launch.job import UnitJob
from hpcq.launch.recovery.signals import ANNOUNCEMENTS
from tests.slurm.rehearsal import array, layout_at, unit

SLURM = ("SUBMITIT_EXECUTOR", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID", "SLURM_PROCID")


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunLayout]:
    """A run, outside of any scheduler; under one, a job hears no signal any more when its unit has ended."""
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)
    handlers = {number: signal.getsignal(number) for number in ANNOUNCEMENTS}
    yield layout_at(tmp_path)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def job(layout: RunLayout, *, fails: bool = False, seconds: float = 0.0) -> UnitJob:
    """The job of a synthetic unit."""
    order = array(layout, "one", [unit(layout, "one", fails=fails, seconds=seconds)])
    return UnitJob.of(order, order.units[0], layout)


def attempts(layout: RunLayout) -> list[AttemptRecord]:
    """What was recorded of it."""
    return read_attempts(layout.attempts)["one"]


def test_a_unit_that_ends_well_is_recorded_as_done(layout: RunLayout) -> None:
    """The attempt says where and when it ran and that it is done."""
    job(layout)()
    (record,) = attempts(layout)
    assert (record.outcome, record.reason, record.attempt, record.pid) == ("done", None, 1, os.getpid())
    assert str(record.end) >= record.start
    assert record.total == 4


def test_a_failure_is_recorded_in_a_sentence_and_told_by_the_exit_code(
    layout: RunLayout, capfd: pytest.CaptureFixture[str]
) -> None:
    """The scheduler sees the class's exit code, the attempt has its sentence, the unit's own log the traceback."""
    with capfd.disabled(), pytest.raises(SystemExit) as left:
        job(layout, fails=True)()
    assert left.value.code == EXIT_CODES[Failure.OUT_OF_MEMORY]
    (record,) = attempts(layout)
    assert (record.outcome, record.reason) == ("failed", "MemoryError: no message")
    assert (record.failure, record.decision) == ("out of memory", None)
    log = (layout.job_logs / "one.1.log").read_text()
    assert log.startswith("one: attempt 1, job ")
    assert "Traceback" in log


def test_running_again_is_another_attempt_with_another_log(layout: RunLayout) -> None:
    """Attempts and their logs are numbered."""
    job(layout)()
    job(layout)()
    assert [(record.attempt, record.outcome) for record in attempts(layout)] == [(1, "done"), (2, "done")]
    assert sorted(path.name for path in layout.job_logs.iterdir()) == ["one.1.log", "one.2.log"]


def test_output_returns_to_where_it_went_before(layout: RunLayout, capfd: pytest.CaptureFixture[str]) -> None:
    """File descriptor 1 is the unit's log during the unit, and what it was before afterwards."""
    with capfd.disabled():
        before = os.fstat(1)
        job(layout)()
        assert os.path.samestat(os.fstat(1), before)
    assert (layout.job_logs / "one.1.log").read_text().count("\n") == 1


def test_under_slurm_job_and_node_are_slurms(layout: RunLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record names the array's element, and the node by Slurm's name for it."""
    told = {
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": "101",
        "SLURM_ARRAY_JOB_ID": "100",
        "SLURM_ARRAY_TASK_ID": "7",
        "SLURM_PROCID": "0",
        "SLURMD_NODENAME": "h100-1",
    }
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    job(layout)()
    (record,) = attempts(layout)
    assert (record.job_id, record.node) == ("100_7", "h100-1")


def test_inside_somebodys_allocation_a_local_unit_is_local(layout: RunLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's variables mean nothing to a unit that the local launcher started."""
    for name, value in {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "55", "SLURM_PROCID": "3"}.items():
        monkeypatch.setenv(name, value)
    job(layout)()
    assert attempts(layout)[0].job_id == "55"


def test_a_job_survives_the_way_to_a_node(layout: RunLayout) -> None:
    """A pickled job is small, equals the original, and holds no path object, which other Pythons could not read."""
    original = job(layout)
    content = pickle.dumps(original)
    assert len(content) < 2000
    assert b"pathlib" not in content
    assert pickle.loads(content) == original  # noqa: S301 - made two lines above


def test_a_cancelled_local_unit_leaves_with_its_record_written(layout: RunLayout, tmp_path: Path) -> None:
    """SIGTERM, even repeated, ends a unit outside of Slurm once, and the attempt says why."""
    (tmp_path / "job.pickle").write_bytes(pickle.dumps(job(layout, seconds=60)))
    # Before and after the unit SIGTERM means nothing, as under submitit.
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    command = f"{ignore}; import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))()"
    with subprocess.Popen([sys.executable, "-c", command, str(tmp_path / "job.pickle")]) as process:
        log = layout.job_logs / "one.1.log"
        while not (log.exists() and log.read_text()) and process.poll() is None:
            pass
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.001)
        assert process.returncode == 128 + signal.SIGTERM
    (record,) = attempts(layout)
    assert record.outcome == "interrupted"
    assert record.reason == "told to stop by SIGTERM: preempted or cancelled"


def test_starting_a_job_imports_nothing_heavy() -> None:
    """Hundreds of array elements pay for every import: no model library, no schema library, no console library."""
    heavy = ("torch", "transformers", "datasets", "lm_eval", "llmcompressor", "pydantic", "rich", "h5py")
    probe = f"import sys, hpcq.launch.job; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
