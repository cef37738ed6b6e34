"""Of all places that units could have, the one for each: the fewest GPU-hours, or the soonest end of the whole run.

Knows options with their costs, and a profile; must not know models or rates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hpcq.manifest.profiles import Profile
from hpcq.plan.limits import check_shards, fewest_shards, too_short
from hpcq.plan.place import is_unfaithful
from hpcq.plan.reckoning import Option


def cheapest(options: Sequence[Option]) -> Option:
    """The fewest GPU-seconds, of those first that compute what the scheme says; the fewest GPUs where some are unknown.

    Of places that cost the same, the one with the fewest GPUs, and then the profile's first.
    """
    are_known = all(option.cost for option in options)
    return min(
        options,
        key=lambda one: (
            is_unfaithful(one.placement),
            one.gpu_seconds if are_known else 0.0,
            one.placement.shape.gpus,
        ),
    )


def soonest(options: Mapping[str, Sequence[Option]], profile: Profile) -> dict[str, Option]:
    """One for each key, balanced over classes: the longest first, each where it ends first behind those placed.

    A class works on as many units at once as its GPUs hold, so a unit fills its share of the class for its time.
    """
    filled = dict.fromkeys(profile.gpu_classes, 0.0)
    chosen: dict[str, Option] = {}

    def ends(option: Option) -> float:
        offer = profile.gpu_classes[option.placement.shape.gpu_class]
        return filled[option.placement.shape.gpu_class] + option.gpu_seconds / _slots(offer.nodes, offer.gpus_per_node)

    best = {key: cheapest(found) for key, found in options.items()}
    for key in sorted(options, key=lambda key: -_seconds(best[key])):
        found = options[key]
        if not all(option.cost for option in found):
            chosen[key] = best[key]
            continue
        chosen[key] = min(
            found, key=lambda one: (is_unfaithful(one.placement), ends(one), one.gpu_seconds, one.placement.shape.gpus)
        )
        filled[chosen[key].placement.shape.gpu_class] = ends(chosen[key])
    return chosen


def within_limits(options: Sequence[Option], profile: Profile) -> list[Option]:
    """Those whose class's time limit leaves time to load and to answer something.

    Raises:
        CannotPlace: none does.
    """
    fitting = [
        option
        for option in options
        if option.cost is None or fewest_shards(option.cost, profile, option.placement.shape.gpu_class)
    ]
    if fitting:
        return fitting
    least = min(options, key=lambda one: one.cost.fixed if one.cost else 0.0)
    if least.cost is None:
        return list(options)
    raise too_short(least.cost, profile, least.placement.shape.gpu_class)


def shards_of(option: Option, stated: int | None, profile: Profile) -> int:
    """How many jobs share the work: the stated number (by the manifest), or as few as the class's time limit takes.

    Raises:
        CannotPlace: the stated number would load for longer than it answers.
    """
    cost = option.cost
    if stated is None:
        return 1 if cost is None else fewest_shards(cost, profile, option.placement.shape.gpu_class) or 1
    if cost is not None:
        check_shards(cost, stated)
    return stated


def _slots(nodes: int, gpus_per_node: int) -> int:
    return nodes * max(1, gpus_per_node)


def _seconds(option: Option) -> float:
    return option.cost.seconds() if option.cost else 0.0
