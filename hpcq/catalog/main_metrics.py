"""Main metric of a task without a row in the catalog, by one rule for all tasks, and the unit of metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PREFERRED = ("acc_norm", "acc", "exact_match")
"""Metrics that tables show if a task has them, in this order; otherwise the first of its definition."""

_OWN_UNITS = frozenset(
    {
        "average_len", "bits_per_byte", "bleu", "byte_perplexity", "chrf", "eqbench", "likelihood_diff", "perplexity",
        "ter", "wer", "word_perplexity",
    }
)  # fmt: skip
"""Metrics of lm-eval (0.4.13) that are not shares between 0 and 1, so tables do not show them in percent."""


def result_name(metric: str, settings: Mapping[str, Any]) -> str:
    """Return the name that a metric has in lm-eval's results. The function pass_at_k (HumanEval) returns a value per k.

    Args:
        metric: Name of the metric, or of the function.
        settings: Its entry in the definition's metric_list.
    """
    sizes = settings.get("k")
    if metric != "pass_at_k" or not sizes:
        return metric
    return f"pass@{sizes[0] if isinstance(sizes, list) else sizes}"


def is_share(metric: str) -> bool:
    """Return whether tables show a metric in percent."""
    return metric not in _OWN_UNITS


def main_metric(metrics: Sequence[str]) -> str:
    """Return the metric that tables show, of those in a task's definition, in its order; '': there is none."""
    return next((name for name in PREFERRED if name in metrics), metrics[0] if metrics else "")
