"""The table of faults: every kind with its name, and the function whose docstring says how it is inflicted.

To add a kind: a function in one of the files `kinds_of_*.py`, and a row here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults import kinds_of_processes as processes
from tests.faults import kinds_of_slurm as slurm
from tests.faults import kinds_of_storage as storage
from tests.faults import kinds_of_users as users
from tests.faults.scene import Scene

Inflict = Callable[[Scene], str | None]
"""Does it, and says to whom; None where there is nobody whom it could befall now."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    is_cheap: the run soon goes on, so that it may stand in a short campaign. with_user: it needs the run's user
    afterwards, or is that user's own doing.
    """

    name: str
    inflict: Inflict
    is_cheap: bool = False
    with_user: bool = False

    @property
    def how(self) -> str:
        """How it is inflicted: the first line of its docstring."""
        return (self.inflict.__doc__ or "").strip().split("\n", 1)[0]


_TABLE = (
    Kind("SIGKILL worker", processes.kill_worker, is_cheap=True),
    Kind("SIGTERM worker", processes.term_worker, is_cheap=True),
    Kind("SIGUSR2 worker", processes.usr2_worker, is_cheap=True),
    Kind("SIGCONT+SIGTERM worker", processes.cont_term_worker, is_cheap=True),
    Kind("SIGKILL srun", processes.kill_srun, is_cheap=True),
    Kind("SIGKILL step", processes.kill_step, is_cheap=True),
    Kind("SIGKILL batch shell", processes.kill_batch_shell, is_cheap=True),
    Kind("SIGKILL batch step", processes.kill_batch_step),
    Kind("frozen worker", processes.freeze, is_cheap=True),
    Kind("preemption", slurm.preempt, is_cheap=True),
    Kind("scontrol requeue", slurm.requeue, is_cheap=True),
    Kind("scancel", slurm.cancel, with_user=True),
    Kind("time limit", slurm.time_limit),
    Kind("node down", slurm.node_down, is_cheap=True),
    Kind("SIGKILL slurmd", slurm.kill_slurmd),
    Kind("slurmctld restart", slurm.restart_controller),
    Kind("SIGKILL slurmctld", slurm.kill_controller, with_user=True),
    Kind("full disk", storage.fill_disk, with_user=True),
    Kind("torn segment", storage.tear, is_cheap=True, with_user=True),
    Kind("flipped bit", storage.flip, is_cheap=True, with_user=True),
    Kind("clock jump", storage.jump, is_cheap=True),
    Kind("time stamps", storage.touch, is_cheap=True),
    Kind("SIGKILL command", users.kill_a_command, with_user=True),
    Kind("two resumes", users.resume_twice, with_user=True),
    Kind("other shards", users.reshard, with_user=True),
    Kind("doubled job", users.double, is_cheap=True),
)

KINDS = {kind.name: kind for kind in _TABLE}
"""By name."""

LATE = ("torn segment", "flipped bit")
"""What may also befall a run that has ended."""
