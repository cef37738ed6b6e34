"""Time limits with slack, and the minimum and maximum of useful shards, from estimates."""

from __future__ import annotations

import math

from hpcq.manifest.profiles import Profile
from hpcq.manifest.schema import MAX_SHARDS
from hpcq.plan.cost import constants
from hpcq.plan.cost.evaluation import Cost
from hpcq.plan.placement.candidates import PlacementError

MAX_LOADING_SHARE = 0.5
"""Share of a unit's time that starting and loading may take, unless the time limit requires more shards."""

MIN_ANSWERING_SHARE = 0.25
"""Time that a limit must leave for answering, as a share of starting and loading."""

LONG_LOADING_S = 300.0
"""Above this, a shard that loads for longer than it answers is refused."""

UNPADDED_LIMIT_SHARE = 0.9
"""Share of a time limit that an estimate without slack may take, if it does not fit with slack."""


def max_limit_minutes(profile: Profile, gpu_class: str) -> int:
    """Return the longest time limit of a job on the class."""
    offer = profile.gpu_classes[gpu_class]
    return min(limit for limit in (offer.max_minutes, profile.slurm.time_limit_minutes) if limit)


def padded_seconds(cost: Cost, shards: int = 1) -> float:
    """Return the estimate for one of `shards` shards with slack, for its time limit."""
    return constants.LOADING_SLACK * cost.fixed_s + constants.WORK_SLACK * cost.work_s / shards


def requested_minutes(padded_s: float | None, max_minutes: int) -> int:
    """Return the time limit to request: `padded_s` plus some minutes, rounded up; `max_minutes` if it is None.

    A limit that is too short costs one more loading: the unit is requeued and keeps the rows it committed.
    """
    if padded_s is None:
        return max_minutes
    minutes, step = padded_s / 60 + constants.SLACK_MINUTES, constants.LIMIT_STEP_MINUTES
    return min(max_minutes, max(constants.MIN_LIMIT_MINUTES, math.ceil(minutes / step) * step))


def min_shard_count(cost: Cost, profile: Profile, gpu_class: str) -> int | None:
    """Return the smallest number of shards that fit the class's time limit.

    The estimate must fit with slack, or without slack if the limit is too short for that. Without limits, this is 1.
    None: no number of shards fits.
    """
    if profile.scheduler == "local":
        return 1
    limit_s = max_limit_minutes(profile, gpu_class) * 60
    with_slack = (
        limit_s - constants.SLACK_MINUTES * 60 - constants.LOADING_SLACK * cost.fixed_s
    ) / constants.WORK_SLACK
    for available_s in (with_slack, limit_s * UNPADDED_LIMIT_SHARE - cost.fixed_s):
        if cost.work_s <= max(available_s, 0.0):
            return 1
        is_enough = available_s > 0 and available_s >= cost.fixed_s * MIN_ANSWERING_SHARE
        if is_enough and cost.work_s / available_s <= MAX_SHARDS:
            return math.ceil(cost.work_s / available_s)
    return None


def max_worthwhile_shards(cost: Cost) -> int:
    """Return the largest number of shards of which starting and loading take at most MAX_LOADING_SHARE."""
    if not cost.fixed_s:
        return MAX_SHARDS
    return max(1, math.floor(cost.work_s / (cost.fixed_s * (1 / MAX_LOADING_SHARE - 1))))


def check_shards(cost: Cost, shards: int) -> PlacementError | None:
    """Return an error if each shard would load for a long time, and for longer than it answers; None: accepted."""
    work_s = cost.work_s / shards
    if shards == 1 or cost.load_s <= max(LONG_LOADING_S, work_s):
        return None
    max_shards = max(1, math.floor(cost.work_s / cost.load_s))
    return PlacementError(
        f"each of {shards} shards would load for {format_minutes(cost.load_s)} and answer for {format_minutes(work_s)}",
        f"evaluate.shards = {max_shards}, or remove it",
    )


def limit_too_short(cost: Cost, profile: Profile, gpu_class: str, activity: str) -> PlacementError:
    """Return the error for a class whose time limit is too short.

    Args:
        cost: Estimate of the unit.
        profile: The cluster.
        gpu_class: Name of the class.
        activity: "quantizing" or "answering".
    """
    limit, keys = max_limit_minutes(profile, gpu_class), " and ".join(_limiting_keys(profile, gpu_class))
    if limit * 60 * UNPADDED_LIMIT_SHARE - cost.fixed_s >= max(1.0, cost.fixed_s * MIN_ANSWERING_SHARE):
        return PlacementError(
            f"{activity} takes about {cost.work_s / 3600:,.0f} hours on {gpu_class}, more than {MAX_SHARDS:,} jobs of"
            f" {limit} min",
            f"a faster GPU class, fewer documents (tasks.limit), or a larger {keys}",
        )
    loading = "loading to quantize" if activity == "quantizing" else "loading"
    required = requested_minutes(constants.LOADING_SLACK * cost.fixed_s, 10**9)
    return PlacementError(
        f"{loading} takes about {format_minutes(cost.fixed_s)} on {gpu_class}, where jobs are limited to {limit} min",
        f"a larger {keys}, {required} or more (or a larger filesystem.read_gb_per_s, if the file system is faster than"
        " estimated)",
    )


def _limiting_keys(profile: Profile, gpu_class: str) -> list[str]:
    """Return the keys that set the class's time limit."""
    limits = {
        "slurm.time_limit_minutes": profile.slurm.time_limit_minutes,
        f"gpu_classes.{gpu_class}.max_minutes": profile.gpu_classes[gpu_class].max_minutes,
    }
    return [key for key, limit in limits.items() if limit == max_limit_minutes(profile, gpu_class)]


def format_minutes(seconds: float) -> str:
    """Return, for example, '43 min' or '20 s'."""
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"  # noqa: PLR2004 (a minute)
