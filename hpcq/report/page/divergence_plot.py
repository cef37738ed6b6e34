"""Plot of divergences: one line per variant and task, with its interval and the agreement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hpcq.core.frozen import dataclass
from hpcq.report.fidelity import Estimate
from hpcq.report.line import Line
from hpcq.report.page.axes import Scale, bottom_axis, drawing, logarithmic_scale
from hpcq.report.page.content import PageContent, shortened_name
from hpcq.report.page.markup import Html, join, tag

WIDTH = 720.0
_LEFT, _RIGHT, _TOP = 250.0, 600.0, 24.0
_LINE, _HEADING = 19.0, 26.0
_RADIUS = 4.5


@dataclass(frozen=True, kw_only=True)
class PlottedFidelity:
    """Fidelity of a variant on a task, or on all tasks of a group.

    Attributes:
        line: Run and variant.
        task: Name of the task or group, or of another heading.
        n: Number of items, or of tokens.
        divergence: Mean divergence, in nats.
        agreement: Share of the items with the same most probable choice, or of the tokens with the same prediction.
    """

    line: Line
    task: str
    n: int
    divergence: Estimate
    agreement: float


@dataclass(frozen=True, kw_only=True)
class PlotWords:
    """Texts of a plot.

    Attributes:
        name: Identifier of the drawing.
        title: What it shows.
        axis: What the horizontal axis shows.
        agreement: What the agreement is of: 'same choice'.
    """

    name: str
    title: str
    axis: str
    agreement: str


def divergence_plot(content: PageContent, points: Sequence[PlottedFidelity], words: PlotWords) -> Html:
    """Return the plot: one line per task and variant."""
    tasks = list(dict.fromkeys(point.task for point in points))
    bottom = _TOP + _HEADING * len(tasks) + _LINE * len(points)
    positive = [
        value
        for point in points
        for value in (point.divergence.low, point.divergence.value, point.divergence.high)
        if value > 0
    ]
    x = logarithmic_scale(positive or [1e-3, 1.0], _LEFT, _RIGHT)
    parts = [
        bottom_axis(x, top=_TOP, bottom=bottom, title=words.axis),
        tag("text", words.agreement, x=WIDTH - 8, y=_TOP - 8, class_="axis end"),
        *_rows(content, points, x, words),
    ]
    closest = min(points, key=lambda point: point.divergence.value)
    return drawing(
        join(parts),
        width=WIDTH,
        height=bottom + 44,
        name=words.name,
        title=words.title,
        description=f"Lowest divergence: {content.names[closest.line]} on {closest.task}. The table below has all.",
    )


def _rows(content: PageContent, points: Sequence[PlottedFidelity], x: Scale, words: PlotWords) -> Iterator[Html]:
    lines = list(dict.fromkeys(point.line for point in points))
    y, task = _TOP, None
    for point in points:
        if point.task != task:
            y, task = y + _HEADING, point.task
            yield tag("text", f"{shortened_name(task)}, n = {point.n}", x=4, y=y - 5, class_="group")
        y += _LINE
        yield _row(content, point, x, y - _LINE / 2, words, series=lines.index(point.line))


def _row(content: PageContent, point: PlottedFidelity, x: Scale, y: float, words: PlotWords, *, series: int) -> Html:
    found = point.divergence
    at = x(found.value) if found.value > 0 else x.start
    title = (
        f"{content.names[point.line]}, {point.task}: KL {found.value:.4g} nats ({found.low:.4g} to"
        f" {found.high:.4g}), {words.agreement} {100 * point.agreement:.1f} %, n = {point.n}"
    )
    ends = {"x1": x(max(found.low, x.low)), "x2": x(max(found.high, x.low))}
    hollow = "" if found.value > 0 else " hollow"
    return tag(
        "g",
        tag("title", title),
        tag("rect", x=0, y=y - _LINE / 2, width=WIDTH, height=_LINE, class_="band"),
        tag("text", content.label(point.line), x=_LEFT - 10, y=y + 4, class_="label end"),
        tag("line", **ends, y1=y, y2=y, class_=f"whisker series{series % 4}"),
        tag("circle", cx=at, cy=y, r=_RADIUS, class_=f"marker series{series % 4}{hollow}"),
        tag("text", f"{100 * point.agreement:.1f} %", x=WIDTH - 8, y=y + 4, class_="label end"),
        class_="point",
    )
