"""Limit on submitted jobs from Slurm's accounting, where the site has one (sacctmgr's manual, 20.11 to 25.05)."""

from __future__ import annotations

import getpass
from collections.abc import Iterable

from hpcq.core.errors import SetupError
from hpcq.slurm.client import run_client

_PARSABLE = ("--noheader", "--parsable2", "--readonly")


def max_submitted_jobs(cluster: str) -> int | None:
    """Return the smallest limit on pending and running jobs of this user's associations and their default QOS.

    Returns:
        None if there is no limit, no accounting, or if the site does not let users read it.
    """
    try:
        associations = _rows(
            "associations", f"user={getpass.getuser()}", f"cluster={cluster}", "format=MaxSubmitJobs,DefaultQOS"
        )
        qos_limits = dict(_rows("qos", "format=Name,MaxSubmitJobsPU"))
    except SetupError:
        return None
    limits = [limit for own, qos in associations for limit in (own, qos_limits.get(qos, ""))]
    return min((int(limit) for limit in limits if limit.isdecimal()), default=None)


def _rows(*arguments: str) -> list[tuple[str, str]]:
    """Return the rows of `sacctmgr show` with two columns; other lines are skipped."""
    listing = run_client("sacctmgr", *_PARSABLE, "show", *arguments)
    return list(_pairs(listing.splitlines()))


def _pairs(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    for line in lines:
        first, separator, second = line.strip().partition("|")
        if separator and "|" not in second:
            yield first, second
