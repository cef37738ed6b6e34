"""Why Slurm rejects a job or cannot start it, and the profile's key that corrects it.

Reasons of pending jobs are those of squeue's manual, section "JOB REASON CODES" (22.05 to 25.05). sbatch has no exit
codes for its errors; its messages are those of Slurm's slurm_errno.c, the same in these versions.
"""

from __future__ import annotations

import re

from hpcq.core.frozen import dataclass

_CLASS = "gpu_classes.{gpu_class}"
_RESOURCES = f"{_CLASS}.memory_gib, cpus_per_unit, gpus_per_node or features"


@dataclass(frozen=True, kw_only=True)
class StartProblem:
    """Why a pending job does not start, although its turn may have come.

    Attributes:
        cause: Explanation of Slurm's reason, without a period.
        key: Key of the profile that corrects it, with `{gpu_class}` for the name of the class. None: no key does.
        is_permanent: The job does not start unless its request, the cluster or a limit changes.
        is_released: Slurm failed to start the job and holds it; `resume` releases it.
    """

    cause: str
    key: str | None = None
    is_permanent: bool = True
    is_released: bool = False


_REQUEUED_AND_HELD = StartProblem(
    cause="Slurm has requeued and holds them (`scontrol requeuehold`, or RequeueExitHold of the site)",
    is_permanent=False,
    is_released=True,
)

_PROBLEMS = {
    "PartitionTimeLimit": StartProblem(
        cause="their time limit exceeds that of the partition", key=f"{_CLASS}.max_minutes"
    ),
    "PartitionNodeLimit": StartProblem(
        cause="the partition has fewer nodes, or allows fewer per job", key=f"{_CLASS}.nodes"
    ),
    # Also for a limit of the partition, until Slurm names it.
    "PartitionConfig": StartProblem(
        cause="they exceed a limit of the partition, or the resources of its nodes",
        key=f"{_CLASS}.max_minutes, nodes, memory_gib, cpus_per_unit, gpus_per_node or features",
    ),
    "PartitionDown": StartProblem(
        cause="the partition is not in service", key=f"{_CLASS}.partition", is_permanent=False
    ),
    "PartitionInactive": StartProblem(
        cause="the partition is not in service", key=f"{_CLASS}.partition", is_permanent=False
    ),
    "BadConstraints": StartProblem(cause="no node has the requested resources and features", key=_RESOURCES),
    "InvalidAccount": StartProblem(cause="the account is not valid", key="slurm.account"),
    "AccountNotAllowed": StartProblem(cause="the partition does not allow the account", key="slurm.account"),
    "InvalidQOS": StartProblem(cause="the QOS is not valid", key="slurm.qos"),
    "QOSNotAllowed": StartProblem(cause="the partition or the account does not allow the QOS", key="slurm.qos"),
    "ReservationDeleted": StartProblem(cause="the reservation no longer exists", key="slurm.extra.reservation"),
    "MaxMemPerLimit": StartProblem(
        cause="the memory exceeds the limit per CPU or node", key=f"{_CLASS}.memory_gib_per_unit"
    ),
    "launch failed requeued held": StartProblem(
        cause="a node failed to start them (its prolog, for example), and Slurm holds them; see `sinfo -R`",
        is_permanent=False,
        is_released=True,
    ),
    "user env retrieval failed requeued held": StartProblem(
        cause="a node did not get the user's environment, and Slurm holds them; see `sinfo -R`",
        is_permanent=False,
        is_released=True,
    ),
    "job requeued in held state": _REQUEUED_AND_HELD,
    "job requeued in special exit state": _REQUEUED_AND_HELD,
    "JobHoldMaxRequeue": StartProblem(cause="Slurm has requeued them too often (max_batch_requeue), and holds them"),
    "JobHeldAdmin": StartProblem(cause="an administrator holds them; ask the administrators", is_permanent=False),
    "JobHeldUser": StartProblem(cause="they are held; `scontrol release` releases them", is_permanent=False),
}

_LIMIT = re.compile(
    r"(?P<of>Assoc|QOS)"
    r"(?:Grp(?!\w*(?:Jobs|RunMinutes))(?:\w*(?P<spent>Minutes))?|(?P<job>Min|Max\w+?Per(?:Job|Node)))\w*"
)
"""Limits of an account (association) or a QOS: of all jobs together, or their budget; or of each job.

Limits on the number of jobs, and limits of a user, are not included: jobs start when others of the user have ended.
"""

_UNAVAILABLE = re.compile(r"ReqNodeNotAvail, *UnavailableNodes:(?P<nodes>\S+)")
"""Nodes that the job may use are down or drained. Without them: a reservation, or a maintenance, which ends."""

_REJECTIONS = {
    "Invalid account": "slurm.account",
    "Invalid qos": "slurm.qos",
    "Requested reservation is invalid": "slurm.extra.reservation",
    "Access denied to requested reservation": "slurm.extra.reservation",
    "Requested time limit is invalid": "gpu_classes.NAME.max_minutes",
    "nvalid partition": "gpu_classes.NAME.partition",
    "Required partition not available": "gpu_classes.NAME.partition",
    "User's group not permitted to use this partition": "gpu_classes.NAME.partition",
    "Invalid node name": "slurm.exclude",
    "Invalid feature": "gpu_classes.NAME.features",
    "Invalid generic resource": "gpu_classes.NAME.gres_type",
    "Invalid license": "slurm.extra.licenses",
    "Invalid wckey": "slurm.extra.wckey",
    "Invalid cluster name": "slurm.cluster",
    "invalid entry for --cluster": "slurm.cluster",
    "Memory specification can not be satisfied": "gpu_classes.NAME.memory_gib_per_unit",
    "Memory required by task is not available": "gpu_classes.NAME.memory_gib_per_unit",
    "node configuration is not available": "gres_type, features, memory_gib or cpus_per_unit of the class",
    "Node count specification invalid": "gpu_classes.NAME.nodes",
    "More processors requested than permitted": "gpu_classes.NAME.cpus_per_unit",
}
"""Parts of sbatch's messages, the most specific first, and the key that corrects the request."""


def start_problem(reason: str | None) -> StartProblem | None:
    """Return why a pending job does not start, by the reason that squeue prints; None: it waits as usual."""
    if reason is None:
        return None
    if found := _UNAVAILABLE.match(reason):
        return StartProblem(
            cause=f"the nodes that they may use are down or drained ({found['nodes']}), see `sinfo -R`",
            key=f"{_CLASS}.exclude or partition",
        )
    if found := _LIMIT.fullmatch(reason):
        owner, key = {"Assoc": ("the account", "slurm.account"), "QOS": ("the QOS", "slurm.qos")}[found["of"]]
        if found["spent"]:
            return StartProblem(cause=f"the budget of {owner} is spent", key=key)
        if found["job"]:
            return StartProblem(cause=f"a job exceeds a limit of {owner}", key=key)
        return StartProblem(cause=f"a limit of {owner} for all of its jobs is reached", key=key, is_permanent=False)
    return _PROBLEMS.get(reason.partition(",")[0].replace("_", " "))


def key_to_correct(output: str) -> str | None:
    """Return the key of the profile that corrects a request that sbatch rejects with `output`; None: unknown."""
    return next((key for phrase, key in _REJECTIONS.items() if phrase in output), None)
