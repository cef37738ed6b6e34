"""`plan` and `submit --dry-run` show what `submit` does next, in every state of the run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import REHEARSAL, Hpcq


def attempts(run: Path) -> Counter[str]:
    """Return the number of attempts of each unit."""
    return Counter(json.loads(path.read_text())["unit"] for path in run.glob("attempts/*.json"))


def fresh(hpcq: Hpcq) -> None:
    """A run that was never submitted."""
    shutil.rmtree(hpcq.folder / "runs")
    shutil.rmtree(hpcq.folder / "checkpoints")


def partly_done(hpcq: Hpcq) -> None:
    """One shard and the merged results are missing."""
    run = hpcq.folder / "runs" / "rehearsal"
    (run / "results.h5").unlink()
    shutil.rmtree(next(run.glob("segments/evaluate.*synthetic*0of2")))


def finished_already(_hpcq: Hpcq) -> None:
    """Nothing is missing."""


def with_a_permanent_failure(hpcq: Hpcq) -> None:
    """The quantization has failed permanently, its evaluations and one of the base model are missing."""
    run = hpcq.folder / "runs" / "rehearsal"
    partly_done(hpcq)
    for folder in run.glob("segments/evaluate.*"):
        if "synthetic" in folder.name or folder.name.endswith("1of2"):
            shutil.rmtree(folder)
    shutil.rmtree(hpcq.folder / "checkpoints")
    [record] = run.glob("attempts/quantize.*.json")
    content = json.loads(record.read_text())
    record.write_text(
        json.dumps(
            {**content, "outcome": "failed", "failure": "killed", "reason": "it did", "decision": "failed permanently"}
        )
    )


@pytest.mark.parametrize(
    ("prepare", "kinds"),
    [
        (fresh, {"quantize": 1, "evaluate": 4, "merge": 1}),
        (partly_done, {"evaluate": 1, "merge": 1}),
        (finished_already, {}),
        (with_a_permanent_failure, {"evaluate": 1, "merge": 1}),
    ],
)
def test_submit_runs_exactly_the_units_of_the_dry_run(
    finished: Hpcq, prepare: Callable[[Hpcq], None], kinds: dict[str, int]
) -> None:
    """With the local scheduler, each unit in the arrays gets one attempt, and no other unit does."""
    prepare(finished)
    shown = [finished(*verb, "manifest.toml", "--json").document for verb in (["plan"], ["submit", "--dry-run"])]
    assert shown[0] == shown[1]
    units = [unit for array in shown[0]["arrays"] for unit in array["units"]]
    assert Counter(unit.partition(".")[0] for unit in units) == kinds
    run = finished.folder / "runs" / "rehearsal"
    before = attempts(run)
    finished("submit", "manifest.toml")
    assert attempts(run) - before == Counter(units)


def test_a_plan_says_which_units_it_does_not_submit(finished: Hpcq) -> None:
    """Units that have failed permanently are counted, with the command that submits them."""
    with_a_permanent_failure(finished)
    lines = finished("plan", "manifest.toml").out.splitlines()
    assert "already done: 1 of 6 units" in lines
    assert "failed permanently: 1 of 6 units; submit them with `hpcq resume rehearsal --failed`" in lines


def test_a_unit_whose_command_was_killed_is_shown_and_submitted(hpcq: Hpcq) -> None:
    """While the command lives, `plan` says so; once it is dead, the unit is shown, as `submit` stops and repeats it."""
    manifest = hpcq.write(
        REHEARSAL.replace(', "synthetic-w4a16"', "").replace("shards = 2", "synthetic = { load_seconds = 600.0 }")
    )
    run = hpcq.folder / "runs" / "rehearsal"
    command = subprocess.Popen(
        [hpcq.python, "-m", "hpcq", "submit", manifest],
        cwd=hpcq.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (records := list(run.glob("attempts/evaluate.*.json"))):
        assert command.poll() is None
        time.sleep(0.05)
    assert "another hpcq command is working on this run: `submit` refuses" in hpcq("plan", manifest).out
    command.kill()
    command.wait()
    unit = json.loads(records[0].read_text())
    try:
        document = hpcq("plan", manifest, "--json").document
        assert [row["state"] for row in document["units"]] == ["running", "waiting"]
        assert [array["kind"] for array in document["arrays"]] == ["evaluate", "merge"]
    finally:
        os.kill(unit["pid"], signal.SIGKILL)


def test_slurm_that_does_not_answer_is_named(finished: Hpcq) -> None:
    """A run with submissions is planned without Slurm, with the reason why its queue is unknown."""
    run, folder = finished.folder / "runs" / "rehearsal", finished.folder
    (run / "submissions").mkdir()
    submission = {"array": "a", "part": 0, "job_id": "7", "units": ["x"], "folder": str(folder), "time": "2026-01-01"}
    (run / "submissions" / "a.7.json").write_text(json.dumps(submission))
    (folder / "empty").mkdir()
    without = {"PATH": str(folder / "empty")}
    planned = finished("plan", "manifest.toml", env=without)
    assert planned.code == 0, planned.err
    assert "pending and running units are unknown, and count as missing: " in planned.out
    assert finished("plan", "manifest.toml", "--json", env=without).document["slurm_error"]
    assert finished("submit", "--dry-run", "manifest.toml", env=without).code == 3
