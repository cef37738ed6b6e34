"""Commands that are killed, repeated or stopped, and runs that are moved or damaged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpcq.core.processes import identity, is_alive
from tests.command_line import REHEARSAL, Hpcq

REQUESTS = 250
SLOW = (
    REHEARSAL.replace('["bf16", "synthetic-w4a16"]', '["bf16"]')
    .replace("limit = 5", f"limit = {REQUESTS // 5}")
    .replace("shards = 2", "shards = 1\nbatch_size = 1\nflush_interval_s = 0.5\nsynthetic = { request_seconds = 1.0 }")
)
"""One unit of 250 requests, one second each, and the merge."""
QUICK = ("-O", "evaluate.synthetic.request_seconds=0.0")


@pytest.fixture
def start_submit(hpcq: Hpcq) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `hpcq submit` in the background, and return after the unit's first committed response."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> subprocess.Popen[str]:
        command = [str(hpcq.python), "-m", "hpcq", "submit", str(hpcq.write(SLOW)), *options]
        with (hpcq.folder / "output").open("w") as log:
            process = subprocess.Popen(command, cwd=hpcq.folder, stdout=log, stderr=log, text=True)
        started.append(process)
        wait_until(lambda: list(hpcq.folder.glob("runs/rehearsal/segments/*/*.h5")))
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
    for worker in workers(hpcq.folder):
        if is_alive(worker):
            os.kill(int(worker.split()[-2]), signal.SIGKILL)


def wait_until(condition: Callable[[], object], timeout_s: float = 300) -> None:
    """Wait until `condition` returns a true value; fail the test after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"the condition was not met within {timeout_s} s")
        time.sleep(0.1)


def workers(folder: Path) -> list[str]:
    """Return the identities of the processes of all attempts."""
    return [json.loads(path.read_text())["process"] for path in sorted(folder.glob("runs/rehearsal/attempts/*.json"))]


def test_units_of_a_killed_command_are_stopped_and_continued(
    hpcq: Hpcq, start_submit: Callable[..., subprocess.Popen[str]]
) -> None:
    """After SIGKILL of the command its unit keeps running; the next submit stops it and continues its work."""
    start_submit().kill()
    (worker,) = workers(hpcq.folder)
    assert is_alive(worker)
    done = hpcq("submit", "manifest.toml", *QUICK)
    assert done.code == 0, done.err
    assert not is_alive(worker)
    first, second = (json.loads(path.read_text()) for path in sorted(hpcq.folder.glob("runs/rehearsal/attempts/ev*")))
    assert second["restored"] > 0
    assert first["total"] == second["total"] == REQUESTS
    assert hpcq("merge", "rehearsal", "--json").document["missing"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_command_that_receives_a_signal_leaves_nothing_running(
    hpcq: Hpcq, start_submit: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    """SIGTERM, SIGHUP and SIGINT stop the units, too, with exit code 130; committed results are kept."""
    process = start_submit()
    process.send_signal(number)
    assert process.wait() == 130
    assert not any(map(is_alive, workers(hpcq.folder)))
    status = hpcq("status", "rehearsal", "--json")
    assert (status.code, status.document["counts"]) == (1, {"cancelled": 1, "waiting": 1})
    assert hpcq("submit", "manifest.toml", *QUICK).code == 0


def test_cancel_stops_the_command_and_returns_when_it_has_stopped(
    hpcq: Hpcq, start_submit: Callable[..., subprocess.Popen[str]]
) -> None:
    """`cancel` returns when no process works on the run."""
    process = start_submit()
    done = hpcq("cancel", "rehearsal")
    assert (done.code, done.out.startswith("Cancelled 2 units")) == (0, True), done.err
    assert not any(map(is_alive, workers(hpcq.folder)))
    assert process.wait() == 130


def test_two_commands_do_not_work_on_one_run(hpcq: Hpcq, start_submit: Callable[..., subprocess.Popen[str]]) -> None:
    """The second submit is refused, exit code 3, and `status` shows that the run is running."""
    start_submit()
    done = hpcq("submit", "manifest.toml")
    assert (done.code, done.out) == (3, "")
    assert "another hpcq command is working on this run" in done.err
    assert hpcq("status", "rehearsal", "--json").document["state"] == "running"


def test_a_reused_process_id_is_not_mistaken_for_a_unit(finished: Hpcq) -> None:
    """Neither `cancel` nor `submit` stops another process that has got the id of an earlier worker."""
    with subprocess.Popen(["sleep", "3600"]) as other:
        path = next(finished.folder.glob("runs/rehearsal/attempts/merge*"))
        old = str(identity(os.getpid())).split()
        record = {**json.loads(path.read_text()), "outcome": "running", "pid": other.pid}
        record["process"] = " ".join([*old[:-2], str(other.pid), "1"])
        path.write_text(json.dumps(record))
        (finished.folder / "runs" / "rehearsal" / "results.h5").unlink()
        assert finished("cancel", "rehearsal").out.startswith("Nothing to cancel")
        assert finished("submit", "manifest.toml").code == 0
        assert other.poll() is None
        other.kill()


def test_a_record_of_another_version_stops_no_command(finished: Hpcq) -> None:
    """`status` shows the unknown values, and `cancel`, `logs` and `resume` treat the unit as one that has failed."""
    path = next(finished.folder.glob("runs/rehearsal/attempts/merge*"))
    later = {"outcome": "paused", "failure": "melted", "decision": "retry tomorrow", "launcher": "flux"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **later}))
    (finished.folder / "runs" / "rehearsal" / "results.h5").unlink()
    status = finished("status", "rehearsal", "--json")
    (merge,) = (unit for unit in status.document["units"] if unit["kind"] == "merge")
    assert (merge["state"], merge["failure"], merge["decision"]) == ("failed", "unknown", "unknown")
    for value in later.values():
        assert repr(value) in merge["reason"]
    assert finished("status", "rehearsal").code == 1
    assert finished("logs", "rehearsal").code == 0
    assert finished("cancel", "rehearsal").out.startswith("Nothing to cancel")
    assert finished("resume", "rehearsal").code == 0
    assert finished("status", "rehearsal").code == 0


