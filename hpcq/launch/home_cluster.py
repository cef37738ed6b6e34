"""Cluster on which a run was submitted: several clusters may share a file system, and each knows only its own jobs."""

from __future__ import annotations

from collections.abc import Callable, Collection

from hpcq.core.errors import UserInputError
from hpcq.core.paths import RunLayout
from hpcq.launch.submissions import read_submissions, record_path
from hpcq.slurm.client import cluster_name, on_cluster

_MAX_FILES = 3


def require_home_cluster(layout: RunLayout, incomplete: Callable[[], Collection[str]]) -> None:
    """Refuse a decision about units whose jobs were submitted on another cluster than this machine's.

    Slurm here does not know these jobs: they would count as ended, and be submitted again.

    Args:
        layout: Paths of the run.
        incomplete: Returns the ids of the units without a result.

    Raises:
        UserInputError: There are such jobs.
        SetupError: Slurm is missing or does not respond.
    """
    local = [one for one in read_submissions(layout) if one.home and not one.cluster]
    if not local:
        return
    with on_cluster(None):
        here = cluster_name()
    foreign = [one for one in local if here and one.home != here]
    wanted = set(incomplete()) if foreign else set()
    if foreign := [one for one in foreign if not wanted.isdisjoint(one.units)]:
        homes = " and ".join(sorted({str(one.home) for one in foreign}))
        files = [str(record_path(layout, one)) for one in foreign]
        listed = " ".join(files[:_MAX_FILES]) + (f" and {len(files) - _MAX_FILES} more" if files[_MAX_FILES:] else "")
        raise UserInputError(
            f"{layout.folder}: its jobs run on cluster {homes}, and this machine belongs to cluster {here}, which does"
            f" not know them: type the command on a login node of {homes}. If they have ended or that cluster is gone,"
            f" remove their records ({listed})."
        )
