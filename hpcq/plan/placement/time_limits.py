"""Time limits and numbers of shards from estimates: what fits a class's limit with slack, what is worth loading for.

Knows profiles and costs; must not know models or GPUs.
"""

from __future__ import annotations

import math

from hpcq.manifest.profiles import Profile
from hpcq.manifest.schema import SHARDS_AT_MOST
from hpcq.plan.cost import constants
from hpcq.plan.cost.evaluation import Cost
from hpcq.plan.placement.records import CannotPlace

LOADING_SHARE = 0.5
"""Of a unit's time, that starting and loading may take where nothing forces more shards."""

ANSWERING_SHARE = 0.25
"""Of starting and loading, that a limit must leave for answering at least."""

LONG_LOADING_S = 300.0
"""From here on loading for less than its own time is refused."""

LEAST_SHARE = 0.9
"""Of a time limit, that an estimate may take where its slack does not fit."""


def limit_minutes(profile: Profile, gpu_class: str) -> int:
    """The longest that a job may take there."""
    offer = profile.gpu_classes[gpu_class]
    return min(limit for limit in (offer.max_minutes, profile.slurm.time_limit_minutes) if limit)


def ample_seconds(cost: Cost, shards: int = 1) -> float:
    """What a time limit should allow one of so many shards: the estimate with slack."""
    return constants.LOADING_SLACK * cost.fixed + constants.SLACK * cost.work / shards


def asked_minutes(ample_s: float | None, most: int) -> int:
    """The time limit to ask for: `ample_s` and some minutes, in whole steps; `most` where nothing is known.

    A limit that was too short costs one more loading: the unit is queued again, and what it committed stays.
    """
    if ample_s is None:
        return most
    minutes, step = ample_s / 60 + constants.SLACK_MINUTES, constants.LIMIT_STEP_MINUTES
    return min(most, max(constants.LEAST_LIMIT_MINUTES, math.ceil(minutes / step) * step))


def fewest_shards(cost: Cost, profile: Profile, gpu_class: str) -> int | None:
    """So many that one's estimate with slack fits the class's limit, or, where that is too short, without; None: none.

    1 without limits.
    """
    if profile.scheduler == "local":
        return 1
    limit_s = limit_minutes(profile, gpu_class) * 60
    with_slack = (limit_s - constants.SLACK_MINUTES * 60 - constants.LOADING_SLACK * cost.fixed) / constants.SLACK
    for left in (with_slack, limit_s * LEAST_SHARE - cost.fixed):
        if cost.work <= max(left, 0.0):
            return 1
        if left > 0 and left >= cost.fixed * ANSWERING_SHARE and cost.work / left <= SHARDS_AT_MOST:
            return math.ceil(cost.work / left)
    return None


def worthwhile_shards(cost: Cost) -> int:
    """So many that starting and loading take no more than half of each one's time."""
    if not cost.fixed:
        return SHARDS_AT_MOST
    return max(1, math.floor(cost.work / (cost.fixed * (1 / LOADING_SHARE - 1))))


def check_shards(cost: Cost, shards: int) -> CannotPlace | None:
    """Why a stated number of shards is refused: each would load for long, and for longer than it answers."""
    work = cost.work / shards
    if shards == 1 or cost.load <= max(LONG_LOADING_S, work):
        return None
    enough = max(1, math.floor(cost.work / cost.load))
    return CannotPlace(
        f"each of {shards} shards would load for {minutes(cost.load)} to answer for {minutes(work)}",
        f"evaluate.shards = {enough}, or leave it out",
    )


def too_short(cost: Cost, profile: Profile, gpu_class: str, doing: str) -> CannotPlace:
    """Why a class whose jobs end too early cannot take it. doing: answering or quantizing."""
    most, keys = limit_minutes(profile, gpu_class), " and ".join(_limiting(profile, gpu_class))
    if most * 60 * LEAST_SHARE - cost.fixed >= max(1.0, cost.fixed * ANSWERING_SHARE):
        return CannotPlace(
            f"{doing} takes about {cost.work / 3600:,.0f} hours on {gpu_class}, more than {SHARDS_AT_MOST:,} jobs of"
            f" {most} min",
            f"a faster GPU class, fewer documents (tasks.limit), or a larger {keys}",
        )
    loading = "loading to quantize" if doing == "quantizing" else "loading"
    enough = asked_minutes(constants.LOADING_SLACK * cost.fixed, 10**9)
    return CannotPlace(
        f"{loading} takes about {minutes(cost.fixed)} on {gpu_class}, whose jobs end after {most} min",
        f"a larger {keys}, {enough} or more (or filesystem.read_gb_per_s, if the file system is faster than was"
        " reckoned)",
    )


def _limiting(profile: Profile, gpu_class: str) -> list[str]:
    """The keys that make the class's limit what it is."""
    limits = {
        "slurm.time_limit_minutes": profile.slurm.time_limit_minutes,
        f"gpu_classes.{gpu_class}.max_minutes": profile.gpu_classes[gpu_class].max_minutes,
    }
    return [key for key, limit in limits.items() if limit == limit_minutes(profile, gpu_class)]


def minutes(seconds: float) -> str:
    """'43 min', or '20 s'."""
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"  # noqa: PLR2004 (a minute)
