"""Commands that are killed, doubled, moved and stopped: what is done, alive and cancelled is judged by evidence."""

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

SLOW = REHEARSAL.replace('["bf16", "synthetic-w4a16"]', '["bf16"]').replace(
    "shards = 2", "shards = 1\nbatch_size = 1\nflush_interval_s = 0.5\nrehearsal = { request_seconds = 1.0 }"
)
"""One unit of 25 requests, a second each, and the merge."""
QUICK = ("-O", "evaluate.rehearsal.request_seconds=0.0")


@pytest.fixture
def begin(hpcq: Hpcq) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `hpcq submit` in the background and returns when its unit has answered something."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        command = [str(hpcq.python), "-m", "hpcq", "submit", str(hpcq.write(SLOW)), *words]
        with (hpcq.folder / "output").open("w") as log:
            process = subprocess.Popen(command, cwd=hpcq.folder, stdout=log, stderr=log, text=True)
        started.append(process)
        until(lambda: list(hpcq.folder.glob("runs/rehearsal/segments/*/*.h5")))
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
    for worker in workers(hpcq.folder):
        if is_alive(worker):
            os.kill(int(worker.split()[-2]), signal.SIGKILL)


def until(is_so: Callable[[], object], timeout_s: float = 40) -> None:
    """Wait for it."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            pytest.fail("it did not come to pass")
        time.sleep(0.1)


def workers(folder: Path) -> list[str]:
    """Identities of the processes that ever worked on the run."""
    return [json.loads(path.read_text())["process"] for path in sorted(folder.glob("runs/rehearsal/attempts/*.json"))]


def test_units_whose_command_was_killed_are_stopped_and_taken_up(
    hpcq: Hpcq, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    """After kill -9 of the command its unit lives on; the next submit stops it and goes on where it was."""
    begin().kill()
    (worker,) = workers(hpcq.folder)
    assert is_alive(worker)
    done = hpcq("submit", "manifest.toml", *QUICK)
    assert done.code == 0, done.err
    assert not is_alive(worker)
    first, second = (json.loads(path.read_text()) for path in sorted(hpcq.folder.glob("runs/rehearsal/attempts/ev*")))
    assert second["restored"] > 0
    assert first["total"] == second["total"] == 25
    assert hpcq("merge", "rehearsal", "--json").document["missing"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_command_that_is_told_to_stop_leaves_nothing_running(
    hpcq: Hpcq, begin: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    """A lost connection, a service manager and Ctrl-C end the units too, with exit code 130; what is done is kept."""
    process = begin()
    process.send_signal(number)
    assert process.wait(30) == 130
    assert not any(map(is_alive, workers(hpcq.folder)))
    status = hpcq("status", "rehearsal", "--json")
    assert (status.code, status.document["counts"]) == (1, {"cancelled": 1, "waiting": 1})
    assert hpcq("submit", "manifest.toml", *QUICK).code == 0


def test_cancel_stops_the_command_and_says_so_when_it_has_stopped(
    hpcq: Hpcq, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    """`cancel` returns when nothing works on the run any more."""
    process = begin()
    done = hpcq("cancel", "rehearsal")
    assert (done.code, done.out.startswith("Cancelled 2 units")) == (0, True), done.err
    assert process.wait(5) == 130
    assert not any(map(is_alive, workers(hpcq.folder)))


def test_two_commands_do_not_work_on_one_run(hpcq: Hpcq, begin: Callable[..., subprocess.Popen[str]]) -> None:
    """The second submit is refused in a sentence, exit code 3, while `status` shows that the run goes on."""
    begin()
    done = hpcq("submit", "manifest.toml")
    assert (done.code, done.out) == (3, "")
    assert "another hpcq command is working on this run" in done.err
    assert hpcq("status", "rehearsal", "--json").document["state"] == "running"


def test_a_stranger_with_the_workers_number_is_left_alone(rehearsed: Hpcq) -> None:
    """Numbers of processes come again: neither `cancel` nor `submit` takes a stranger for a unit."""
    with subprocess.Popen(["sleep", "60"]) as stranger:
        path = next(rehearsed.folder.glob("runs/rehearsal/attempts/merge*"))
        old = str(identity(os.getpid())).split()
        record = {**json.loads(path.read_text()), "outcome": "running", "pid": stranger.pid}
        record["process"] = " ".join([*old[:-2], str(stranger.pid), "1"])
        path.write_text(json.dumps(record))
        (rehearsed.folder / "runs" / "rehearsal" / "results.h5").unlink()
        assert rehearsed("cancel", "rehearsal").out.startswith("Nothing to cancel")
        assert rehearsed("submit", "manifest.toml").code == 0
        assert stranger.poll() is None
        stranger.kill()


def test_lost_segments_are_found_by_the_merge_and_made_again(rehearsed: Hpcq) -> None:
    """A run whose segment disappeared is incomplete after the next merge, and `resume` mends it."""
    run = rehearsed.folder / "runs" / "rehearsal"
    next(run.glob("segments/evaluate.*/*.h5")).unlink()
    (run / "results.h5").unlink()
    assert rehearsed("merge", "rehearsal").code == 1
    assert rehearsed("status", "rehearsal").code == 1
    assert rehearsed("resume", "rehearsal").code == 0
    assert rehearsed("merge", "rehearsal", "--json").document["missing"] == 0


def test_another_manifest_never_passes_for_done(rehearsed: Hpcq) -> None:
    """Without the plan that bound the folder, responses of another manifest are still not this one's."""
    (rehearsed.folder / "runs" / "rehearsal" / "plan.json").unlink()
    done = rehearsed("plan", "manifest.toml", "-O", "tasks.limit=7", "--json")
    assert {unit["state"] for unit in done.document["units"] if unit["kind"] == "evaluate"} == {"waiting"}
    assert rehearsed("submit", "manifest.toml", "-O", "tasks.limit=7").code == 0
    assert rehearsed("merge", "rehearsal", "--json").document["missing"] == 0


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}'])
def test_a_damaged_plan_is_mended_by_submitting_again(rehearsed: Hpcq, text: str) -> None:
    """`status` says in a sentence what to type; typing it mends the folder."""
    plan = rehearsed.folder / "runs" / "rehearsal" / "plan.json"
    plan.write_text(text)
    done = rehearsed("status", "rehearsal")
    assert (done.code, done.err.strip()) == (
        3,
        f"{plan}: the plan is missing or damaged; `hpcq resume rehearsal` mends it.",
    )
    assert rehearsed("resume", "rehearsal").code == 0
    assert rehearsed("status", "rehearsal").code == 0


