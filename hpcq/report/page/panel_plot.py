"""Plot and table of the fidelity panel."""

from __future__ import annotations

from collections.abc import Iterator

from hpcq.report.page.content import PageContent
from hpcq.report.page.divergence_plot import PlottedFidelity, PlotWords, divergence_plot
from hpcq.report.page.markup import Content, Html, tag
from hpcq.report.page.sections import folded, paragraph
from hpcq.report.page.tables import text_table
from hpcq.report.panel_table import CAUTION

MAX_LINES = 120
"""Lines of the plot."""

_PLOT = PlotWords(
    name="panel-plot",
    title="Fidelity to unquantized on held-out text",
    axis="KL divergence, nats per token",
    agreement="same top token",
)
_WORDS = (
    "Lower bound of the Kullback-Leibler divergence of the next-token distributions from those of the unquantized"
    " model, mean with 95 % interval: points further left are closer."
)
_SHOWN_FLOOR = 1e-3
"""Share of the smallest divergence from which the noise floor is in the plot: far below, it would widen the axis."""


def panel_parts(content: PageContent) -> Iterator[Content]:
    """Yield the part of the section; nothing if no variant has read the panel."""
    if content.panel_closeness is None:
        return
    yield tag("h3", "On held-out text")
    yield paragraph(f"{_WORDS} {CAUTION}")
    points = panel_points(content)
    if len(points) > MAX_LINES:
        yield paragraph(f"The plot shows the first {MAX_LINES} of {len(points)} lines; the table has all.")
    if points:
        yield tag("figure", panel_plot(content))
    yield folded("All measures in a table", text_table(content.panel_closeness), class_="more", is_open=not points)


def panel_plot(content: PageContent) -> Html:
    """Return the plot: one line per variant."""
    return divergence_plot(content, panel_points(content)[:MAX_LINES], _PLOT)


def panel_points(content: PageContent) -> list[PlottedFidelity]:
    """Return what the plot shows: the variants, and the noise floor if it is not far below all of them."""
    lowest = min((one.divergence.value for one in content.panels if not one.is_noise_floor), default=0.0)
    return [
        PlottedFidelity(
            line=(one.run, one.variant),
            task="held-out text, noise floor" if one.is_noise_floor else "held-out text",
            n=one.positions,
            divergence=one.divergence,
            agreement=one.agreement.value,
        )
        for one in sorted(content.panels, key=lambda one: one.is_noise_floor)
        if not one.is_noise_floor or one.divergence.value > _SHOWN_FLOOR * lowest > 0
    ]
