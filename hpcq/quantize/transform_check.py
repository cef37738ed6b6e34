"""Check of llmcompressor's transforms (0.14), which move scales between layers before the weights are rounded.

Which norm feeds which layers comes from a table by architecture, or from a default for architectures that it lacks. A
wrong entry changes the function of the model; an entry that matches nothing has no effect. llmcompressor reports
neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hpcq.core.errors import UserInputError
from hpcq.quantize.self_check import LogLikelihoods

_TRANSFORMS = {
    "SmoothQuantModifier": ("SmoothQuant", "resolved_mappings_"),
    "AWQModifier": ("AWQ", "_resolved_mappings"),
}
"""Name of the method, and the attribute with the layers that it transforms, by modifier."""

_FIX = "choose a scheme without {}, such as fp8-dynamic or GPTQ"


class TransformCheck:
    """Checks the transforms of a recipe before and after their passes.

    Attributes:
        facts: For the checkpoint's metadata: number of transformed groups of layers, and the difference in
            log-likelihood, by method.
    """

    def __init__(self, likelihoods: LogLikelihoods, model: Any) -> None:
        self.facts: dict[str, dict[str, float]] = {}
        self._likelihoods = likelihoods
        self._model = model

    def check_layers(self, modifiers: Iterable[Any]) -> None:
        """Check that llmcompressor finds the layers that the transforms need.

        Raises:
            UserInputError: It does not find them.
        """
        for modifier in modifiers:
            if type(modifier).__name__ not in _TRANSFORMS:
                continue
            method, _ = _TRANSFORMS[type(modifier).__name__]
            if not _finds_layers(method, self._model):
                raise self._refusal(method)

    def check_pass(self, modifier: Any) -> bool:
        """Check that a transform has found layers, and that the model computes the same as before.

        Returns:
            Whether the modifier is a transform.

        Raises:
            UserInputError: It has found none, or it changes what the model computes.
        """
        if type(modifier).__name__ not in _TRANSFORMS:
            return False
        method, attribute = _TRANSFORMS[type(modifier).__name__]
        groups = len(getattr(modifier, attribute))
        if not groups:
            raise self._refusal(method)
        difference = self._likelihoods.check_unchanged(self._model, method, fix=_FIX.format(method))
        self.facts[method.lower()] = {"groups": groups, "difference": round(difference, 6)}
        return True

    def _refusal(self, method: str) -> UserInputError:
        return UserInputError(
            f"{method} does not find its layers in '{self._model.config.model_type}', because llmcompressor's table "
            f"has no suitable entry for this family: {_FIX.format(method)}."
        )


def _finds_layers(method: str, model: Any) -> bool:
    """Return whether each group of layers in llmcompressor's table for `model` is complete and can be scaled."""
    from compressed_tensors.utils import match_modules_set

    try:
        groups = [
            smoothed for patterns in _patterns(method, model) for smoothed, *_ in match_modules_set(model, patterns)
        ]
    except ValueError:  # a group lacks layers
        return False
    return bool(groups) and all(len(smoothed) == 1 and hasattr(smoothed[0], "weight") for smoothed in groups)


def _patterns(method: str, model: Any) -> list[tuple[str, ...]]:
    """Return, for each kind of group, the pattern of the scaled layer, then those of the layers that it feeds."""
    from llmcompressor.modifiers.transform.awq import dynamic_mappings as awq
    from llmcompressor.modifiers.transform.smoothquant import dynamic_mappings as smoothquant

    if method == "AWQ":
        return [(one.smooth_layer, *one.balance_layers) for one in awq.get_layer_mappings_from_model(model)]
    return [(smoothed, *fed) for fed, smoothed in smoothquant.get_layer_mappings_from_model(model)]
