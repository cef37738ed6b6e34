"""The job of a unit: its attempt record, its log, and its exit code for the scheduler."""

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
from hpcq.launch.recovery.signals import TERMINATION_SIGNALS
from tests.slurm.synthetic_units import layout_at, synthetic_array, synthetic_unit

SLURM = ("SUBMITIT_EXECUTOR", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID", "SLURM_PROCID")


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunLayout]:
    """A run without a scheduler. Signal handlers are restored, because a job under Slurm leaves them ignored."""
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)
    handlers = {number: signal.getsignal(number) for number in TERMINATION_SIGNALS}
    yield layout_at(tmp_path)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def job(layout: RunLayout, *, fails: bool = False, seconds: float = 0.0) -> UnitJob:
    """The job of a synthetic unit."""
    spec = synthetic_array(layout, "one", [synthetic_unit(layout, "one", runs_out_of_memory=fails, seconds=seconds)])
    return UnitJob.from_spec(spec, spec.units[0], layout)


def attempts(layout: RunLayout) -> list[AttemptRecord]:
    """The recorded attempts of the unit."""
    return read_attempts(layout.attempts)["one"]


def test_a_successful_unit_is_recorded_as_done(layout: RunLayout) -> None:
    """The attempt has its process, its times and its outcome."""
    job(layout)()
    (record,) = attempts(layout)
    assert (record.outcome, record.reason, record.attempt, record.pid) == ("done", None, 1, os.getpid())
    assert str(record.end) >= record.start
    assert record.total == 4


def test_a_failure_is_recorded_in_one_sentence_and_sets_the_exit_code(
    layout: RunLayout, capfd: pytest.CaptureFixture[str]
) -> None:
    """The scheduler gets the failure class's exit code, the attempt the message, the unit's log the traceback."""
    with capfd.disabled(), pytest.raises(SystemExit) as exited:
        job(layout, fails=True)()
    assert exited.value.code == EXIT_CODES[Failure.OUT_OF_MEMORY]
    (record,) = attempts(layout)
    assert (record.outcome, record.reason) == ("failed", "MemoryError: no message")
    assert (record.failure, record.decision) == ("out of memory", None)
    log = (layout.job_logs / "one.1.log").read_text()
    assert log.startswith("one: attempt 1, job ")
    assert "Traceback" in log


def test_a_second_run_is_a_new_attempt_with_its_own_log(layout: RunLayout) -> None:
    """Attempts and their logs are numbered."""
    job(layout)()
    job(layout)()
    assert [(record.attempt, record.outcome) for record in attempts(layout)] == [(1, "done"), (2, "done")]
    assert sorted(path.name for path in layout.job_logs.iterdir()) == ["one.1.log", "one.2.log"]


def test_the_output_is_restored_after_the_unit(layout: RunLayout, capfd: pytest.CaptureFixture[str]) -> None:
    """File descriptor 1 is the unit's log during the unit, and the previous file afterwards."""
    with capfd.disabled():
        before = os.fstat(1)
        job(layout)()
        assert os.path.samestat(os.fstat(1), before)
    assert (layout.job_logs / "one.1.log").read_text().count("\n") == 1


def test_under_slurm_job_and_node_have_slurms_names(layout: RunLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record has the id of the array element and Slurm's name of the node."""
    variables = {
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": "101",
        "SLURM_ARRAY_JOB_ID": "100",
        "SLURM_ARRAY_TASK_ID": "7",
        "SLURM_PROCID": "0",
        "SLURMD_NODENAME": "h100-1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    job(layout)()
    (record,) = attempts(layout)
    assert (record.job_id, record.node) == ("100_7", "h100-1")


def test_inside_an_allocation_a_local_unit_is_local(layout: RunLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit of the local launcher ignores Slurm's variables."""
    for name, value in {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "55", "SLURM_PROCID": "3"}.items():
        monkeypatch.setenv(name, value)
    job(layout)()
    assert attempts(layout)[0].job_id == "55"


def test_a_pickled_job_is_small_and_portable(layout: RunLayout) -> None:
    """It equals the original and contains no path object, which other Python versions could not read."""
    original = job(layout)
    content = pickle.dumps(original)
    assert len(content) < 2000
    assert b"pathlib" not in content
    assert pickle.loads(content) == original  # noqa: S301 - made two lines above


def test_a_cancelled_local_unit_writes_its_record_before_it_exits(layout: RunLayout, tmp_path: Path) -> None:
    """SIGTERM, even repeated, interrupts a unit outside of Slurm once, and the attempt has the reason."""
    (tmp_path / "job.pickle").write_bytes(pickle.dumps(job(layout, seconds=3600)))
    # SIGTERM is ignored before and after the unit, as under submitit.
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    command = f"{ignore}; import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))()"
    with subprocess.Popen([sys.executable, "-c", command, str(tmp_path / "job.pickle")]) as process:
        log = layout.job_logs / "one.1.log"
        while not (log.exists() and log.read_text()) and process.poll() is None:
            time.sleep(0.01)
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.001)
        assert process.returncode == 128 + signal.SIGTERM
    (record,) = attempts(layout)
    assert record.outcome == "interrupted"
    assert record.reason == "received SIGTERM: preempted or cancelled"


def test_starting_a_job_imports_nothing_heavy() -> None:
    """Hundreds of array elements pay for each import: no model, schema or console library, no h5py."""
    heavy = ("torch", "transformers", "datasets", "lm_eval", "llmcompressor", "pydantic", "rich", "h5py")
    probe = f"import sys, hpcq.launch.job; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
