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
