"""Comparison of a run's results with those of lm-eval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hpcq.store import VariantScores, read_responses, read_results

Expected = Mapping[str, Mapping[str, Any]]
"""Scores and responses by task, as lm_eval_program.py writes them."""


def variants_of(results: Path) -> dict[str, VariantScores]:
    """Return the variants in a results file by scheme."""
    return {one.provenance["scheme"]: one for one in read_results(results).variants}


def check_variant(results: Path, variant: VariantScores, expected: Expected) -> None:
    """Check that all responses and all scores of a variant equal lm-eval's."""
    assert len(variant.rows) >= 1
    check_responses(results, variant, expected)
    for one in variant.scores:
        theirs = expected[one.task]["scores"]
        stderr = theirs[f"{one.metric}_stderr,{one.filter}"]
        assert one.value == pytest.approx(theirs[f"{one.metric},{one.filter}"], rel=1e-6), one
        assert one.stderr == (None if stderr == "N/A" else pytest.approx(stderr, rel=1e-6)), one


def check_responses(results: Path, variant: VariantScores, expected: Expected) -> None:
    """Check that all responses of a variant equal lm-eval's."""
    found = read_responses(results, variant.variant)
    assert len(found) == sum(len(answers) for task in variant.rows for answers in expected[task]["responses"].values())
    for key, response in found.items():
        loglikelihood, is_greedy = expected[key.task]["responses"][str(key.doc_id)][key.request_index]
        assert response.loglikelihood == pytest.approx(loglikelihood, rel=1e-5), key
        assert response.is_greedy == is_greedy
