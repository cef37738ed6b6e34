"""Fidelity on multiple-choice items, against SciPy and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import rel_entr, softmax

from hpcq.report.fidelity import ChoiceFidelity, Estimate, choice_fidelity
from hpcq.report.fidelity_table import format_divergence, format_estimate
from hpcq.report.row_items import RowItems
from hpcq.report.rows import Row
from hpcq.store import (
    Index,
    ItemTables,
    MergeReport,
    RequestKey,
    Response,
    TaskItems,
    VariantResults,
    open_results,
    write_results,
)
from hpcq.store.response_columns import Table, columns_from_rows

N, CHOICES = 50, 4
GOLD = np.arange(N) % 3


def variant(
    name: str, loglikelihoods: NDArray[np.float64], *, gold: NDArray[np.int64] = GOLD, metric: str = "acc"
) -> VariantResults:
    """Return the results of a variant with these log-likelihoods; NaN: the item has no such choice."""
    keys = [
        RequestKey("t", "1", item, choice, 0, f"{item:016x}{choice:016x}") for item, choice in np.ndindex(N, CHOICES)
    ]
    rows = [
        (key, Response(loglikelihood=float(value), is_greedy=False))
        for key, value in zip(keys, loglikelihoods.ravel(), strict=True)
        if not np.isnan(value)
    ]
    table = Table(task="t", task_version="1", address="a", columns=columns_from_rows(rows))
    items = TaskItems(
        task="t",
        doc_id=np.arange(N),
        target=gold,
        digest=np.array([f"{item:016x}{0:016x}" for item in range(N)], dtype="S32"),
        values={(metric, "none"): np.ones((N, 2))},
    )
    return VariantResults(
        variant=name,
        index=Index(
            tables=(table,), conflicts=(), set_aside=(), segments=(), duplicates=0, ignored=0, inputs="an address"
        ),
        scores=[],
        provenance={},
        items=ItemTables(tasks=[items]),
    )


def fidelity(folder: Path, own: VariantResults, baseline: VariantResults) -> list[ChoiceFidelity]:
    """Write both variants and compare them."""
    path = folder / "results.h5"
    report = MergeReport(expected=9, found=9, missing=0, duplicates=0, conflicts=(), set_aside=())
    write_results(path, run="r", provenance={}, variants=[baseline, own], merge=report)
    row = Row(
        run="r", variant="own", model="m", scheme="s", tool="x", backend="b", task="t", metric="acc", filter="none",
        value=1.0, stderr=None, n=N, is_main=True, baseline_run="r", baseline_variant="baseline",
    )  # fmt: skip
    with open_results(path) as file:
        return choice_fidelity([row], RowItems({"r": file}))


def draw(seed: int) -> NDArray[np.float64]:
    """Return log-likelihoods; every third item has one choice less."""
    found = np.random.default_rng(seed).normal(-20, 3, size=(N, CHOICES))
    found[::3, -1] = np.nan
    return found


def test_measures_by_hand(tmp_path: Path) -> None:
    """Divergence by SciPy, agreement, and changes of the right choice and of its margin."""
    base = draw(1)
    own = base + np.random.default_rng(2).normal(0, 0.5, size=base.shape)
    (found,) = fidelity(tmp_path, variant("own", own), variant("baseline", base))
    divergences, margins = [], []
    for item in range(N):
        p, q = (softmax(values[item][~np.isnan(values[item])]) for values in (base, own))
        divergences.append(rel_entr(p, q).sum())
        gold = GOLD[item]
        margins.append(
            own[item, gold] - np.nanmax(np.delete(own[item], gold))
            - base[item, gold] + np.nanmax(np.delete(base[item], gold))
        )  # fmt: skip
    changes = (own - base)[np.arange(N), GOLD]
    assert found.n == N
    assert found.divergence.value == pytest.approx(np.mean(divergences), abs=1e-10)
    assert found.agreement.value == pytest.approx(np.mean(np.nanargmax(own, axis=1) == np.nanargmax(base, axis=1)))
    assert found.gold_change.value == pytest.approx(np.mean(changes), abs=1e-10)
    assert found.margin_change.value == pytest.approx(np.mean(margins), abs=1e-10)
    assert found.divergence.low < found.divergence.value < found.divergence.high


def test_a_variant_equals_itself(tmp_path: Path) -> None:
    """No divergence, full agreement, no change."""
    (found,) = fidelity(tmp_path, variant("own", draw(1)), variant("baseline", draw(1)))
    assert (found.divergence.value, found.agreement.value, found.gold_change.value) == (0.0, 1.0, 0.0)


def test_what_is_no_multiple_choice_has_no_fidelity(tmp_path: Path) -> None:
    """Without an index of the right choice, or if it is beyond the choices, nothing is compared."""
    for gold in (np.full(N, -1), np.full(N, CHOICES)):
        assert not fidelity(tmp_path, variant("own", draw(1), gold=gold), variant("baseline", draw(1), gold=gold))


def test_requests_without_context_are_no_choices(tmp_path: Path) -> None:
    """A task with acc_mutual_info has two requests per choice, so it has no fidelity."""
    own, baseline = (
        variant(name, draw(seed), metric="acc_mutual_info") for name, seed in (("own", 1), ("baseline", 2))
    )
    assert fidelity(tmp_path, own, baseline) == []


def test_small_divergences_keep_their_digits_and_zero_has_no_sign() -> None:
    """A divergence of 0.000124 is not '0.0001', and a change that rounds to zero is not '-0.000'."""
    assert format_divergence(Estimate(value=0.000124, low=0.0001083, high=0.0123)) == "0.000124 (0.000108 to 0.0123)"
    change = Estimate(value=-0.0004, low=-0.0036, high=0.0021)
    assert format_estimate(change, digits=3, sign="+") == "0.000 (\N{MINUS SIGN}0.004 to +0.002)"