def test_a_run_that_was_moved_is_refused_by_every_verb(rehearsed: Hpcq) -> None:
    """The lock's paths are absolute: a moved or renamed folder is told where it belongs, and nothing is computed."""
    runs = rehearsed.folder / "runs"
    (runs / "rehearsal").rename(runs / "other")
    for verb in ("status", "merge", "resume", "report", "logs", "cancel"):
        done = rehearsed(verb, "other")
        assert (done.code, done.err.strip()) == (
            2,
            f"runs/other: this run was made in {runs}/rehearsal; move it back there to work on it.",
        )
    assert not (runs / "rehearsal").exists()


def test_a_quantization_that_fails_cancels_its_evaluations_with_the_reason(hpcq: Hpcq) -> None:
    """The unquantized variant is evaluated and merged all the same; exit code 1; mended, `resume --failed` finishes."""
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


def test_an_interpreter_that_is_missing_is_the_reason_shown(hpcq: Hpcq) -> None:
    """A unit that cannot begin says why, in `submit` and in `status`."""
    profile = hpcq.folder / "profile.toml"
    profile.write_text(
        'name = "here"\nscheduler = "local"\n[gpu_classes.cpu]\ncpus_per_node = 2\nmemory_gib = 8\n'
        '[environments.core]\npython = "/nowhere/python"\n'
    )
    done = hpcq("submit", hpcq.write(SLOW), "-O", f"cluster.profile={profile}")
    assert done.code == 1
    for text in (done.out, hpcq("status", "rehearsal").out):
        assert "it did not begin" in text
        assert "/nowhere/python" in text
