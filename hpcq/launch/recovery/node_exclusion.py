"""Nodes to exclude from a submission (sbatch --exclude), because a recent attempt failed on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from hpcq.core.attempts import AttemptRecord
from hpcq.core.failures import Failure
from hpcq.launch.recovery.retry_policy import RetryPolicy, excluded_nodes
from hpcq.slurm.scontrol import partition_nodes


def nodes_to_exclude(
    attempts: Mapping[str, Sequence[AttemptRecord]], partition: str | None, policy: RetryPolicy
) -> tuple[str, ...]:
    """Return names of nodes; none if all others are out of service, because a job would wait for those.

    Slurm is queried for the partition's nodes only if some node had a fault.

    Raises:
        SetupError: Slurm does not respond.
    """
    records = [one for of_unit in attempts.values() for one in of_unit]
    if not any(one.failure is Failure.NODE_FAULT for one in records):
        return ()
    known = partition_nodes(partition)
    found = excluded_nodes([one for one in records if one.node in known], policy, datetime.now(UTC))
    in_service = {node for node, is_usable in known.items() if is_usable}
    return () if in_service and in_service <= set(found) else found


def join_excluded(excluded: str | None, faulty: Sequence[str]) -> str:
    """Return the profile's exclusions and those of faulty nodes as one value for sbatch and scontrol."""
    return ",".join([*([excluded] if excluded else []), *faulty])
