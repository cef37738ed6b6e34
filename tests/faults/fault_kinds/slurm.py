"""Faults from Slurm and its administrators: preemption, requeues, limits, nodes and daemons that go down."""

from __future__ import annotations

import signal

from tests.faults.system_under_test import CONTROLLER, SystemUnderTest


def preempt(system: SystemUnderTest) -> str | None:
    """A job in the partition with the highest priority takes GPUs of a unit's node for one second."""
    job = system.pick_job()
    if job is None:
        return None
    gpus = system.random.choice((2, 4))
    submitted = system.slurm(
        "sbatch",
        "--parsable",
        "--partition=hi",
        f"--nodelist={job.node}",
        f"--gres=gpu:{gpus}",
        "--mem=64M",
        "--time=1",
        "--job-name=first",
        "--output=/dev/null",
        f"--chdir={system.cluster.folder}",
        "--wrap=sleep 1",
    )
    if submitted is None:
        return None
    # If its node goes down before it starts, it must not hold GPUs that later trials need.
    system.schedule_undo("preemption", lambda: system.slurm("scancel", submitted.strip()), within_s=(20.0, 20.0))
    return f"{gpus} GPUs of {job.node}, where {job.element} ran"


def requeue(system: SystemUnderTest) -> str | None:
    """`scontrol requeue` by an administrator."""
    job = system.pick_job()
    if job is None or system.slurm("scontrol", "requeue", job.element) is None:
        return None
    return job.element


def cancel(system: SystemUnderTest) -> str | None:
    """`scancel` of a running or pending job: only the user's `hpcq resume` submits it again."""
    job = system.pick_job("RUNNING", "PENDING")
    if job is None or system.slurm("scancel", job.element) is None:
        return None
    system.expect_intervention(f"{job.element} was cancelled")
    return job.element


def reach_time_limit(system: SystemUnderTest) -> str | None:
    """`scontrol update EndTime=`: the job reaches its time limit, which Slurm checks twice a minute."""
    job = system.pick_job()
    if job is None or system.slurm("scontrol", "update", f"JobId={job.element}", "EndTime=now+2") is None:
        return None
    return job.element


def set_node_down(system: SystemUnderTest) -> str | None:
    """`scontrol update State=DOWN` for a node with a unit, and RESUME after some seconds."""
    job = system.pick_job()
    if job is None or not _set_node_state(system, job.node, "DOWN"):
        return None
    system.schedule_undo(
        f"node down {job.node}", lambda: _set_node_state(system, job.node, "RESUME"), within_s=(2.0, 10.0)
    )
    return f"{job.node}, where {job.element} ran"


def _set_node_state(system: SystemUnderTest, node: str, state: str) -> bool:
    output = system.slurm("scontrol", "update", f"NodeName={node}", f"State={state}", "Reason=fault")
    return output is not None


def kill_slurmd(system: SystemUnderTest) -> str | None:
    """SIGKILL to the slurmd of a node with a unit; restarted before or after Slurm notices."""
    job = system.pick_job()
    if job is None:
        return None
    system.cluster.stop_daemon(job.node, signal.SIGKILL)

    def start() -> None:
        system.cluster.start_daemon(job.node)
        _set_node_state(system, job.node, "RESUME")

    system.schedule_undo(f"SIGKILL slurmd {job.node}", start, within_s=(1.0, 15.0))
    return f"{job.node}, where {job.element} ran"


def restart_controller(system: SystemUnderTest) -> str | None:
    """SIGTERM to the controller, as for an update, and a restart after some seconds."""
    return _stop_controller(system, signal.SIGTERM)


def kill_controller(system: SystemUnderTest) -> str | None:
    """SIGKILL to the controller, and a restart after some seconds: state that it had not saved is lost."""
    # Seen with Slurm 22.05: jobs submitted within the last seconds are gone.
    system.expect_intervention("slurmctld was killed")
    return _stop_controller(system, signal.SIGKILL)


def _stop_controller(system: SystemUnderTest, number: signal.Signals) -> str:
    system.cluster.stop_daemon(CONTROLLER, number)
    system.schedule_undo(CONTROLLER, lambda: system.cluster.start_daemon(CONTROLLER), within_s=(0.5, 5.0))
    return CONTROLLER
