"""Of all places that units could have, the one for each: the fewest GPU-hours, or the soonest end of the whole run.

Knows options with their costs, and a profile; must not know models or rates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hpcq.manifest.profiles import Profile
from hpcq.plan.cost.estimator import Option
from hpcq.plan.placement.place import is_unfaithful
from hpcq.plan.placement.time_limits import fewest_shards, too_short
from hpcq.plan.schedule.resources import at_once


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

    A class works on as many units at once as it has room for, so a unit fills its share of the class for its time.
    """
    filled = dict.fromkeys(profile.gpu_classes, 0.0)
    chosen: dict[str, Option] = {}

    def ends(option: Option) -> float:
        shape = option.placement.shape
        return filled[shape.gpu_class] + _seconds(option) / at_once(profile, shape)

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


def within_limits(options: Sequence[Option], profile: Profile, doing: str) -> list[Option]:
    """Those whose class's time limit leaves time to load and to do something. doing: what, in a refusal.

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
    costs = {option.placement.shape.gpu_class: option.cost for option in options if option.cost}
    least = min(costs, key=lambda name: costs[name].fixed)
    raise too_short(costs[least], profile, least, doing)


def fewest(option: Option, profile: Profile) -> int:
    """As few shards as the class's time limit takes."""
    return (option.cost and fewest_shards(option.cost, profile, option.placement.shape.gpu_class)) or 1


def _seconds(option: Option) -> float:
    return option.cost.seconds() if option.cost else 0.0
