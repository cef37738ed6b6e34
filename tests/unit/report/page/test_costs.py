"""Quality and cost: comparable means, the Pareto front, and its plot."""

from __future__ import annotations

import dataclasses

import pytest

from hpcq.report.page.content import PageContent
from hpcq.report.page.cost_section import cost_section
from hpcq.report.page.costs import VariantCost, pareto_front, variant_costs
from hpcq.report.page.evidence import Evidence


def cost(name: str, quality: float, gigabytes: float | None) -> VariantCost:
    """Return a variant of a size."""
    return VariantCost(
        name=name, label=name, model="m", is_baseline=False, quality=quality, low=None, high=None,
        gigabytes=gigabytes, hours=None,
    )  # fmt: skip


def test_the_front_has_what_no_other_variant_beats() -> None:
    """A variant is left out if another one is at least as good and costs at most the same; also without a cost."""
    variants = [cost("a", 60, 16), cost("b", 59, 8), cost("c", 58, 9), cost("d", 50, 4), cost("e", 59, 8.5)]
    variants += [cost("equal", 60, 16), cost("unknown", 99, None), cost("same size", 55, 8)]
    assert [one.name for one in pareto_front(variants, lambda one: one.gigabytes)] == ["d", "b", "a"]


def test_means_are_over_the_same_tasks(content: PageContent) -> None:
    """Variants without one of the tasks are not averaged over the others, but named."""
    costs = variant_costs(content)
    assert list(costs.tasks) == list(content.tasks)
    assert costs.left_out == ["Llama-3.1-8B-Instruct awq-w4a16-g128", "Llama-3.1-8B-Instruct gptq-w3a16-g128"]
    first = costs.variants[0]
    rows = [row for row in content.rows if row.is_main and row.variant == content.rows[0].variant]
    assert first.quality == pytest.approx(100 * sum(row.value or 0 for row in rows) / len(rows))
    assert first.is_baseline
    assert first.hours == pytest.approx(5200 / 3600)
    assert costs.has_gpus


def test_the_bar_is_the_interval_of_the_mean_difference(content: PageContent) -> None:
    """The bar of a variant is as long as the interval of its suite, and the baseline has none."""
    by_name = {one.name: one for one in variant_costs(content).variants}
    suite = next(one for one in content.suites if "smoothquant" in one.variant)
    found = by_name["Llama-3.1-8B-Instruct smoothquant-w8a8"]
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low == pytest.approx(100 * (suite.delta_high - suite.delta_low))
    assert by_name["Llama-3.1-8B-Instruct bf16"].low is None


def test_plots_have_every_variant_in_words(content: PageContent) -> None:
    """Both plots name each variant with its quality and cost, and the models of their markers."""
    section = cost_section(content)
    assert section
    source = section.content.source
    assert source.count("<svg") == 2
    for one in variant_costs(content).variants:
        assert source.count(f"<title>{one.name}: {one.quality:.1f} %") == 2
    assert "GPU-hours to quantize and evaluate" in source
    assert "Not shown, because a score is missing: Llama-3.1-8B-Instruct awq-w4a16-g128" in source


def test_without_gpus_hours_are_not_gpu_hours(content: PageContent) -> None:
    """Without a plan that names GPUs, the axis does not say GPU-hours."""
    section = cost_section(dataclasses.replace(content, evidence=Evidence()))
    assert section
    assert "hours of a node without GPUs" in section.content.source
    assert "GPU-hours" not in section.content.source


def test_one_variant_has_no_plot(content: PageContent) -> None:
    """A single variant has nothing to be compared with."""
    variant = content.rows[0].variant
    rows = [row for row in content.rows if row.variant == variant]
    assert cost_section(dataclasses.replace(content, rows=rows)) is None
    assert cost_section(dataclasses.replace(content, rows=[])) is None
