"""Section of the fidelity: plots of the KL divergence of each variant, and all numbers in tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import sqrt

from hpcq.report.fidelity import ChoiceFidelity, Estimate
from hpcq.report.line import Line
from hpcq.report.page.content import PageContent
from hpcq.report.page.divergence_plot import PlottedFidelity, PlotWords, divergence_plot
from hpcq.report.page.markup import Content, Html, join, tag
from hpcq.report.page.panel_plot import panel_parts
from hpcq.report.page.sections import Section, folded, paragraph
from hpcq.report.page.tables import text_table

MAX_LINES = 120
"""Lines of the plot."""
_TITLE = "Fidelity to unquantized"
_PLOT = PlotWords(
    name="fidelity-plot",
    title="Fidelity to unquantized on multiple-choice items",
    axis="KL divergence, nats",
    agreement="same choice",
)
_WORDS = (
    "Kullback-Leibler divergence of the probabilities of the choices from those of the unquantized model, mean over"
    " items with 95 % interval: points further left are closer. Fidelity shows how much a variant differs, with fewer"
    " items than a score needs. It does not show whether the variant is better or worse."
)


def fidelity_section(content: PageContent) -> Section | None:
    """Return the section; None if nothing was compared."""
    parts = [*panel_parts(content), *_choice_parts(content)]
    return Section(id="fidelity", link="Fidelity", title=_TITLE, content=join(parts)) if parts else None


def _choice_parts(content: PageContent) -> Iterator[Content]:
    if not content.fidelity or content.closeness is None:
        return
    points = plotted_fidelity(content)
    shown = points[:MAX_LINES]
    yield tag("h3", "On multiple-choice items")
    yield paragraph(_WORDS)
    if len(points) > len(shown):
        yield paragraph(f"The plot shows the first {len(shown)} of {len(points)} lines; the table has all.")
    yield tag("figure", fidelity_plot(content, shown))
    yield folded("All measures in a table", text_table(content.closeness), class_="more")


def plotted_fidelity(content: PageContent) -> list[PlottedFidelity]:
    """Return what the plot shows, by task: tasks of a group are pooled, weighted by their items."""
    group_of = {task: group for group, tasks in content.evidence.groups.items() for task in tasks}
    pooled: dict[tuple[str, Line], list[ChoiceFidelity]] = {}
    for one in content.fidelity:
        pooled.setdefault((group_of.get(one.task, one.task), (one.run, one.variant)), []).append(one)
    tasks = list(dict.fromkeys(task for task, _ in pooled))
    ordered = sorted(pooled, key=lambda key: tasks.index(key[0]))
    return [_pooled(task, line, pooled[task, line]) for task, line in ordered]


def _pooled(task: str, line: Line, parts: Sequence[ChoiceFidelity]) -> PlottedFidelity:
    total = sum(part.n for part in parts)
    shares = [part.n / total for part in parts]
    agreement = sum(share * part.agreement.value for share, part in zip(shares, parts, strict=True))
    divergence = parts[0].divergence
    if len(parts) > 1:
        mean = sum(share * part.divergence.value for share, part in zip(shares, parts, strict=True))
        # Items of different tasks are independent: the squares of the half widths add.
        half = sqrt(sum((share * _half_width(part.divergence)) ** 2 for share, part in zip(shares, parts, strict=True)))
        divergence = Estimate(value=mean, low=mean - half, high=mean + half)
    return PlottedFidelity(line=line, task=task, n=total, divergence=divergence, agreement=agreement)


def _half_width(estimate: Estimate) -> float:
    return (estimate.high - estimate.low) / 2


def fidelity_plot(content: PageContent, points: Sequence[PlottedFidelity]) -> Html:
    """Return the plot: one line per task and variant."""
    return divergence_plot(content, points, _PLOT)
