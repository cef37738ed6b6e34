"""Paired comparisons: reference implementations, published examples, and simulations of their error rates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from hpcq.report.paired import Verdict
from hpcq.report.statistics.bootstrap import RESAMPLES, SEED, Sample, bootstrap_t, bootstrap_t_of
from hpcq.report.statistics.comparison import (
    Method,
    bonett_price_interval,
    compare,
    mcnemar_p_value,
)
from hpcq.report.statistics.detectable import POWER, SIGNIFICANCE, detectable_before, detectable_difference
from hpcq.report.statistics.distributions import sign_test_probability, student_probability, student_quantile
from hpcq.report.statistics.intervals import score_interval, wilson_interval
from hpcq.report.statistics.item_scores import Floats, ItemScores, one_stratum
from hpcq.report.statistics.shared_items import ItemChanges, SharedItems
from hpcq.report.statistics.suite import compare_suite
from hpcq.report.statistics.verdict import holm, judge


def items(values: Floats, weights: Floats | None = None) -> ItemScores:
    """Return the items of a task with these values."""
    return one_stratum(np.array([f"{number:06d}" for number in range(len(values))]), values, weights)


def group(values: Floats, tasks: int) -> ItemScores:
    """Return the items of a group of equally large tasks."""
    strata = np.repeat(np.arange(tasks), len(values) // tasks)
    return ItemScores(
        keys=np.array([f"{number:06d}" for number in range(len(values))]),
        values=values,
        weights=np.ones(len(values)),
        strata=strata,
        shares=np.full(tasks, 1 / tasks),
    )


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (0, 7), (3, 12), (40, 41), (700, 900)])
def test_mcnemar_is_the_exact_sign_test_of_the_changed_items(gained: int, lost: int) -> None:
    """Equal to SciPy's binomial test to 1e-10."""
    changed = gained + lost
    expected = stats.binomtest(gained, changed, 0.5).pvalue if changed else 1.0
    assert mcnemar_p_value(gained, lost) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (7, 10), (10, 10), (812, 1172)])
def test_wilsons_interval(correct: int, n: int) -> None:
    """Equal to SciPy's to 1e-10."""
    expected = stats.binomtest(correct, n).proportion_ci(method="wilson")
    found = wilson_interval(correct, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-10)


def test_the_interval_of_a_mean_is_students() -> None:
    """Items that are not just right or wrong: equal to SciPy's one-sample interval to 1e-10."""
    values = np.random.default_rng(1).exponential(size=50)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = score_interval(items(values))
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-10)


@pytest.mark.parametrize("freedom", [1, 2, 3, 39, 40, 1171, 2000, 2001])
def test_students_distribution_is_scipys(freedom: int) -> None:
    """Probabilities to 1e-13, quantiles to 1e-11: short sums are computed without importing SciPy."""
    for value in (-8.0, -2.0, 0.0, 0.3, 2.0, 12.0):
        assert student_probability(freedom, value) == pytest.approx(stats.t.cdf(value, freedom), abs=1e-13)
    for probability in (0.5, 0.95, 0.975, 0.995):
        expected = stats.t.ppf(probability, freedom)
        assert student_quantile(freedom, probability) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("trials", [1, 12, 1999, 2001])
