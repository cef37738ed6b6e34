"""Faults caused by users: commands that are killed, run concurrently, or bypass hpcq."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from hpcq.launch.job_script import script
from hpcq.launch.submission_files import job_command
from tests.faults.system_under_test import ACTIVE_STATES, ENVIRONMENT_ERROR, USER_INPUT_ERROR, SystemUnderTest

_MAX_COMMAND_S = 2.5
_CANCEL_TIMEOUT_S = 20.0
_POLL_INTERVAL_S = 0.3


def start_command(system: SystemUnderTest, *arguments: str) -> subprocess.Popen[bytes]:
    """Start an hpcq command without waiting for it."""
    return subprocess.Popen(
        [str(system.hpcq.python), "-m", "hpcq", *arguments],
        cwd=system.hpcq.folder,
        env=system.cluster.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def kill_command(system: SystemUnderTest, *arguments: str) -> None:
    """Start an hpcq command and kill it after a random time."""
    process = start_command(system, *arguments)
    time.sleep(system.random.uniform(0.1, _MAX_COMMAND_S))
    process.kill()
    output, _ = process.communicate()
    system.check_output(
        arguments, process.returncode, output.decode(errors="replace"), (-signal.SIGKILL, 0, 1, ENVIRONMENT_ERROR)
    )


def kill_hpcq_command(system: SystemUnderTest) -> str | None:
    """`hpcq resume`, `merge` or `status` is started, and killed after a random time."""
    verb = system.random.choice(("resume", "merge", "status"))
    kill_command(system, verb, system.layout.name)
    return f"hpcq {verb}"


def resume_twice(system: SystemUnderTest) -> str | None:
    """Two concurrent `hpcq resume` commands while the run is active."""
    arguments = ("resume", system.layout.name)
    for process in [start_command(system, *arguments) for _ in range(2)]:
        output, _ = process.communicate()
        system.check_output(arguments, process.returncode, output.decode(errors="replace"), (0, 1, ENVIRONMENT_ERROR))
    return "hpcq resume"


def duplicate_job(system: SystemUnderTest) -> str | None:
    """The command of a running job is started a second time, without Slurm and hpcq."""
    job = system.pick_job(merges=False)
    if job is None:
        return None
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SUBMITIT_"))}
    index = int(job.element.partition("_")[2] or 0)
    command = (
        script("enter.sh"),
        job.folder / "environment.sh",
        *job_command([str(system.hpcq.python)], job.folder, index),
    )
    with (system.hpcq.folder / "duplicate-jobs.log").open("ab") as log:
        system.duplicate_jobs.append(
            subprocess.Popen(
                ["bash", *map(str, command)],
                cwd=system.hpcq.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        )
    return job.element


def reshard(system: SystemUnderTest) -> str | None:
    """`hpcq cancel`, then `hpcq resume -O evaluate.shards=` with another number when no job is left."""
    if not system.jobs(*ACTIVE_STATES):
        return None
    system.run_command("cancel", system.layout.name)
    system.expect_intervention("the run was cancelled")
    deadline_s = time.monotonic() + _CANCEL_TIMEOUT_S
    while system.jobs(*ACTIVE_STATES) != [] and time.monotonic() < deadline_s:
        system.undo_due()
        time.sleep(_POLL_INTERVAL_S)
    shards = system.random.randint(1, 8)
    # Refused while jobs of the old shards exist: a later `hpcq resume` without options continues them.
    system.run_command(
        "resume",
        system.layout.name,
        "-O",
        f"evaluate.shards={shards}",
        expected_codes=(0, 1, USER_INPUT_ERROR, ENVIRONMENT_ERROR),
    )
    return f"{shards} shards"
