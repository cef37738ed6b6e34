"""Result of a paired comparison of a row with its baseline, as reports show it."""

from __future__ import annotations

from enum import StrEnum

from hpcq.core.frozen import dataclass


class Verdict(StrEnum):
    """What a comparison shows.

    Attributes:
        EQUIVALENT: The difference is within the margin (two one-sided tests at 5 %).
        WORSE: The variant is worse than its baseline (adjusted p-value below 5 %).
        BETTER: The variant is better.
        CANNOT_TELL: The items show neither. This is not evidence that there is no difference.
    """

    EQUIVALENT = "equivalent"
    WORSE = "worse"
    BETTER = "better"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True, kw_only=True)
class PairedResult:
    """Difference of a score from its baseline's, on the same items.

    Attributes:
        delta_low: Lower end of the 95 % interval of the difference.
        delta_high: Upper end.
        delta_stderr: Standard error of the difference.
        equivalence_low: Lower end of the 90 % interval, for one-sided tests at 5 %.
        equivalence_high: Upper end.
        p_value: Two-sided p-value of the hypothesis that there is no difference.
        adjusted_p_value: p-value after Holm's correction for all main scores of the report; None for other metrics.
        method: Test, and method of the interval.
        gained: Items that only the variant answers correctly; None if items are not just right or wrong.
        lost: Items that only the baseline answers correctly.
        recovery: Score divided by the baseline's; None if that is 0.
        recovery_low: Lower end of its 95 % interval.
        recovery_high: Upper end.
        detectable: Smallest difference that these items show with a probability of 80 %.
        margin: Largest difference that counts as equivalent.
        verdict: What the comparison shows.
    """

    delta_low: float
    delta_high: float
    delta_stderr: float
    equivalence_low: float
    equivalence_high: float
    p_value: float
    adjusted_p_value: float | None
    method: str
    gained: int | None
    lost: int | None
    recovery: float | None
    recovery_low: float | None
    recovery_high: float | None
    detectable: float
    margin: float
    verdict: Verdict
