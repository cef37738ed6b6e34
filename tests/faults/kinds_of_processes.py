"""Faults that befall processes: kills and signals of all that a job consists of, and a node that freezes.

Knows the parts of a job on its node. Knows nothing of what hpcq does about it.
"""

from __future__ import annotations

import signal

from tests.faults.scene import Job, Scene


def _kill(scene: Scene, role: str) -> Job | None:
    job = scene.pick()
    return job if job and scene.send(scene.process(job, role), signal.SIGKILL) else None


def _scancel_signal(scene: Scene, *numbers: str) -> str | None:
    job = scene.pick()
    if job is None or scene.process(job, "worker") is None:
        return None
    for number in numbers:
        if scene.slurm("scancel", f"--signal={number}", job.element) is None:
            return None
    return job.element


def kill_worker(scene: Scene) -> str | None:
    """The worker's interpreter is killed, as the kernel does when memory runs out."""
    job = _kill(scene, "worker")
    return job.element if job else None


def term_worker(scene: Scene) -> str | None:
    """`scancel --signal=TERM`: the announcement of a preemption, whose end never comes."""
    return _scancel_signal(scene, "TERM")


def usr2_worker(scene: Scene) -> str | None:
    """`scancel --signal=USR2`: the announcement that sbatch --signal orders."""
    return _scancel_signal(scene, "USR2")


def cont_term_worker(scene: Scene) -> str | None:
    """`scancel --signal=CONT`, then TERM: what Slurm sends where preempt_send_user_signal is not set."""
    return _scancel_signal(scene, "CONT", "TERM")


def kill_srun(scene: Scene) -> str | None:
    """The srun in the batch shell is killed: Slurm ends its step, the shell lives on."""
    job = _kill(scene, "srun")
    return job.element if job else None


def kill_step(scene: Scene) -> str | None:
    """The slurmstepd of the worker's step is killed: the worker is nobody's child any more."""
    job = _kill(scene, "step")
    return job.element if job else None


def kill_batch_shell(scene: Scene) -> str | None:
    """The shell that runs the batch script is killed: the job ends with it, and nothing of it can look after itself."""
    return _kill_beyond_repair(scene, "batch shell")


def kill_batch_step(scene: Scene) -> str | None:
    """The slurmstepd of the batch script is killed: Slurm learns only later that the job is gone."""
    return _kill_beyond_repair(scene, "batch step")


def _kill_beyond_repair(scene: Scene, role: str) -> str | None:
    """What dies so is found missing by the run's last job; after that one, by its user."""
    job = _kill(scene, role)
    if job and job.is_merge:
        scene.call_user(f"the {role} of the merge was killed")
    return job.element if job else None


def freeze(scene: Scene) -> str | None:
    """The worker is stopped by SIGSTOP for some seconds, as on a node that swaps or whose file system hangs."""
    job = scene.pick()
    pid = scene.process(job, "worker") if job else None
    if job is None or not scene.send(pid, signal.SIGSTOP):
        return None
    scene.later(f"freeze {job.element}", lambda: scene.send(pid, signal.SIGCONT), within_s=(2.0, 8.0))
    return job.element
