"""Kinds of mutations: what is changed in a checkpoint, its tokenizer, the items or the calibration text.

Each kind is a function of a case's folder and a random generator; it returns a short description of the change, or None
if the case does not have what it changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from random import Random


class Effect(StrEnum):
    """What a mutation may do to a score without an error or a mark."""

    NONE = "none"
    """Nothing: the input is damaged, or the change cannot matter."""
    OTHER_INPUT = "other input"
    """It is another valid input: the score has another address, and is that of lm-eval on this input."""
    MUST_SHOW = "must show"
    """Even lm-eval's own score on this input would mislead: an error or a mark is required."""


class Target(StrEnum):
    """What is mutated."""

    WEIGHTS = "weights"
    CONFIGURATION = "configuration"
    TOKENIZER = "tokenizer"
    GENERATION = "generation settings"
    ITEMS = "items"
    CALIBRATION = "calibration"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Folders of a case.

    Attributes:
        model: Folder of the checkpoint.
        items: Folder of the tasks' items.
        calibration: File of the calibration text.
        spare: Folder with the full tokenizer, and checkpoints of other models.
    """

    model: Path
    items: Path
    calibration: Path
    spare: Path


Apply = Callable[[Case, Random], str | None]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of mutation."""

    name: str
    target: Target
    effect: Effect
    apply: Apply


KINDS: dict[str, Kind] = {}


def kind(target: Target, effect: Effect = Effect.NONE) -> Callable[[Apply], Apply]:
    """Return a decorator that registers a function as the kind of its name."""

    def register(apply: Apply) -> Apply:
        name = apply.__name__
        KINDS[name] = Kind(name=name, target=target, effect=effect, apply=apply)
        return apply

    return register
