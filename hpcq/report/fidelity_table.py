"""Table of the fidelity of variants to their baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hpcq.report.fidelity import ChoiceFidelity, Estimate
from hpcq.report.table import MINUS, Column, Table

_TITLE = "Fidelity to unquantized on multiple-choice items, mean with 95 % interval"
_HEADINGS = ("variant", "task", "n", "KL, nats", "same choice, %", "right choice, nats", "margin, nats")
_NOTE = (
    "KL: divergence of the probabilities of the choices from those of the unquantized model. Right choice and margin:"
    " change of the log-likelihood of the right choice, and of its distance from the best other choice. Fidelity shows"
    " how much a variant differs, with fewer items than a score needs. It does not show whether the variant is better"
    " or worse."
)


def fidelity_table(fidelity: Sequence[ChoiceFidelity], names: Mapping[tuple[str, str], str]) -> Table | None:
    """Return the table; None if nothing was compared.

    Args:
        fidelity: Fidelity by variant and task.
        names: Name of each run and variant in the main table.
    """
    if not fidelity:
        return None
    lines, last = [], ""
    for one in fidelity:
        name = names[one.run, one.variant]
        lines.append(
            (
                "" if name == last else name,
                one.task,
                str(one.n),
                format_divergence(one.divergence),
                format_estimate(one.agreement, digits=1, scale=100),
                format_estimate(one.gold_change, digits=3, sign="+"),
                format_estimate(one.margin_change, digits=3, sign="+"),
            )
        )
        last = name
    return Table(
        title=_TITLE,
        columns=tuple(Column(name=name) for name in _HEADINGS),
        lines=tuple(lines),
        notes=(_NOTE,),
        left_columns=2,
    )


def format_estimate(estimate: Estimate, *, digits: int, scale: float = 1.0, sign: str = "") -> str:
    """Return a value and its interval as text."""
    value, low, high = (
        # What rounds to zero has no sign.
        f"{number:{sign}.{digits}f}".replace("-", MINUS) if round(number, digits) else f"{0.0:.{digits}f}"
        for number in (scale * one for one in (estimate.value, estimate.low, estimate.high))
    )
    return f"{value} ({low} to {high})"


def format_divergence(estimate: Estimate) -> str:
    """Return a divergence with three significant digits: it spans many orders of magnitude."""
    return f"{estimate.value:.3g} ({estimate.low:.3g} to {estimate.high:.3g})"
