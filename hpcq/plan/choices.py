"""The place of every variant: where it is made, where and in how many shards it is evaluated; or why nowhere.

Knows options and how they are chosen; makes no units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpcq.manifest.resolved import EvaluateSettings
from hpcq.plan.choose import cheapest, shards_of, soonest, within_limits
from hpcq.plan.placement import CannotPlace
from hpcq.plan.reckoning import Option, Reckoner, Ways
from hpcq.units import Variant


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
            ways[variant.id] = reckoner.evaluations(variant)
            fitting = within_limits(ways[variant.id].options, profile)
            if variant.scheme.is_quantized:
                quantizations[variant.id] = reckoner.quantizations(variant)
            evaluations[variant.id] = fitting
        except CannotPlace as problem:
            unplaced[variant.id] = problem
    chosen, making = _chosen(evaluations, reckoner), _chosen(quantizations, reckoner)
    choices: dict[str, Choice] = {}
    for name, option in chosen.items():
        stated = _stated_shards(name, reckoner)
        try:
            shards = shards_of(option, stated, profile)
        except CannotPlace as problem:
            unplaced[name] = problem
            continue
        choices[name] = Choice(
            settings=ways[name].settings,
            because=ways[name].because,
            evaluation=option,
            shards=shards,
            is_free=stated is None,
            quantization=making.get(name),
        )
    return choices, unplaced


def _chosen(options: Mapping[str, Sequence[Option]], reckoner: Reckoner) -> dict[str, Option]:
    if reckoner.resolved.manifest.plan.objective == "finish":
        return soonest(options, reckoner.resolved.profile)
    return {name: cheapest(found) for name, found in options.items()}


def _stated_shards(name: str, reckoner: Reckoner) -> int | None:
    """The manifest's, or those that the run began with: other units would do the same work beside the first."""
    stated = reckoner.resolved.evaluate.shards
    return reckoner.earlier.shards.get(name) if stated == "auto" else stated
