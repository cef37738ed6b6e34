"""How many shards make a run end soonest: fewer and fewer seconds are allowed to a variant, until that helps no more.

Knows places and their costs; what a choice of shards comes to is asked of whoever can simulate it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace

from hpcq.manifest.profiles import Profile
from hpcq.plan.limits import worthwhile_shards
from hpcq.plan.places import Place

_STEP = math.sqrt(0.5)
"""Of seconds allowed, from one trial to the next."""

_IN_VAIN = 3
"""Trials without an earlier end, after which no more are made."""


def spread(
    places: Mapping[str, Place], profile: Profile, wall_of: Callable[[Mapping[str, Place]], float | None]
) -> dict[str, Place]:
    """`places` with the shards by which the run ends soonest; of equals the fewest. wall_of: seconds of such a run.

    Only variants whose number of shards is free are cut. Allowing less than what their class needs for all its work
    would gain nothing, however it is cut.
    """
    best = dict(places)
    seconds = {name: _alone_s(place) for name, place in places.items() if place.is_free}
    best_wall = wall_of(best)
    if not seconds or best_wall is None:
        return best
    allowed, least, in_vain = max(seconds.values()), _work_s(places, profile) / 2, 0
    while allowed * _STEP > least and in_vain < _IN_VAIN:
        allowed *= _STEP
        tried = {name: _cut(place, allowed) if name in seconds else place for name, place in places.items()}
        wall = wall_of(tried)
        in_vain += 1
        if wall is not None and wall < best_wall:
            best, best_wall, in_vain = tried, wall, 0
    return best


def _before_s(place: Place) -> float:
    """Until its evaluation can start."""
    return (place.quantization.seconds() or 0.0) if place.quantization else 0.0


def _alone_s(place: Place) -> float:
    """From the start to its last answer, if it has the cluster for itself."""
    return _before_s(place) + (place.evaluation.seconds(place.shards) or 0.0)


def _cut(place: Place, allowed_s: float) -> Place:
    """In as many shards as `allowed_s` takes, as far as that is worth loading for."""
    cost = place.evaluation.cost
    if cost is None or not cost.work:
        return place
    left = allowed_s - _before_s(place) - cost.fixed
    most = max(place.shards, worthwhile_shards(cost))
    wanted = math.ceil(cost.work / left) if left > 0 else most
    return replace(place, shards=max(place.shards, min(wanted, most)))


def _work_s(places: Mapping[str, Place], profile: Profile) -> float:
    """Of the busiest class: the seconds of all its GPUs (or nodes, where it has none) that its units take."""
    taken: dict[str, float] = defaultdict(float)
    for place in places.values():
        for option in (place.evaluation, place.quantization):
            if option is not None:
                offer = profile.gpu_classes[option.placement.shape.gpu_class]
                slots = offer.nodes * max(1, offer.gpus_per_node)
                taken[option.placement.shape.gpu_class] += option.gpu_seconds / slots
    return max(taken.values(), default=0.0)