def test_the_sign_test_is_scipys(trials: int) -> None:
    """Probabilities to 1e-11 on both sides of the number of trials from which SciPy computes them."""
    for successes in {0, trials // 3, trials // 2, trials}:
        expected = stats.binom.cdf(successes, trials, 0.5)
        assert sign_test_probability(successes, trials) == pytest.approx(expected, abs=1e-11)


def test_shared_resamples_give_the_digits_of_single_ones() -> None:
    """Samples with the same strata share their resamples; each has the result that it has alone, drawn item by item."""
    generator = np.random.default_rng(8)
    strata = np.repeat([0, 1], [30, 10])
    samples = []
    for layout in (strata, strata, np.zeros(40, dtype=np.int64)):
        values = generator.exponential(size=40)
        means = np.bincount(layout, values) / np.bincount(layout)
        samples.append(Sample(influences=(values - means[layout]) / 40, strata=layout))
    for sample, shared in zip(samples, bootstrap_t_of(samples), strict=True):
        alone = bootstrap_t(sample.influences, sample.strata)
        assert shared.error == alone.error
        assert shared.quantiles == pytest.approx(alone.quantiles, rel=1e-9)
    own = samples[2].influences
    drawn = own[np.random.default_rng(SEED).integers(0, 40, size=(RESAMPLES, 40))]
    errors = np.sqrt(40 / 39 * (np.sum(drawn**2, axis=1) - drawn.sum(axis=1) ** 2 / 40))
    assert alone.quantiles == pytest.approx(np.sort(drawn.sum(axis=1) / errors), rel=1e-9)


def test_bonett_and_prices_interval_by_hand() -> None:
    """The formula in numbers: 6 and 2 of 30 items changed; no change at all still has a width."""
    up, down = 7 / 32, 3 / 32
    half = 1.959963984540054 * ((up + down - (up - down) ** 2) / 32) ** 0.5
    found = bonett_price_interval(6, 2, 30)
    assert (found.low, found.high) == pytest.approx((4 / 32 - half, 4 / 32 + half), abs=1e-12)
    unchanged = bonett_price_interval(0, 0, 30)
    assert unchanged.high == -unchanged.low > 0.08


def test_the_bootstrap_agrees_with_students_paired_test() -> None:
    """For normal differences both are right: equal within the noise of the resamples."""
    generator = np.random.default_rng(2)
    baseline = generator.normal(size=300)
    variant = baseline + generator.normal(0.05, 0.4, size=300)
    reference = stats.ttest_rel(variant, baseline)
    expected = reference.confidence_interval(0.95)
    found = compare(items(variant), items(baseline))
    assert found is not None
    assert found.method is Method.BOOTSTRAP
    assert found.gained is None
    assert (found.interval.low, found.interval.high) == pytest.approx((expected.low, expected.high), abs=0.003)
    noise = 4 * (reference.pvalue / RESAMPLES) ** 0.5
    assert found.p_value == pytest.approx(reference.pvalue, abs=2 * noise)


def test_a_comparison_of_right_and_wrong_items() -> None:
    """Counts of changed items, difference and recovery by hand; other items cannot be compared."""
    baseline = items(np.array([1.0] * 8 + [0.0] * 2))
    variant = items(np.array([1.0] * 5 + [0.0] * 4 + [1.0]))
    found = compare(variant, baseline)
    assert found is not None
    assert (found.gained, found.lost, found.method) == (1, 3, Method.MCNEMAR)
    assert found.difference == pytest.approx(-0.2)
    assert found.recovery == pytest.approx(0.75)
    assert found.interval.low < found.equivalence_interval.low < -0.2 < found.equivalence_interval.high
    assert compare(variant, one_stratum(np.array(list("abcdefghij")), variant.values)) is None


def test_ratios_count_by_their_weights() -> None:
    """Instruction-level accuracy: the score is the ratio of the sums, and the interval is that of a ratio estimate."""
    values, weights = np.tile([1.0, 1.0, 0.0, 2.0], 5), np.tile([2.0, 1.0, 3.0, 2.0], 5)
    ratio = items(values, weights)
    assert ratio.score == pytest.approx(0.5)
    residuals = (values - 0.5 * weights) / 40
    expected = (20 / 19 * np.sum(residuals**2)) ** 0.5
    found = score_interval(ratio)
    assert found is not None
    assert found.high - ratio.score == pytest.approx(stats.t.ppf(0.975, 19) * expected)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        pytest.param([0.99, 1.0, 1.0, 0.8], 0.5, 1.0, id="near the best score"),
        pytest.param([0.0, 0.0, 0.0, 0.3], 0.0, 0.5, id="near the worst score"),
        pytest.param([0.0] * 4, 0.0, wilson_interval(0, 4).high, id="all at the worst"),
    ],
)
def test_the_interval_of_bounded_scores_is_between_0_and_1(values: list[float], low: float, high: float) -> None:
    """It is cut at both ends. Without any variance it has the width of Wilson's."""
    found = score_interval(items(np.array(values), np.array([1.0, 2.0, 1.0, 1.0])))
    assert found is not None
    assert 0.0 <= found.low <= found.high <= 1.0
    assert low - 0.3 <= found.low
    assert found.high <= high + 1e-12
    assert found.high > found.low


def test_a_group_is_the_weighted_mean_of_its_tasks() -> None:
    """Many tasks are resampled as wholes, few are strata."""
    generator = np.random.default_rng(3)
    variant, baseline = generator.random(600).round(), generator.random(600).round()
    for tasks, method in ((30, Method.CLUSTERED), (3, Method.MCNEMAR)):
        found = compare(group(variant, tasks), group(baseline, tasks))
        assert found is not None
        assert found.method is method
        assert found.difference == pytest.approx(variant.mean() - baseline.mean())


