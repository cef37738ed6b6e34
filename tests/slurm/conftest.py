"""The virtual cluster that tests of Slurm share, started once a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import VirtualCluster, slurm_conf


@pytest.fixture(scope="session")
def cluster() -> Iterator[VirtualCluster]:
    """Five idle nodes of four GPU classes; SLURM_CONF points to them for the rest of the session."""
    with VirtualCluster() as running, slurm_conf(running):
        yield running


@pytest.fixture(scope="session")
def plain_cluster(cluster: VirtualCluster) -> Iterator[VirtualCluster]:
    """As most clusters are: preemption is announced by SIGTERM alone. Arrays have four elements at most.

    A node that was set DOWN stays so until it is resumed. Tests enter `slurm_conf` themselves; those that do not talk
    to the other one.
    """
    settings = {"MaxArraySize": "4", "SlurmctldParameters": "enable_configless", "ReturnToService": "1"}
    with VirtualCluster(settings=settings, grace_s=6) as running, slurm_conf(cluster):
        yield running
