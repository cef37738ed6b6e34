"""The place of every variant: where it is made, where and in how many shards it is evaluated; or why nowhere.

Knows options and how they are chosen; makes no units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpcq.core.work import Variant
from hpcq.manifest.resolved import EvaluateSettings
from hpcq.plan.cost.estimator import Option, Reckoner, Ways
from hpcq.plan.placement.choose import cheapest, fewest, soonest, within_limits
from hpcq.plan.placement.records import CannotPlace
from hpcq.plan.placement.time_limits import check_shards


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Of one variant, and the settings of its evaluation. because: why not by the back end that the manifest names.

    is_free: whether the number of shards is the planner's to choose. quantization: None where it is a base checkpoint.
    """

    settings: EvaluateSettings
    evaluation: Option
    shards: int
    is_free: bool = False
    because: str | None = None
    quantization: Option | None = None


def choices_of(reckoner: Reckoner, variants: Sequence[Variant]) -> tuple[dict[str, Choice], dict[str, CannotPlace]]:
    """By variant, its place or why it has none."""
    profile = reckoner.resolved.profile
    ways: dict[str, Ways] = {}
    evaluations: dict[str, list[Option]] = {}
    quantizations: dict[str, list[Option]] = {}
    unplaced: dict[str, CannotPlace] = {}
    for variant in variants:
        try:
            ways[variant.id] = found = reckoner.evaluations(variant)
            making = reckoner.quantizations(variant) if variant.scheme.is_quantized else None
            options = found.options
            if variant.id not in reckoner.earlier.shards:  # what has begun goes on, whatever is reckoned by now
                making = making and within_limits(making, profile, "quantizing")
                options = within_limits(options, profile, "answering")
            if making:
                quantizations[variant.id] = making
            evaluations[variant.id] = options
        except CannotPlace as problem:
            unplaced[variant.id] = problem
    chosen, made = _chosen(evaluations, reckoner), _chosen(quantizations, reckoner)
    choices: dict[str, Choice] = {}
    for name, option in chosen.items():
        begun, stated = reckoner.earlier.shards.get(name), reckoner.resolved.evaluate.shards
        if stated == "auto":
            # Other shards than it began with would do the same work beside those that wait.
            shards = begun or fewest(option, profile)
        else:
            refusal = check_shards(option.cost, stated) if option.cost and stated != begun else None
            if refusal:
                unplaced[name] = refusal
                continue
            shards = stated
        choices[name] = Choice(
            settings=ways[name].settings,
            because=ways[name].because,
            evaluation=option,
            shards=shards,
            is_free=stated == "auto" and begun is None,
            quantization=made.get(name),
        )
    return choices, unplaced


def _chosen(options: Mapping[str, Sequence[Option]], reckoner: Reckoner) -> dict[str, Option]:
    if reckoner.resolved.manifest.plan.objective == "finish":
        return soonest(options, reckoner.resolved.profile)
    return {name: cheapest(found) for name, found in options.items()}
