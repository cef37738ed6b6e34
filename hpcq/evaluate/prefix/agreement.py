"""Agreement of log-likelihoods from shared prefixes with those of whole requests, and what counts as rounding.

Two correct computations of a request can differ by rounding. The size of this difference is measured with every model:
whole requests are computed one by one and in batches, as lm-eval does with two batch sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpcq.core.frozen import dataclass

EXACT = 1e-4
"""Largest difference of a log-likelihood, in nats, at which results are called exact."""

MAX_READ_TOKENS = 5
"""Number of tokens at the end of a request whose log-probabilities are compared. A sum of more tokens would have a
rounding error of its own: bfloat16 stores -72 in steps of 0.5."""

_NOISE_FACTOR = 2.0
# By data type of the model, in nats: up to the first number a difference always counts as rounding, above the second
# never. Measured with SmolLM2-135M on a CPU, in float32, float16 and bfloat16: shared prefixes differed from lm-eval's
# own computation by 4e-5, 0.06 and 0.25, and two batch sizes of lm-eval differed by 2e-5, 0.02 and 0.6. bfloat16 stores
# a log-likelihood of -17 in steps of 0.125.
_LIMITS = {"float64": (EXACT, 1e-3), "float32": (EXACT, 1e-3), "float16": (0.05, 0.1), "bfloat16": (0.25, 0.5)}
_LOWEST_PRECISION = "bfloat16"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of two computations of the same requests; all numbers are in nats.

    Attributes:
        difference: Largest difference between a log-likelihood from shared prefixes and that of the whole request.
        batch_difference: Largest difference between log-likelihoods of whole requests one by one and in batches.
    """

    difference: float = 0.0
    batch_difference: float = 0.0

    def __or__(self, other: Agreement) -> Agreement:
        """Return, for each difference, the larger of both values. A NaN counts as larger than any number."""
        return Agreement(
            difference=float(np.maximum(self.difference, other.difference)),
            batch_difference=float(np.maximum(self.batch_difference, other.batch_difference)),
        )

    def tolerance(self, dtype: str) -> float:
        """Return the largest difference, in nats, that counts as rounding.

        It is twice `batch_difference`, within the limits of the data type `dtype` ('bfloat16').
        """
        smallest, largest = _limits(dtype)
        return float(np.clip(_NOISE_FACTOR * np.nan_to_num(self.batch_difference), smallest, largest))

    def disagreement(self, dtype: str) -> str | None:
        """Return why the difference is more than rounding, as a clause; None if it is not. A NaN counts as more."""
        limit = self.tolerance(dtype)
        if self.difference <= limit:
            return None
        return (
            f"log-likelihoods differ by {self.difference:.2g} from those of whole requests, more than rounding"
            f" ({limit:.2g})"
        )

    def as_facts(self, dtype: str, *, quantizes_activations: bool) -> dict[str, str | float]:
        """Return what is recorded with the responses. `prefix_sharing` is "exact" only for differences up to EXACT.

        With quantized activations it never is: a rounding difference selects another step of the grid for some requests
        only, which the few requests of a check do not show.
        """
        rounding = "within the rounding of quantized activations" if quantizes_activations else "within rounding"
        return {
            "prefix_sharing": "exact" if self.difference <= EXACT and not quantizes_activations else rounding,
            "prefix_sharing_difference": self.difference,
            "prefix_sharing_tolerance": self.tolerance(dtype),
            "batch_difference": self.batch_difference,
        }


def largest_difference(some: Sequence[float], others: Sequence[float]) -> float:
    """Return the largest absolute difference between numbers at the same position; NaN if any is NaN."""
    return float(np.abs(np.subtract(some, others)).max())


def largest_rounding(dtype: str) -> float:
    """Return the largest difference of a log-likelihood, in nats, that can count as rounding for `dtype`."""
    return _limits(dtype)[1]


def _limits(dtype: str) -> tuple[float, float]:
    return _LIMITS.get(dtype, _LIMITS[_LOWEST_PRECISION])
