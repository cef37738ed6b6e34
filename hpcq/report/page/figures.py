"""Plots of the page as files that stand alone: SVG, and PDF and PNG made from it; for papers, in the light colours.

PDF and PNG are converted by vl-convert (resvg and svg2pdf with their fonts, no system library), which is optional.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path

from hpcq.core.errors import SetupError
from hpcq.core.files import committed_file, make_folder
from hpcq.report.page.content import PageContent
from hpcq.report.page.cost_section import kinds_of_cost, pareto_plot
from hpcq.report.page.costs import variant_costs
from hpcq.report.page.fidelity_section import fidelity_plot, plotted_fidelity
from hpcq.report.page.heat_map_plot import heat_map_plot
from hpcq.report.page.make_page import read_file
from hpcq.report.page.markup import Html
from hpcq.report.page.panel_plot import panel_plot, panel_points
from hpcq.report.page.timeline_section import timeline_plot, units_by_start

DOTS_PER_INCH = 300.0
"""Resolution of PNG files: what publishers ask for at least."""
_CSS_UNITS_PER_INCH = 96.0
_POINTS_PER_INCH = 72.0
"""vl-convert's pixels of a unit are scale * ppi / 72."""

_VARIABLE = re.compile(r"(--[\w-]+):\s*(#\w+);")


class FigureFormat(StrEnum):
    """Format of a figure's file; the value is the end of its name."""

    SVG = "svg"
    PDF = "pdf"
    PNG = "png"


def write_figures(
    folder: Path, content: PageContent, formats: Sequence[FigureFormat] = (FigureFormat.SVG,)
) -> list[str]:
    """Write all plots that the content has data for, and return the names of the files.

    Args:
        folder: Folder to write to; it is created.
        content: Input of the page.
        formats: Formats of the files.

    Raises:
        SetupError: A format needs a package that is not installed.
        StorageError: A file cannot be written.
    """
    converters = [(one, _converter(one)) for one in dict.fromkeys(formats)]
    make_folder(folder)
    style = _style()
    ground = f'<rect width="100%" height="100%" fill="{_colours()["--ground"]}"/>'
    names = []
    for name, plot in _figures(content):
        start, end = plot.source.split(">", 1)
        source = f"{start}><style>{style}</style>{ground}{end}\n"
        for form, convert in converters:
            with committed_file(folder / f"{name}.{form}") as temporary:
                temporary.write_bytes(convert(source))
            names.append(f"{name}.{form}")
    return names


def _converter(form: FigureFormat) -> Callable[[str], bytes]:
    """Return a function that makes a file of an SVG document.

    Raises:
        SetupError: The package that converts SVG is not installed.
    """
    if form is FigureFormat.SVG:
        return str.encode
    try:
        import vl_convert
    except ImportError as error:
        raise SetupError(
            f"Figures as {form.upper()} need the package vl-convert-python, which is not installed: run"
            " `pip install 'hpcq[figures]'`, or use --figure-formats svg."
        ) from error
    if form is FigureFormat.PDF:
        return lambda source: bytes(vl_convert.svg_to_pdf(source))
    return lambda source: bytes(
        vl_convert.svg_to_png(source, scale=_POINTS_PER_INCH / _CSS_UNITS_PER_INCH, ppi=DOTS_PER_INCH)
    )


def _figures(content: PageContent) -> Iterator[tuple[str, Html]]:
    differences = heat_map_plot(content)
    if differences is not None:
        yield "differences", differences
    costs = variant_costs(content)
    yield from ((f"quality-{kind.id}", pareto_plot(costs, kind)) for kind in kinds_of_cost(costs))
    points = plotted_fidelity(content)
    if points:
        yield "fidelity", fidelity_plot(content, points)
    if panel_points(content):
        yield "fidelity-panel", panel_plot(content)
    for number, run in enumerate(content.evidence.runs):
        if run.attempts:
            yield f"attempts-{number}", timeline_plot(units_by_start(run), run.name, number=number)


def _style() -> str:
    """Return the style sheet of the plots with its colours: most programs do not know variables."""
    colours = _colours()
    return re.sub(r"var\((--[\w-]+)\)", lambda found: colours[found[1]], read_file("plots.css"))


def _colours() -> dict[str, str]:
    return dict(_VARIABLE.findall(read_file("light.css")))
