"""Which nodes a submission avoids: those of its partition that had a fault of late, as the attempts' records say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from hpcq.core.attempts import AttemptRecord
from hpcq.core.failures import Failure
from hpcq.launch.recovery.retry_policy import Policy, excluded_nodes
from hpcq.slurm.scontrol import nodes_of


def nodes_to_avoid(
    attempts: Mapping[str, Sequence[AttemptRecord]], partition: str | None, policy: Policy
) -> tuple[str, ...]:
    """Names of nodes. Slurm is asked for the partition's only where a node had a fault.

    Raises:
        SetupError: Slurm does not answer.
    """
    faults = [one for records in attempts.values() for one in records if one.failure == Failure.NODE_FAULT]
    if not faults:
        return ()
    known = nodes_of(partition)
    return excluded_nodes([one for one in faults if one.node in known], policy, datetime.now(UTC))


def joined(excluded: str | None, avoided: Sequence[str]) -> str:
    """The profile's own exclusions, and ours, as sbatch and scontrol want them."""
    return ",".join([*([excluded] if excluded else []), *avoided])
