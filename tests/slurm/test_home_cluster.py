"""Two clusters that share a file system, each with its own login nodes: a run belongs to the one that has its jobs."""

from __future__ import annotations

from pathlib import Path

from hpcq.slurm import squeue
from tests.command_line import REHEARSAL, Hpcq
from tests.slurm.cluster import VirtualCluster, slurm_conf


def test_a_run_is_not_submitted_on_a_second_cluster(
    cluster: VirtualCluster, plain_cluster: VirtualCluster, core_python: Path, tmp_path: Path
) -> None:
    """Observed: the second cluster knew none of the jobs, and all units were submitted again while they ran."""
    cluster.write_profile({"core": str(core_python), "transformers": str(core_python)})
    cluster.cancel_all_jobs()
    hpcq = Hpcq(python=core_python, folder=tmp_path)
    manifest = hpcq.write(REHEARSAL + "synthetic = { load_seconds = 120.0 }\n")
    profile = ("-O", f"cluster.profile={cluster.profile}")
    assert hpcq("submit", manifest, *profile).code == 0
    with slurm_conf(plain_cluster):
        for command in (("submit", manifest, *profile), ("resume", "rehearsal"), ("cancel", "rehearsal")):
            refused = hpcq(*command)
            assert refused.code == 2, refused.out
            assert "and this machine belongs to cluster plain, which does not know them" in refused.err
        assert squeue.poll("rehearsal") == {}
        assert "their states are unknown: run `hpcq status rehearsal` on a login node of" in hpcq(
            "status", "rehearsal"
        ).out.replace("\n", " ")
    assert hpcq("status", "rehearsal").code == 0
    assert hpcq("cancel", "rehearsal").code == 0
