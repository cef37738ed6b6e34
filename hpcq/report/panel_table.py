"""Table of the fidelity of variants on the fidelity panel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from hpcq.report.fidelity import mean_estimate
from hpcq.report.fidelity_table import format_divergence, format_estimate
from hpcq.report.line import Line
from hpcq.report.panel import PanelFidelity, PanelProblem
from hpcq.report.table import CROSS_BACKEND_MARK, Column, Table

TITLE = "Fidelity to unquantized on held-out text, mean with 95 % interval"
CAUTION = (
    "KL shows how much a variant differs from the unquantized model, not in which direction (arXiv 2606.19558): it"
    " selects what to evaluate, it does not decide whether a variant is good enough."
)
_HEADINGS = ("variant", "tokens", "KL, nats per token", "same top token, %", "perplexity", "ratio")
_LEGEND = (
    "KL: lower bound of the divergence KL(unquantized || variant) of the next-token distributions, from the most"
    " probable tokens of both. Ratio: perplexity divided by that of the unquantized model. Intervals take the windows"
    " of the text as independent."
)
_FLOOR = "(again): the unquantized model compared with itself in batches of another size. Such differences are noise."

_Names = Mapping[Line, str]


def panel_table(panels: Sequence[PanelFidelity], names: _Names, problems: Sequence[PanelProblem] = ()) -> Table | None:
    """Return the table of the panel; None if no variant has read it.

    Args:
        panels: Fidelity by variant.
        names: Name of each run and variant in the main table.
        problems: Variants that are not compared.
    """
    if not panels and not problems:
        return None
    lines = [
        (
            names[one.run, one.variant]
            + (" (again)" if one.is_noise_floor else CROSS_BACKEND_MARK if one.is_cross_backend else ""),
            str(one.positions),
            format_divergence(one.divergence),
            format_estimate(one.agreement, digits=2, scale=100),
            f"{one.perplexity:.3f}",
            format_estimate(one.perplexity_ratio, digits=4),
        )
        for one in panels
    ]
    return Table(
        title=TITLE,
        columns=tuple(Column(name=name) for name in _HEADINGS),
        lines=tuple(lines),
        notes=tuple(_notes(panels, names, problems)),
    )


def _notes(panels: Sequence[PanelFidelity], names: _Names, problems: Sequence[PanelProblem]) -> Iterator[str]:
    yield from closest_sentences(panels, names)
    yield _LEGEND
    if any(one.is_noise_floor for one in panels):
        yield _FLOOR
    if any(one.is_cross_backend for one in panels):
        yield f"{CROSS_BACKEND_MARK} Read with another backend than the baseline: KL includes the backends' difference."
    yield from (f"{names[one.run, one.variant]}: not compared, because {one.reason}." for one in problems)
    yield CAUTION


def closest_sentences(panels: Sequence[PanelFidelity], names: _Names) -> Iterator[str]:
    """Yield a sentence per baseline: the variant with the lowest KL, and those whose KL is not significantly higher."""
    groups: dict[Line, list[PanelFidelity]] = {}
    for one in panels:
        if not one.is_noise_floor:
            groups.setdefault((one.baseline_run, one.baseline), []).append(one)
    for own in groups.values():
        first, *others = sorted(own, key=lambda one: one.divergence.value)
        if not others:
            continue
        alike = [names[one.run, one.variant] for one in others if not _is_closer(first, one)]
        name = names[first.run, first.variant]
        if alike:
            yield f"Lowest KL: {name}; this text cannot tell it from {', '.join(alike)}."
        else:
            yield f"Closest to unquantized: {name}. Its KL is lower than that of every other variant on the same text."


def _is_closer(one: PanelFidelity, other: PanelFidelity) -> bool:
    """Return whether the 95 % interval of the difference on the same windows is below zero."""
    return mean_estimate(np.subtract(one.window_divergences, other.window_divergences)).high < 0
