"""Fidelity of variants on the fidelity panel: their next-token distributions against those of their baselines.

Intervals resample whole windows of the text, because the positions of one window are not independent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import exp

import numpy as np

from hpcq.core.frozen import dataclass
from hpcq.core.work_records import PANEL_TASK
from hpcq.report.fidelity import Estimate, mean_estimate
from hpcq.report.line import Line
from hpcq.report.rows import UNQUANTIZED_TOOL, Row
from hpcq.report.statistics.intervals import wilson_interval
from hpcq.report.statistics.item_scores import Floats
from hpcq.report.statistics.next_tokens import NextTokens, agrees, divergence_bound
from hpcq.store import PanelTable, ResultsFile


@dataclass(frozen=True, kw_only=True)
class PanelFidelity:
    """Fidelity of a variant on the panel; for a baseline, the noise floor: its second reading compared with its first.

    Attributes:
        run: Name of the run.
        variant: Id of the variant.
        baseline_run: Name of the run of the baseline.
        baseline: Id of the baseline; for a baseline, its own id.
        windows: Number of windows of the text.
        positions: Number of predicted tokens.
        divergence: Mean of a lower bound of KL(baseline || variant), in nats per token.
        agreement: Share of the positions with the same most probable token.
        perplexity: Perplexity of the variant on the text; for a baseline, that of its first reading.
        perplexity_ratio: Perplexity of the variant divided by that of the baseline.
        window_divergences: Mean divergence in each window, in nats per token.
        is_cross_backend: Whether the baseline was read with another backend.
    """

    run: str
    variant: str
    baseline_run: str
    baseline: str
    windows: int
    positions: int
    divergence: Estimate
    agreement: Estimate
    perplexity: float
    perplexity_ratio: Estimate
    window_divergences: tuple[float, ...]
    is_cross_backend: bool = False

    @property
    def is_noise_floor(self) -> bool:
        """Whether it compares two readings of the baseline."""
        return (self.run, self.variant) == (self.baseline_run, self.baseline)


@dataclass(frozen=True, kw_only=True)
class PanelProblem:
    """A variant that has read the panel and is not compared.

    Attributes:
        run: Name of the run.
        variant: Id of the variant.
        reason: Why it is not compared, as a clause.
    """

    run: str
    variant: str
    reason: str


def panel_fidelity(
    rows: Sequence[Row], results: Mapping[str, ResultsFile]
) -> tuple[list[PanelFidelity], list[PanelProblem]]:
    """Return the fidelity of each variant that has read the panel, in the order of the rows, and what is not compared.

    Args:
        rows: Rows with their baselines.
        results: Open `results.h5` by name of the run.
    """
    found: list[PanelFidelity] = []
    problems: list[PanelProblem] = []
    for line, baseline, is_cross_backend in _pairs(rows):
        table = results[line[0]].panel(line[1], PANEL_TASK)
        if table is None:
            continue
        other = results[baseline[0]].panel(baseline[1], PANEL_TASK) if baseline and baseline != line else table
        compared = _compared(line, baseline, table, other)
        if isinstance(compared, PanelProblem):
            problems.append(compared)
            continue
        base, own = compared
        found.append(_fidelity(line, baseline or line, base, own, is_cross_backend=is_cross_backend))
    return found, problems


def _pairs(rows: Sequence[Row]) -> Iterator[tuple[Line, Line | None, bool]]:
    """Yield each variant with its baseline (None: it has none), and whether their backends differ.

    An unquantized variant is its own baseline.
    """
    lines: dict[Line, list[Row]] = {}
    for row in rows:
        lines.setdefault((row.run, row.variant), []).append(row)
    for line, own in lines.items():
        if own[0].tool == UNQUANTIZED_TOOL:
            yield line, line, False
            continue
        baselines = (
            ((row.baseline_run or row.run, row.baseline_variant), row.is_cross_backend)
            for row in own
            if row.baseline_variant is not None
        )
        yield line, *next(baselines, (None, False))


def _compared(
    line: Line, baseline: Line | None, table: PanelTable, other: PanelTable | None
) -> tuple[PanelTable, PanelTable] | PanelProblem:
    """Return the windows of the baseline and those of the variant, if they are the same; otherwise why they are not.

    A baseline is compared with its own second reading (`repeat` 1).
    """
    run, variant = line
    if baseline is None or other is None:
        return PanelProblem(run=run, variant=variant, reason="no unquantized variant has read the fidelity panel")
    base = other.part(other.repeat == 0)
    own = table.part(table.repeat == (1 if line == baseline else 0))
    if line == baseline and not np.array_equal(base.digest, own.digest):
        reason = f"the noise floor is unknown: its second reading has {len(own.window)} of {len(base.window)} windows"
        return PanelProblem(run=run, variant=variant, reason=reason)
    if not np.array_equal(base.digest, own.digest):
        reason = f"its {len(own.window)} windows are not the {len(base.window)} of the unquantized variant"
        return PanelProblem(run=run, variant=variant, reason=reason)
    if not np.array_equal(base.tokens, own.tokens):
        reason = "its tokenizer makes other tokens of the text than that of the unquantized variant"
        return PanelProblem(run=run, variant=variant, reason=reason)
    return base, own


def _fidelity(
    line: Line, baseline: Line, base: PanelTable, own: PanelTable, *, is_cross_backend: bool
) -> PanelFidelity:
    divergences, agreements = window_measures(base, own)
    loss, base_loss = (-one.next_logprobs.mean(axis=1, dtype=np.float64) for one in (own, base))
    change = mean_estimate(loss - base_loss)
    divergence = mean_estimate(divergences)
    return PanelFidelity(
        run=line[0],
        variant=line[1],
        baseline_run=baseline[0],
        baseline=baseline[1],
        windows=len(own.window),
        positions=own.next_logprobs.size,
        divergence=Estimate(value=divergence.value, low=max(0.0, divergence.low), high=divergence.high),
        agreement=_share(agreements, own.next_logprobs.size),
        perplexity=exp((base_loss if line == baseline else loss).mean()),
        perplexity_ratio=Estimate(value=exp(change.value), low=exp(change.low), high=exp(change.high)),
        window_divergences=tuple(map(float, divergences)),
        is_cross_backend=is_cross_backend,
    )


def window_measures(base: PanelTable, own: PanelTable) -> tuple[Floats, Floats]:
    """Return the mean divergence and the mean agreement of each window, both of shape (windows,).

    Args:
        base: Windows of the baseline.
        own: The same windows of the variant.
    """
    divergences, agreements = np.zeros(len(own.window)), np.zeros(len(own.window))
    for at in range(len(own.window)):
        first, second = (
            NextTokens(
                ids=one.top_ids[at].astype(np.int64),
                logprobs=one.top_logprobs[at].astype(np.float64),
                following=one.tokens[at, 1:].astype(np.int64),
                following_logprobs=one.next_logprobs[at].astype(np.float64),
            )
            for one in (base, own)
        )
        divergences[at] = divergence_bound(first, second).mean()
        agreements[at] = agrees(first, second).mean()
    return divergences, agreements


def _share(agreements: Floats, positions: int) -> Estimate:
    """Return the mean agreement and its interval.

    If all windows have the same agreement, the bootstrap has no width: the interval is Wilson's for `positions`
    independent positions.

    Args:
        agreements: Mean agreement of each window, shape (windows,).
        positions: Number of predicted tokens of all windows.
    """
    if not np.ptp(agreements):
        share = wilson_interval(float(agreements[0]) * positions, positions)
        return Estimate(value=float(agreements[0]), low=share.low, high=share.high)
    found = mean_estimate(agreements)
    return Estimate(value=found.value, low=max(0.0, found.low), high=min(1.0, found.high))