def test_tasks_are_the_units_of_a_large_group() -> None:
    """The error is that of the differences of the tasks, not of their items: equal to the error of their mean."""
    generator = np.random.default_rng(7)
    baseline = generator.random(40 * 50)
    variant = baseline + np.repeat(generator.normal(0.0, 0.05, 40), 50)
    found = compare(group(variant, 40), group(baseline, 40))
    assert found is not None
    assert found.method is Method.CLUSTERED
    of_tasks = (variant - baseline).reshape(40, 50).mean(axis=1)
    assert found.error == pytest.approx(stats.sem(of_tasks), rel=1e-9)
    assert found.interval.high - found.interval.low == pytest.approx(4 * found.error, rel=0.15)


@pytest.mark.parametrize(
    "differences",
    [
        pytest.param([0.0] * 2, id="two equal items"),
        pytest.param([0.05] * 2, id="the same difference"),
        pytest.param([0.0] * 4 + [0.001], id="one small difference"),
        pytest.param([0.0] * 39 + [0.3], id="one large difference"),
    ],
)
def test_items_of_which_few_differ_are_no_evidence(differences: list[float]) -> None:
    """Without variance, or nearly, the interval has a width and is possible: a few items are never equivalent."""
    baseline = np.linspace(0.2, 0.6, len(differences))
    found = compare(items(baseline + differences), items(baseline))
    assert found is not None
    assert -1.0 <= found.interval.low < found.equivalence_interval.low < -0.01
    assert 0.01 < found.equivalence_interval.high < found.interval.high <= 1.0
    assert judge(found.difference, found.equivalence_interval, found.p_value, 0.01) is Verdict.CANNOT_TELL


def test_one_item_per_task_of_a_large_group() -> None:
    """No item has changed: not equivalent, because 57 items cannot show a difference of a point."""
    values = np.resize([1.0, 1.0, 0.0], 57)
    found = compare(group(values, 57), group(values, 57))
    assert found is not None
    assert found.interval == bonett_price_interval(0, 0, 57)


