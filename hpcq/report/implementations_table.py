"""Table of the implementations of one method: variants with the same method and number formats, by several tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hpcq.core.frozen import dataclass
from hpcq.report.fidelity import mean_estimate
from hpcq.report.fidelity_table import format_divergence
from hpcq.report.line import Line
from hpcq.report.number_formats import MISSING, format_duration, format_gigabytes
from hpcq.report.panel import PanelFidelity
from hpcq.report.rows import UNQUANTIZED_TOOL, Row
from hpcq.report.table import Column, Table

TITLE = "Implementations of one method: the same method and number formats by several tools"
_HEADINGS = (
    "method",
    "variant",
    "tool",
    "perplexity",
    "KL, nats per token",
    "GB on disk",
    "quantize",
    "peak memory, GB",
)
_LEGEND = (
    "Tools have different defaults, such as the damping of GPTQ, and recipes may differ (`recipe` in results.h5): a"
    " difference is one of the tool with its settings. Perplexity and KL: on the held-out text of the fidelity panel."
    " Peak memory: of the process that quantized, in host memory."
)


@dataclass(frozen=True, kw_only=True)
class _Method:
    """What several tools implement.

    Attributes:
        model: Identity of the model.
        name: 'gptq int4', and the type of the activations if they are quantized.
    """

    model: object
    name: str


def implementations_table(
    rows: Sequence[Row], recipes: Mapping[Line, str], panels: Sequence[PanelFidelity], names: Mapping[Line, str]
) -> Table | None:
    """Return the variants of each method that several tools have made, next to each other; None: there is none.

    Args:
        rows: Rows of the report.
        recipes: By run and variant: JSON document of the scheme.
        panels: Fidelity by variant.
        names: Name of each run and variant in the main table.
    """
    firsts: dict[Line, Row] = {}
    for row in rows:
        firsts.setdefault((row.run, row.variant), row)
    methods: dict[_Method, dict[Line, Row]] = {}
    for line, row in firsts.items():
        name = _method_name(json.loads(recipes.get(line) or "{}"))
        if row.tool != UNQUANTIZED_TOOL and name:
            methods.setdefault(_Method(model=row.model_identity, name=name), {})[line] = row
    several = {key: own for key, own in methods.items() if len({row.tool for row in own.values()}) > 1}
    if not several:
        return None
    by_line = {(one.run, one.variant): one for one in panels if not one.is_noise_floor}
    return Table(
        title=TITLE,
        columns=tuple(Column(name=name) for name in _HEADINGS),
        lines=tuple(
            _cells(key.name, names[line], row, by_line.get(line))
            for key, own in several.items()
            for line, row in own.items()
        ),
        notes=(*_comparisons(several, by_line, names), _LEGEND),
        left_columns=3,
    )


def _method_name(recipe: Mapping[str, Any]) -> str | None:
    method, weights, activations = (recipe.get(key) for key in ("method", "weights", "activations"))
    if not method or not weights:
        return None
    is_rounded = activations not in (None, "fp32", "bf16", "fp16")
    return f"{method} {weights}" + (f", activations {activations}" if is_rounded else "")


def _cells(method: str, name: str, row: Row, panel: PanelFidelity | None) -> tuple[str, ...]:
    return (
        method,
        name,
        row.tool,
        f"{panel.perplexity:.3f}" if panel else MISSING,
        format_divergence(panel.divergence) if panel else MISSING,
        format_gigabytes(row.checkpoint_bytes),
        format_duration(row.quantize_seconds),
        format_gigabytes(row.quantize_peak_bytes),
    )


def _comparisons(
    methods: Mapping[_Method, Mapping[Line, Row]], panels: Mapping[Line, PanelFidelity], names: Mapping[Line, str]
) -> list[str]:
    """Return a sentence for each method whose variants have read the panel: whether the tools differ."""
    sentences = []
    for key, own in methods.items():
        read = sorted((panels[line] for line in own if line in panels), key=lambda one: one.divergence.value)
        if len(read) > 1:
            first, second, *_ = read
            difference = mean_estimate(np.subtract(second.window_divergences, first.window_divergences))
            closest, following = names[first.run, first.variant], names[second.run, second.variant]
            sentences.append(
                f"{key.name}: {closest} is closest to unquantized; the KL of {following}, the next, is higher on the"
                " same text."
                if difference.low > 0
                else f"{key.name}: the text cannot tell {closest} from {following}."
            )
    return sentences
