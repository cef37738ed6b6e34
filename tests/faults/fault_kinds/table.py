"""Table of fault kinds. To add one: a function in a module of this folder, and a row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.fault_kinds import processes, slurm, storage, users
from tests.faults.system_under_test import SystemUnderTest

Inject = Callable[[SystemUnderTest], str | None]
"""Injects a fault and returns its target; None: there is no target at present."""


@dataclass(frozen=True)
class FaultKind:
    """Kind of fault.

    Attributes:
        name: Name in reports and for `--kinds`.
        inject: Function that injects it.
        is_fast: The run recovers within seconds, so the kind is used in the short campaign of the test suite.
        needs_user: Recovery may need the user (`hpcq resume`), or the fault is an action of the user.
    """

    name: str
    inject: Inject
    is_fast: bool = False
    needs_user: bool = False

    @property
    def description(self) -> str:
        """First line of the docstring of `inject`."""
        return (self.inject.__doc__ or "").strip().split("\n", 1)[0]


_TABLE = (
    FaultKind("SIGKILL worker", processes.kill_worker, is_fast=True),
    FaultKind("SIGTERM worker", processes.term_worker, is_fast=True),
    FaultKind("SIGUSR2 worker", processes.usr2_worker, is_fast=True),
    FaultKind("SIGCONT+SIGTERM worker", processes.cont_term_worker, is_fast=True),
    FaultKind("SIGKILL srun", processes.kill_srun, is_fast=True),
    FaultKind("SIGKILL step", processes.kill_step, is_fast=True),
    FaultKind("SIGKILL batch shell", processes.kill_batch_shell, is_fast=True),
    FaultKind("SIGKILL batch step", processes.kill_batch_step),
    FaultKind("frozen worker", processes.freeze_worker, is_fast=True),
    FaultKind("preemption", slurm.preempt, is_fast=True),
    FaultKind("scontrol requeue", slurm.requeue, is_fast=True),
    FaultKind("scancel", slurm.cancel, needs_user=True),
    FaultKind("time limit", slurm.reach_time_limit),
    FaultKind("node down", slurm.set_node_down, is_fast=True),
    FaultKind("SIGKILL slurmd", slurm.kill_slurmd),
    FaultKind("slurmctld restart", slurm.restart_controller),
    FaultKind("SIGKILL slurmctld", slurm.kill_controller, needs_user=True),
    FaultKind("full disk", storage.fill_disk, needs_user=True),
    FaultKind("truncated segment", storage.truncate_segment, is_fast=True, needs_user=True),
    FaultKind("bit flip", storage.flip_bit, is_fast=True, needs_user=True),
    FaultKind("clock jump", storage.set_clocks, is_fast=True),
    FaultKind("file times", storage.change_file_times, is_fast=True),
    FaultKind("SIGKILL command", users.kill_hpcq_command, needs_user=True),
    FaultKind("concurrent resumes", users.resume_twice, needs_user=True),
    FaultKind("resharding", users.reshard, needs_user=True),
    FaultKind("duplicate job", users.duplicate_job, is_fast=True),
)

FAULT_KINDS = {kind.name: kind for kind in _TABLE}
"""All kinds by name."""

KILLED_COMMAND = "SIGKILL command"
"""Kind that also counts killed `hpcq submit` commands."""

AFTER_RUN = ("truncated segment", "bit flip")
"""Kinds that can also be injected into a run that is done."""
