"""Faults of processes: kills and signals for each process of a job, and a frozen worker."""

from __future__ import annotations

import signal

from tests.faults.system_under_test import Job, SystemUnderTest


def _kill(system: SystemUnderTest, role: str) -> Job | None:
    job = system.pick_job()
    return job if job and system.send_signal(system.find_pid(job, role), signal.SIGKILL) else None


def _scancel_signals(system: SystemUnderTest, *names: str) -> str | None:
    job = system.pick_job()
    if job is None or system.find_pid(job, "worker") is None:
        return None
    for name in names:
        if system.slurm("scancel", f"--signal={name}", job.element) is None:
            return None
    return job.element


def kill_worker(system: SystemUnderTest) -> str | None:
    """SIGKILL to the worker's interpreter, as the kernel does when memory is exhausted."""
    job = _kill(system, "worker")
    return job.element if job else None


def term_worker(system: SystemUnderTest) -> str | None:
    """`scancel --signal=TERM`: the signal of a preemption, which is not followed by a kill."""
    return _scancel_signals(system, "TERM")


def usr2_worker(system: SystemUnderTest) -> str | None:
    """`scancel --signal=USR2`: the signal that `sbatch --signal` requests before the time limit."""
    return _scancel_signals(system, "USR2")


def cont_term_worker(system: SystemUnderTest) -> str | None:
    """`scancel --signal=CONT`, then TERM: what Slurm sends if preempt_send_user_signal is not set."""
    return _scancel_signals(system, "CONT", "TERM")


def kill_srun(system: SystemUnderTest) -> str | None:
    """SIGKILL to the srun of the batch shell: Slurm ends its step, the shell continues."""
    job = _kill(system, "srun")
    return job.element if job else None


def kill_step(system: SystemUnderTest) -> str | None:
    """SIGKILL to the slurmstepd of the worker's step: the worker becomes an orphan."""
    job = _kill(system, "step")
    return job.element if job else None


def kill_batch_shell(system: SystemUnderTest) -> str | None:
    """SIGKILL to the shell of the batch script: the job ends without its epilogue."""
    return _kill_without_epilogue(system, "batch shell")


def kill_batch_step(system: SystemUnderTest) -> str | None:
    """SIGKILL to the slurmstepd of the batch script: Slurm notices later that the job has ended."""
    return _kill_without_epilogue(system, "batch step")


def _kill_without_epilogue(system: SystemUnderTest, role: str) -> str | None:
    """Kill a job without its epilogue. The merge job submits such jobs again; the merge job itself needs the user."""
    job = _kill(system, role)
    if job and job.is_merge:
        system.expect_intervention(f"the {role} of the merge was killed")
    return job.element if job else None


def freeze_worker(system: SystemUnderTest) -> str | None:
    """SIGSTOP to the worker for some seconds, as on a node that swaps or whose file system hangs."""
    job = system.pick_job()
    pid = system.find_pid(job, "worker") if job else None
    if job is None or not system.send_signal(pid, signal.SIGSTOP):
        return None
    system.schedule_undo(f"freeze {job.element}", lambda: system.send_signal(pid, signal.SIGCONT), within_s=(2.0, 8.0))
    return job.element
