"""Section of quality and cost: a Pareto plot per kind of cost, and the numbers in a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from hpcq.core.frozen import dataclass
from hpcq.report.number_formats import MISSING
from hpcq.report.page.axes import Scale, bottom_axis, cost_scale, drawing, left_axis, linear_scale
from hpcq.report.page.content import PageContent, shortened_name
from hpcq.report.page.costs import MAX_MODELS, Costs, VariantCost, pareto_front, variant_costs
from hpcq.report.page.labels import Box, place_labels
from hpcq.report.page.markup import Html, join, tag
from hpcq.report.page.sections import Section, paragraph
from hpcq.report.page.tables import Cell, Heading, Record, data_table

WIDTH, HEIGHT = 580.0, 400.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 48.0, 565.0, 46.0, 352.0
_RADIUS = 6.0
MAX_LABELS = 30
_CHARACTER_WIDTH, _LINE_HEIGHT = 7.2, 14.0

_HEADINGS = (
    Heading(name="variant"),
    Heading(name="mean score, %", is_number=True),
    Heading(name="GB on disk", is_number=True),
    Heading(name="hours", is_number=True),
    Heading(name="best for"),
)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A kind of cost.

    Attributes:
        id: Part of identifiers.
        name: Name of the axis.
        of: Returns the cost of a variant.
        noun: Its name in sentences.
    """

    id: str
    name: str
    of: Callable[[VariantCost], float | None]
    noun: str


def kinds_of_cost(costs: Costs) -> list[Cost]:
    """Return the kinds that at least two variants have."""
    hours = "GPU-hours" if costs.has_gpus else "hours of a node without GPUs"
    kinds = (
        Cost(id="size", name="size of the weights, GB", of=lambda one: one.gigabytes, noun="size"),
        Cost(id="hours", name=f"{hours} to quantize and evaluate", of=lambda one: one.hours, noun="hours"),
    )
    return [kind for kind in kinds if sum(kind.of(one) is not None for one in costs.variants) > 1]


def cost_section(content: PageContent) -> Section | None:
    """Return the section; None if fewer than two variants can be compared."""
    costs = variant_costs(content)
    kinds = kinds_of_cost(costs)
    if not kinds:
        return None
    mean = f"Mean score of {', '.join(costs.tasks)}." if len(costs.tasks) > 1 else f"Score of {costs.tasks[0]}."
    explanation = (
        f"{mean} Vertical bars: 95 % interval of the difference from the unquantized variant. The line connects the"
        " variants that no other one beats in both quality and cost."
    )
    words = [explanation]
    if costs.left_out:
        words.append(f"Not shown, because a score is missing: {', '.join(costs.left_out)}.")
    plots = [tag("figure", pareto_plot(costs, kind)) for kind in kinds]
    parts = (*map(paragraph, words), tag("div", *plots, class_="plots"), _table(costs, kinds))
    return Section(id="cost", link="Cost", title="Quality and cost", content=join(parts))


def pareto_plot(costs: Costs, cost: Cost) -> Html:
    """Return the plot of quality against a cost."""
    variants = [one for one in costs.variants if cost.of(one) is not None]
    front = pareto_front(variants, cost.of)
    x = cost_scale([cost.of(one) or 0.0 for one in variants], _LEFT, _RIGHT)
    ends = [value for one in variants for value in (one.quality, one.low, one.high) if value is not None]
    y = linear_scale(ends, _BOTTOM, _TOP)
    models = list(dict.fromkeys(one.model for one in variants))
    parts = [
        bottom_axis(x, top=_TOP, bottom=_BOTTOM, title=cost.name),
        left_axis(y, left=_LEFT, right=_RIGHT, title="mean score, %"),
        *_legend(models),
        _front_line(front, cost, x, y),
        *(_point(one, cost, x, y, models.index(one.model)) for one in variants),
        *_labels(variants, cost, x, y),
    ]
    return drawing(
        join(parts),
        width=WIDTH,
        height=HEIGHT,
        name=f"pareto-{cost.id}",
        title=f"Mean score against {cost.name}",
        description=f"No other variant beats in both: {', '.join(one.name for one in front)}.",
    )


