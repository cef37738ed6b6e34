"""Fixtures: virtual clusters for the Slurm tests, started once per session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import PATIENT, VirtualCluster, slurm_conf


@pytest.fixture(scope="session")
def cluster() -> Iterator[VirtualCluster]:
    """Five idle nodes of four GPU classes; SLURM_CONF points to them for the rest of the session."""
    with VirtualCluster(settings=PATIENT) as running, slurm_conf(running):
        yield running


@pytest.fixture(scope="session")
def plain_cluster(cluster: VirtualCluster) -> Iterator[VirtualCluster]:
    """A cluster without preempt_send_user_signal, like most: preemption sends SIGTERM only. MaxArraySize is 4.

    A node that was set DOWN stays DOWN until it is resumed. SLURM_CONF points to `cluster` unless a test enters
    `slurm_conf` with this one.
    """
    settings = {
        "ClusterName": "plain",
        "MaxArraySize": "4",
        "SlurmctldParameters": "enable_configless",
        "ReturnToService": "1",
    }
    with VirtualCluster(settings={**PATIENT, **settings}, grace_s=6) as running, slurm_conf(cluster):
        yield running
