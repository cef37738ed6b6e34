"""Layers that llmcompressor (0.14) rounded to nearest although the scheme says GPTQ, or left unscaled under AWQ.

llmcompressor rounds a layer to nearest if its Hessian is not positive definite (too little or too uniform calibration
text, no damping). It skips AWQ's scaling of a group of layers if activations are not finite. It logs a warning and
continues. The counts come from private attributes of its modifiers. For this purpose, only this module reads them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.sentences import listed
from hpcq.quantize.coverage import module_counts

_ROUNDED, _CALIBRATED = "_rtn_fallback_module_names", "_num_compressed_modules"
_FOUND, _SCALED = "_resolved_mappings", "_error_metrics"
_ATTRIBUTES = {"GPTQModifier": (_ROUNDED, _CALIBRATED), "AWQModifier": (_FOUND, _SCALED)}


class Fallbacks:
    """Counts the fallbacks of a recipe, and raises an error if there are too many.

    Attributes:
        facts: For the checkpoint's metadata, by method: number of layers (AWQ: of groups of layers) with a fallback
            (`layers`), of all layers (`of`), and of fallbacks by pattern of the names (`names`).
    """

    def __init__(self, modifiers: Iterable[Any], *, layers: int, max_share: float) -> None:
        """Prepare to count.

        Args:
            modifiers: Modifiers of the recipe.
            layers: Number of linear layers that the scheme quantizes.
            max_share: Largest accepted share of fallbacks, from 0 to 1.

        Raises:
            SetupError: The installed llmcompressor does not count fallbacks.
        """
        self.facts: dict[str, dict[str, Any]] = {}
        self._layers = layers
        self._max_share = max_share
        for modifier in modifiers:
            lacking = set(_ATTRIBUTES.get(type(modifier).__name__, ())) - set(type(modifier).__private_attributes__)
            if lacking:
                raise SetupError(
                    f"The installed llmcompressor does not count the fallbacks of {type(modifier).__name__} (no "
                    f"{', '.join(sorted(lacking))}): install version 0.14, as in the lock file of the environment."
                )

    def check(self, modifier: Any, *, is_complete: bool) -> None:
        """Count the fallbacks of `modifier` so far.

        Args:
            modifier: A modifier of the recipe.
            is_complete: Whether its pass is complete.

        Raises:
            UserInputError: The share of fallbacks is larger than `max_share`, or GPTQ has not calibrated all layers.
        """
        match type(modifier).__name__:
            case "GPTQModifier":
                names = list(getattr(modifier, _ROUNDED))
                if is_complete and getattr(modifier, _CALIBRATED) < self._layers:
                    missing = self._layers - getattr(modifier, _CALIBRATED)
                    raise UserInputError(
                        f"GPTQ did not reach {missing} of {self._layers} layers, because the model does not use them "
                        "for the calibration text. Choose a scheme without calibration, such as fp8-dynamic."
                    )
                self._add("gptq", names, self._layers)
            case "AWQModifier" if is_complete:
                scaled = {metric["layer_name"] for metric in getattr(modifier, _SCALED)}
                found = [mapping.smooth_name for mapping in getattr(modifier, _FOUND)]
                self._add("awq", [name for name in found if name not in scaled], len(found))

    def _add(self, method: str, names: list[str], total: int) -> None:
        self.facts[method] = {"layers": len(names), "of": total, "names": module_counts(names)}
        if len(names) > self._max_share * total:
            raise UserInputError(_sentence(method, self.facts[method], self._max_share))


def _sentence(method: str, facts: dict[str, Any], max_share: float) -> str:
    names = listed(facts["names"])
    what = {
        "gptq": "GPTQ could not invert the Hessians of {} of {} layers ({}) and rounded them to nearest",
        "awq": "AWQ could not scale {} of {} groups of layers ({}), because activations are not finite",
    }[method].format(facts["layers"], facts["of"], names)
    return (
        f"{what}; at most {max_share:.0%} are accepted: use more calibration text (calibration.samples, "
        "calibration.sequence_length) or a larger damping, or increase quantize.max_fallback_share."
    )