def _front_line(front: Sequence[VariantCost], cost: Cost, x: Scale, y: Scale) -> Html:
    corners = []
    for one, after in zip(front, [*front[1:], None], strict=True):
        corners.append(f"{x(cost.of(one) or 0.0):.1f},{y(one.quality):.1f}")
        end = x.end if after is None else x(cost.of(after) or 0.0)
        corners.append(f"{end:.1f},{y(one.quality):.1f}")
    return tag("polyline", points=" ".join(corners), class_="front")


def _point(one: VariantCost, cost: Cost, x: Scale, y: Scale, model: int) -> Html:
    across, down = x(cost.of(one) or 0.0), y(one.quality)
    bar = (
        None
        if one.low is None or one.high is None
        else tag("line", x1=across, x2=across, y1=y(one.low), y2=y(one.high), class_="whisker")
    )
    words = f"{one.name}: {one.quality:.1f} %, {cost.name} {cost.of(one):.3g}"
    shape = marker(model, across, down, is_hollow=one.is_baseline)
    return tag("g", tag("title", words), bar, shape, class_="point")


def marker(kind: int, x: float, y: float, *, is_hollow: bool) -> Html:
    """Return a circle, square, diamond or triangle: models differ in shape and colour."""
    hollow, series = " hollow" if is_hollow else "", kind % 4
    css, size = f"marker series{series}{hollow}", _RADIUS
    if series == 0:
        return tag("circle", cx=x, cy=y, r=size, class_=css)
    corners = {
        1: ((-size, -size), (size, -size), (size, size), (-size, size)),
        2: ((0, -1.4 * size), (1.4 * size, 0), (0, 1.4 * size), (-1.4 * size, 0)),
        3: ((0, -1.3 * size), (1.2 * size, size), (-1.2 * size, size)),
    }[series]
    return tag("polygon", points=" ".join(f"{x + right:.1f},{y + down:.1f}" for right, down in corners), class_=css)


def _legend(models: Sequence[str]) -> Iterator[Html]:
    """Yield the markers of the models, if there are several."""
    x = _LEFT + 100
    if not 1 < len(models) <= MAX_MODELS:
        return
    for at, model in enumerate(models):
        name = shortened_name(model.rstrip("/").split("/")[-1])
        yield marker(at, x, _TOP - 14, is_hollow=False)
        yield tag("text", name, x=x + 11, y=_TOP - 10, class_="label")
        x += 24 + _CHARACTER_WIDTH * len(name)


def _labels(variants: Sequence[VariantCost], cost: Cost, x: Scale, y: Scale) -> list[Html]:
    """Return the names next to the points; none if there are too many, which the table then names."""
    if len(variants) > MAX_LABELS:
        return []
    names = [one.label for one in variants]
    points = [(x(cost.of(one) or 0.0), y(one.quality)) for one in variants]
    sizes = [(_CHARACTER_WIDTH * len(name), _LINE_HEIGHT) for name in names]
    area = Box(left=_LEFT, top=_TOP - 6, right=_RIGHT + 14, bottom=_BOTTOM)
    boxes = place_labels(points, sizes, area, gap=_RADIUS + 5)
    return [
        tag("text", name, x=box.left, y=box.bottom - 3, class_="label")
        for name, box in zip(names, boxes, strict=True)
        if box is not None
    ]


def _table(costs: Costs, kinds: Sequence[Cost]) -> Html:
    fronts = {kind.noun: pareto_front(costs.variants, kind.of) for kind in kinds}

    def number(value: float | None) -> Cell:
        return Cell(content=MISSING if value is None else f"{value:.3g}", value=value)

    records = [
        Record(
            cells=(
                one.name,
                Cell(content=f"{one.quality:.1f}", value=one.quality),
                number(one.gigabytes),
                number(one.hours),
                ", ".join(noun for noun, front in fronts.items() if one in front),
            )
        )
        for one in costs.variants
    ]
    return data_table(_HEADINGS, records, label="Quality and cost")
