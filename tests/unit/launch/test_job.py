"""The job of a unit: its attempt record, its log, and its exit code for the scheduler."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcq.core.attempts import AttemptRecord, read_attempts
from hpcq.core.errors import SetupError
from hpcq.core.failures import EXIT_CODES, Failure
from hpcq.core.paths import RunLayout
from hpcq.launch.job import RECORDS_NAME, UnitJob, read_job
from hpcq.launch.recovery.signals import TERMINATION_SIGNALS
from hpcq.launch.submission_files import write_records
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
    for name, value in {"SUBMITIT_EXECUTOR": "local", "SLURM_PROCID": "3"}.items():
        monkeypatch.setenv(name, value)
    job(layout)()
    assert attempts(layout)[0].job_id == str(os.getpid())


def test_a_written_job_is_small_and_plain(layout: RunLayout, tmp_path: Path) -> None:
    """Each element reads its own line, which equals the original: data without a program."""
    first, second = job(layout), job(layout, fails=True)
    write_records(tmp_path, [first, second])
    lines = (tmp_path / RECORDS_NAME).read_text().splitlines()
    assert all(len(line) < 3000 and json.loads(line)["unit_id"] == "one" for line in lines)
    assert [read_job(tmp_path, index) for index in range(2)] == [first, second]
    with pytest.raises(SetupError, match="none for element 2"):
        read_job(tmp_path, 2)


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ('"unit_id": "one"', '"unit_id": 1', r"UnitJob.unit_id: expected a value of type str, found 1"),
        ('"gpus": 0', '"gpus": 0, "command": "rm"', r"UnitJob: unknown field 'command'"),
        ('"run": ', '"other": ', r"unknown field 'other'"),
        ('"kind": "evaluate"', '"kind": "other"', r"UnitJob.work: expected one of 4 types"),
        ('"unit_id"', "unit_id", "is not JSON"),
    ],
)
def test_a_damaged_record_is_refused(layout: RunLayout, tmp_path: Path, before: str, after: str, problem: str) -> None:
    """What is no record of a unit runs nothing: the message names the file and the field."""
    write_records(tmp_path, [job(layout)])
    path = tmp_path / RECORDS_NAME
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(SetupError, match=rf"{path}: .*{problem}"):
        read_job(tmp_path, 0)


def test_a_cancelled_local_unit_writes_its_record_before_it_exits(layout: RunLayout, tmp_path: Path) -> None:
    """SIGTERM, even repeated, interrupts a unit outside of Slurm once, and the attempt has the reason."""
    write_records(tmp_path, [job(layout, seconds=3600)])
    # SIGTERM is ignored before and after the unit, as under a launcher that ignores it.
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    command = f"{ignore}; import sys; from hpcq.launch import job; job.main([sys.argv[1], '0'])"
    with subprocess.Popen([sys.executable, "-c", command, str(tmp_path)]) as process:
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
