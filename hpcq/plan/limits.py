"""Time limits and numbers of shards from estimates: what fits a class's limit with slack, what is worth loading for.

Knows profiles and costs; must not know models or GPUs.
"""

from __future__ import annotations

import math

from hpcq.manifest.profiles import Profile
from hpcq.manifest.schema import SHARDS_AT_MOST
from hpcq.plan import rates
from hpcq.plan.cost import Cost
from hpcq.plan.placement import CannotPlace

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


def asked_minutes(seconds: float | None, most: int) -> int:
    """The time limit to ask for: the estimate with slack, in whole steps, and `most` where nothing is known.

    A limit that was too short costs one more loading: the unit is queued again, and what it committed stays.
    """
    if seconds is None:
        return most
    minutes = rates.SLACK * seconds / 60 + rates.SLACK_MINUTES
    step = rates.LIMIT_STEP_MINUTES
    return min(most, max(rates.LEAST_LIMIT_MINUTES, math.ceil(minutes / step) * step))


def fewest_shards(cost: Cost, profile: Profile, gpu_class: str) -> int | None:
    """So many that one's estimate with slack fits the class's limit; None: not even loading does. 1 without limits."""
    if profile.scheduler == "local":
        return 1
    limit_s = limit_minutes(profile, gpu_class) * 60
    ample = (limit_s - rates.SLACK_MINUTES * 60) / rates.SLACK
    for allowed in (ample, limit_s * LEAST_SHARE):
        left = allowed - cost.fixed
        if cost.work <= left or (left > 0 and left >= cost.fixed * ANSWERING_SHARE):
            shards = max(1, math.ceil(cost.work / left)) if cost.work else 1
            return shards if shards <= SHARDS_AT_MOST else None
    return None


def worthwhile_shards(cost: Cost) -> int:
    """So many that starting and loading take no more than half of each one's time."""
    if not cost.fixed:
        return SHARDS_AT_MOST
    return max(1, math.floor(cost.work / (cost.fixed * (1 / LOADING_SHARE - 1))))


def check_shards(cost: Cost, shards: int) -> None:
    """See that a stated number of shards does not load for longer than it answers.

    Raises:
        CannotPlace: it does, and loading is long.
    """
    work = cost.work / shards
    if shards == 1 or cost.load <= max(LONG_LOADING_S, work):
        return
    enough = max(1, math.floor(cost.work / cost.load))
    raise CannotPlace(
        f"each of {shards} shards would load for {minutes(cost.load)} to answer for {minutes(work)}",
        f"evaluate.shards = {enough}, or leave it out",
    )


def too_short(cost: Cost, profile: Profile, gpu_class: str) -> CannotPlace:
    """Why a class whose jobs end too early cannot take it."""
    offer, most = profile.gpu_classes[gpu_class], limit_minutes(profile, gpu_class)
    key = "slurm.time_limit_minutes"
    if offer.max_minutes is not None and offer.max_minutes <= profile.slurm.time_limit_minutes:
        key = f"gpu_classes.{gpu_class}.max_minutes"
    return CannotPlace(
        f"loading takes about {minutes(cost.fixed)} on {gpu_class}, whose jobs end after {most} min",
        f"a larger {key}, {asked_minutes(2 * cost.fixed, 10**9)} or more (or filesystem.read_gb_per_s, if the file"
        " system is faster than was reckoned)",
    )


def minutes(seconds: float) -> str:
    """'43 min', or '20 s'."""
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"  # noqa: PLR2004 (a minute)
