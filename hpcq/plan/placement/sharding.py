"""How many shards make a run end soonest: fewer and fewer seconds are allowed to a variant, until that helps no more.

Knows choices and their costs; what a choice of shards comes to is asked of whoever can simulate it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace

from hpcq.manifest.profiles import Profile
from hpcq.plan.placement.assignment import Choice
from hpcq.plan.placement.time_limits import worthwhile_shards
from hpcq.plan.schedule.resources import at_once

_STEP = math.sqrt(0.5)
"""Of seconds allowed, from one trial to the next."""

_IN_VAIN = 3
"""Trials without an earlier end, after which no more are made."""


def spread(
    choices: Mapping[str, Choice], profile: Profile, wall_of: Callable[[Mapping[str, Choice]], float | None]
) -> dict[str, Choice]:
    """`choices` with the shards by which the run ends soonest; of equals the fewest. wall_of: seconds of such a run.

    Only variants whose number of shards is free are cut. Allowing less than what their class needs for all its work
    would gain nothing, however it is cut.
    """
    best = dict(choices)
    seconds = {name: _alone_s(choice) for name, choice in choices.items() if choice.is_free}
    best_wall = wall_of(best)
    if not seconds or best_wall is None:
        return best
    allowed, least, in_vain = max(seconds.values()), _work_s(choices, profile) / 2, 0
    while allowed * _STEP > least and in_vain < _IN_VAIN:
        allowed *= _STEP
        tried = {name: _cut(choice, allowed) if name in seconds else choice for name, choice in choices.items()}
        wall = wall_of(tried)
        in_vain += 1
        if wall is not None and wall < best_wall:
            best, best_wall, in_vain = tried, wall, 0
    return best


def _before_s(choice: Choice) -> float:
    """Until its evaluation can start."""
    return (choice.quantization.seconds() or 0.0) if choice.quantization else 0.0


def _alone_s(choice: Choice) -> float:
    """From the start to its last answer, if it has the cluster for itself."""
    return _before_s(choice) + (choice.evaluation.seconds(choice.shards) or 0.0)


def _cut(choice: Choice, allowed_s: float) -> Choice:
    """In as many shards as `allowed_s` takes, as far as that is worth loading for."""
    cost = choice.evaluation.cost
    if cost is None or not cost.work:
        return choice
    left = allowed_s - _before_s(choice) - cost.fixed
    most = max(choice.shards, worthwhile_shards(cost))
    wanted = math.ceil(cost.work / left) if left > 0 else most
    return replace(choice, shards=max(choice.shards, min(wanted, most)))


def _work_s(choices: Mapping[str, Choice], profile: Profile) -> float:
    """Of the busiest class: until all its units have ended, if it is always full."""
    taken: dict[str, float] = defaultdict(float)
    for choice in choices.values():
        for option in (choice.evaluation, choice.quantization):
            if option is not None:
                shape = option.placement.shape
                taken[shape.gpu_class] += (option.seconds() or 0.0) / at_once(profile, shape)
    return max(taken.values(), default=0.0)