def test_holm_by_hand() -> None:
    """Adjusted p-values grow with the rank, and never exceed 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_detectable_effect_is_that_of_the_literature() -> None:
    """2.80 · sqrt(share / n): MMLU with 5 % changed items shows 0.53 points."""
    assert detectable_before(14042, 0.05) == pytest.approx(0.0053, abs=5e-5)
    quantiles = stats.norm.ppf(1 - SIGNIFICANCE / 2) + stats.norm.ppf(POWER)
    assert detectable_difference(1.0) == pytest.approx(quantiles, rel=1e-14)


def pair(generator: np.random.Generator, n: int, gain: float, loss: float) -> tuple[ItemScores, ItemScores]:
    """Return items of which these shares are expected to change."""
    base, change = (generator.random(n) < 0.6).astype(float), generator.random(n)
    up, down = change < gain, (change >= gain) & (change < gain + loss)
    baseline = np.where(up, 0.0, np.where(down, 1.0, base))
    return items(np.where(up, 1.0, np.where(down, 0.0, base))), items(baseline)


def skewed(generator: np.random.Generator, n: int, mean: float) -> tuple[ItemScores, ItemScores]:
    """Return items with skewed differences of this expected mean."""
    baseline = generator.random(n)
    return items(baseline + generator.exponential(0.1, n) - 0.1 + mean), items(baseline)


def subjects(
    generator: np.random.Generator, per_task: int, mean: float, spread: float
) -> tuple[ItemScores, ItemScores]:
    """Return right and wrong items of 57 tasks, whose shares of items that get worse differ by `spread`."""
    worse = np.repeat(generator.normal(-mean, spread, 57), per_task)
    base, change = (generator.random(len(worse)) < 0.6).astype(float), generator.random(len(worse))
    up, down = change < np.clip(-worse, 0.0, 1.0), change > 1.0 - np.clip(worse, 0.0, 1.0)
    baseline = np.where(up, 0.0, np.where(down, 1.0, base))
    return group(np.where(up, 1.0, np.where(down, 0.0, base)), 57), group(baseline, 57)


NOISE = 4.0
"""Standard errors of a simulated share that a test permits: it fails once in 30,000 runs, and its seed is fixed."""


@pytest.mark.parametrize(
    ("draw", "truth", "margin"),
    [
        pytest.param(lambda generator: pair(generator, 100, 0.05, 0.05), 0.0, None, id="100 items, no difference"),
        pytest.param(lambda generator: pair(generator, 600, 0.05, 0.05), 0.0, None, id="600 items, no difference"),
        pytest.param(lambda generator: pair(generator, 600, 0.02, 0.06), -0.04, 0.04, id="600 items, at the margin"),
        pytest.param(lambda generator: skewed(generator, 40, 0.0), 0.0, None, id="40 skewed items, no difference"),
        pytest.param(lambda generator: skewed(generator, 60, -0.03), -0.03, 0.03, id="60 skewed items, at the margin"),
        pytest.param(lambda generator: subjects(generator, 40, 0.0, 0.04), 0.0, None, id="57 subjects that differ"),
        pytest.param(
            lambda generator: subjects(generator, 40, -0.02, 0.04), -0.02, 0.02, id="57 subjects, at the margin"
        ),
        pytest.param(
            lambda generator: subjects(generator, 4, -0.01, 0.0), -0.01, 0.01, id="57 small subjects, at the margin"
        ),
    ],
)
def test_error_rates_by_simulation(
    draw: Callable[[np.random.Generator], tuple[ItemScores, ItemScores]],
    truth: float,
    margin: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """95 % intervals cover the truth, false positives and false verdicts of equivalence are at most 5 %."""
    monkeypatch.setattr("hpcq.report.statistics.bootstrap.RESAMPLES", 999)
    generator, runs = np.random.default_rng(5), 600
    covered = positive = equivalent = 0
    for _ in range(runs):
        found = compare(*draw(generator))
        assert found is not None
        covered += found.interval.low <= truth <= found.interval.high
        positive += truth == 0 and found.p_value < 0.05
        equivalent += (
            margin is not None
            and judge(found.difference, found.equivalence_interval, 1.0, margin) is Verdict.EQUIVALENT
        )
    noise = NOISE * (0.05 * 0.95 / runs) ** 0.5
    assert covered / runs >= 0.95 - noise
    assert positive / runs <= 0.05 + noise
    assert equivalent / runs <= 0.05 + noise


def changes(task: str, influences: Floats, first: int = 0) -> ItemChanges:
    """Return the items of a task, which begin with this document."""
    names = np.arange(first, first + len(influences))
    return ItemChanges(
        task=task, documents="", doc_id=names, prompts=names.astype("S32"), influences=influences - influences.mean()
    )


class TaskDifference:
    """A mean of differences of items and its standard error."""

    def __init__(self, values: Floats) -> None:
        self.difference = float(values.mean())
        self.error = float(stats.sem(values))


def test_the_mean_of_two_tasks_with_the_same_items_by_simulation() -> None:
    """Its 95 % interval covers the truth in 95 % of the draws; if the tasks counted as independent, in fewer."""
    generator, runs, n = np.random.default_rng(9), 600, 200
    line, covered, naive = ("run", "variant"), 0, 0
    for _ in range(runs):
        common = generator.normal(size=n)
        values = [common + 0.5 * generator.normal(size=n) for _ in range(2)]
        tasks = {name: TaskDifference(one) for name, one in zip(("mc1", "mc2"), values, strict=True)}
        shared = SharedItems()
        for name, one in zip(tasks, values, strict=True):
            shared.add(line, changes(name, one / n))
        interval = compare_suite(tasks, shared.correlations()[line]).interval
        covered += interval.low <= 0.0 <= interval.high
        independent = compare_suite(tasks).interval
        naive += independent.low <= 0.0 <= independent.high
    noise = NOISE * (0.05 * 0.95 / runs) ** 0.5
    assert covered / runs >= 0.95 - noise
    assert naive / runs < 0.95 - noise


def test_correlations_by_hand() -> None:
    """Half of the items in common: half of the correlation; none in common: none; no change: what the items permit."""
    values = np.array([1.0, -1.0, 1.0, -1.0])
    shared = SharedItems()
    for one in (changes("a", values), changes("b", values, first=2), changes("c", values, first=9)):
        shared.add(("r", "v"), one)
    shared.add(("r", "w"), changes("a", values))
    shared.add(("r", "w"), changes("b", np.zeros(4), first=1))
    found = shared.correlations()
    assert found["r", "v"] == {("a", "b"): pytest.approx(0.5)}
    assert found["r", "w"] == {("a", "b"): pytest.approx(0.75)}


def test_verdicts() -> None:
    """Equivalent needs an interval within the margin; few items can only tell large differences."""
    generator = np.random.default_rng(6)
    few, many = pair(generator, 60, 0.1, 0.1), pair(generator, 20_000, 0.01, 0.01)
    worse = pair(generator, 2000, 0.01, 0.08)
    for (variant, baseline), verdict in (
        (few, Verdict.CANNOT_TELL),
        (many, Verdict.EQUIVALENT),
        (worse, Verdict.WORSE),
        (worse[::-1], Verdict.BETTER),
    ):
        found = compare(variant, baseline)
        assert found is not None
        assert judge(found.difference, found.equivalence_interval, found.p_value, 0.01) is verdict
