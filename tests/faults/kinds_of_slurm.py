"""Faults that come from Slurm and its administrators: preemption, requeues, limits, nodes and daemons that go down.

Knows Slurm's commands and the virtual cluster's daemons. Knows nothing of what hpcq does about it.
"""

from __future__ import annotations

import signal

from tests.faults.scene import CONTROLLER, Scene


def preempt(scene: Scene) -> str | None:
    """A job of the partition with the highest priority takes GPUs of the node where a unit runs, for a second."""
    job = scene.pick()
    if job is None:
        return None
    gpus = scene.random.choice((2, 4))
    submitted = scene.slurm(
        "sbatch",
        "--parsable",
        "--partition=hi",
        f"--nodelist={job.node}",
        f"--gres=gpu:{gpus}",
        "--mem=64M",
        "--time=1",
        "--job-name=first",
        "--output=/dev/null",
        f"--chdir={scene.cluster.folder}",
        "--wrap=sleep 1",
    )
    if submitted is None:
        return None
    # Should it never begin, because its node went down, it must not take what later rounds need.
    scene.later("preemption", lambda: scene.slurm("scancel", submitted.strip()), within_s=(20.0, 20.0))
    return f"{gpus} GPUs of {job.node}, where {job.element} ran"


def requeue(scene: Scene) -> str | None:
    """`scontrol requeue`, as an administrator types it."""
    job = scene.pick()
    if job is None or scene.slurm("scontrol", "requeue", job.element) is None:
        return None
    return job.element


def cancel(scene: Scene) -> str | None:
    """`scancel` of a job that waits or runs: nothing but its user's `hpcq resume` brings it back."""
    job = scene.pick("RUNNING", "PENDING")
    if job is None or scene.slurm("scancel", job.element) is None:
        return None
    scene.call_user(f"{job.element} was cancelled")
    return job.element


def time_limit(scene: Scene) -> str | None:
    """`scontrol update EndTime=`: the job's time is up; Slurm looks for such jobs twice a minute."""
    job = scene.pick()
    if job is None or scene.slurm("scontrol", "update", f"JobId={job.element}", "EndTime=now+2") is None:
        return None
    return job.element


def node_down(scene: Scene) -> str | None:
    """`scontrol update State=DOWN` of a node with a unit, and RESUME after some seconds."""
    job = scene.pick()
    if job is None or not _set_state(scene, job.node, "DOWN"):
        return None
    scene.later(f"node down {job.node}", lambda: _set_state(scene, job.node, "RESUME"), within_s=(2.0, 10.0))
    return f"{job.node}, where {job.element} ran"


def _set_state(scene: Scene, node: str, state: str) -> bool:
    told = scene.slurm("scontrol", "update", f"NodeName={node}", f"State={state}", "Reason=fault")
    return told is not None


def kill_slurmd(scene: Scene) -> str | None:
    """The slurmd of a node with a unit is killed, and started again when Slurm may or may not have missed it."""
    job = scene.pick()
    if job is None:
        return None
    scene.cluster.stop_daemon(job.node, signal.SIGKILL)

    def start() -> None:
        scene.cluster.start_daemon(job.node)
        _set_state(scene, job.node, "RESUME")

    scene.later(f"SIGKILL slurmd {job.node}", start, within_s=(1.0, 15.0))
    return f"{job.node}, where {job.element} ran"


def restart_controller(scene: Scene) -> str | None:
    """The controller is stopped by SIGTERM, as for an update, and started again after some seconds."""
    return _stop_controller(scene, signal.SIGTERM)


def kill_controller(scene: Scene) -> str | None:
    """The controller is killed, and started again after some seconds: what it had not yet saved is forgotten."""
    # Seen with Slurm 22.05: jobs submitted within the last seconds are gone.
    scene.call_user("slurmctld was killed")
    return _stop_controller(scene, signal.SIGKILL)


def _stop_controller(scene: Scene, number: signal.Signals) -> str:
    scene.cluster.stop_daemon(CONTROLLER, number)
    scene.later(CONTROLLER, lambda: scene.cluster.start_daemon(CONTROLLER), within_s=(0.5, 5.0))
    return CONTROLLER
