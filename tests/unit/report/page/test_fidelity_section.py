"""Fidelity plot: groups are pooled, zero is drawn, many lines are limited."""

from __future__ import annotations

import dataclasses

import pytest

from hpcq.report.fidelity import ChoiceFidelity, Estimate
from hpcq.report.page import fidelity_section as module
from hpcq.report.page.content import PageContent
from hpcq.report.page.fidelity_section import fidelity_section, plotted_fidelity


def fidelity(content: PageContent, task: str, n: int, value: float) -> ChoiceFidelity:
    """Return the fidelity of a variant of the sample, with an interval of ±0.01."""
    row = next(row for row in content.rows if row.paired)
    same = Estimate(value=0.9, low=0.8, high=0.95)
    around = Estimate(value=value, low=value - 0.01, high=value + 0.01)
    return ChoiceFidelity(
        run=row.run, variant=row.variant, task=task, n=n, divergence=around, agreement=same, gold_change=same,
        margin_change=same,
    )  # fmt: skip


def test_subjects_are_pooled_by_items(content: PageContent) -> None:
    """The value of a group is the mean over items, and its interval that of independent tasks."""
    subjects = content.evidence.groups["mmlu"]
    given = [fidelity(content, subjects[0], 100, 0.1), fidelity(content, subjects[1], 300, 0.2)]
    [found] = plotted_fidelity(dataclasses.replace(content, fidelity=given))
    assert (found.task, found.n) == ("mmlu", 400)
    assert found.divergence.value == pytest.approx(0.175)
    assert found.divergence.high - found.divergence.value == pytest.approx((0.25**2 + 0.75**2) ** 0.5 * 0.01)
    assert found.agreement == pytest.approx(0.9)


def test_every_compared_task_is_in_the_plot(content: PageContent) -> None:
    """Each variant and multiple-choice task has a line with its value, interval, agreement and n."""
    section = fidelity_section(content)
    assert section
    points = plotted_fidelity(content)
    assert {point.task for point in points} == {"arc_challenge", "hellaswag", "winogrande", "truthfulqa_mc2", "mmlu"}
    for point in points:
        assert f"<title>{content.names[point.line]}, {point.task}: KL {point.divergence.value:.4g} nats" in (
            section.content.source
        )
    assert content.closeness
    assert content.closeness.notes[0][:40] in section.content.source


def test_a_divergence_of_zero_is_drawn_at_the_edge(content: PageContent) -> None:
    """A variant with the baseline's own log-likelihoods has no logarithm, and is drawn all the same."""
    given = [dataclasses.replace(fidelity(content, "t", 9, 0.0), divergence=Estimate(value=0.0, low=0.0, high=0.0))]
    section = fidelity_section(dataclasses.replace(content, fidelity=given))
    assert section
    assert "KL 0 nats" in section.content.source


def test_many_lines_are_limited(content: PageContent, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plot of many lines says how many it shows."""
    monkeypatch.setattr(module, "MAX_LINES", 3)
    section = fidelity_section(content)
    assert section
    assert f"The plot shows the first 3 of {len(plotted_fidelity(content))} lines" in section.content.source


def test_without_fidelity_there_is_no_section(content: PageContent) -> None:
    """Nothing is shown if nothing was compared."""
    assert fidelity_section(dataclasses.replace(content, fidelity=())) is None