def test_lost_segments_are_found_by_the_merge_and_computed_again(finished: Hpcq) -> None:
    """A run whose segment was removed is incomplete after the next merge, and complete after `resume`."""
    run = finished.folder / "runs" / "rehearsal"
    next(run.glob("segments/evaluate.*/*.h5")).unlink()
    (run / "results.h5").unlink()
    assert finished("merge", "rehearsal").code == 1
    assert finished("status", "rehearsal").code == 1
    assert finished("resume", "rehearsal").code == 0
    assert finished("merge", "rehearsal", "--json").document["missing"] == 0


def test_responses_of_another_manifest_are_not_used(finished: Hpcq) -> None:
    """Without `plan.json`, responses of another manifest still do not count as done."""
    (finished.folder / "runs" / "rehearsal" / "plan.json").unlink()
    done = finished("plan", "manifest.toml", "-O", "tasks.limit=7", "--json")
    assert {unit["state"] for unit in done.document["units"] if unit["kind"] == "evaluate"} == {"waiting"}
    assert finished("submit", "manifest.toml", "-O", "tasks.limit=7").code == 0
    assert finished("merge", "rehearsal", "--json").document["missing"] == 0


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}', '{"units": null}', '{"units": [1]}', '{"units": "abc"}'])
def test_a_damaged_plan_is_written_again_by_resume(finished: Hpcq, text: str) -> None:
    """`status` reports the command that writes it again; afterwards `status` succeeds."""
    plan = finished.folder / "runs" / "rehearsal" / "plan.json"
    plan.write_text(text)
    done = finished("status", "rehearsal")
    assert (done.code, done.err.strip()) == (
        3,
        f"{plan}: the plan is missing or damaged. Run `hpcq resume rehearsal` to write it again.",
    )
    assert finished("resume", "rehearsal").code == 0
    assert finished("status", "rehearsal").code == 0


def test_a_moved_run_is_refused_by_every_verb(finished: Hpcq) -> None:
    """The lock has absolute paths: the message has the original folder, and nothing is computed."""
    runs = finished.folder / "runs"
    (runs / "rehearsal").rename(runs / "other")
    for verb in ("status", "merge", "resume", "report", "logs", "cancel"):
        done = finished(verb, "other")
        assert (done.code, done.err.strip()) == (
            2,
            f"runs/other: this run was created in {runs}/rehearsal. Move the folder back.",
        )
    assert not (runs / "rehearsal").exists()


def test_a_failed_quantization_cancels_its_evaluations_with_the_reason(hpcq: Hpcq) -> None:
    """The unquantized variant is evaluated and merged; exit code 1. After a fix, `resume --failed` completes it."""
    (hpcq.folder / "checkpoints").mkdir()
    blocked = hpcq.folder / "checkpoints" / "llama-3.1-8b-instruct"
    blocked.write_text("a file where a folder should be")
    done = hpcq("submit", hpcq.write(REHEARSAL))
    assert done.code == 1
    document = hpcq("status", "rehearsal", "--json").document
    assert document["counts"] == {"done": 3, "failed": 1, "cancelled": 2}
    reasons = {unit["state"]: unit["reason"] for unit in document["units"]}
    assert str(blocked) in reasons["failed"]
    assert str(blocked) in reasons["cancelled"]
    assert reasons["cancelled"].startswith("quantize.")
    blocked.unlink()
    assert hpcq("resume", "rehearsal", "--failed").code == 0


def test_a_missing_interpreter_is_the_reason_shown(hpcq: Hpcq) -> None:
    """`submit` and `status` show why the unit could not start."""
    profile = hpcq.folder / "profile.toml"
    profile.write_text(
        'name = "here"\nscheduler = "local"\n[gpu_classes.cpu]\ncpus_per_node = 2\nmemory_gib = 8\n'
        '[environments.core]\npython = "/nowhere/python"\n'
    )
    done = hpcq("submit", hpcq.write(SLOW), "-O", f"cluster.profile={profile}")
    assert done.code == 1
    for text in (done.out, hpcq("status", "rehearsal").out):
        assert "it did not start" in text
        assert "/nowhere/python" in text
