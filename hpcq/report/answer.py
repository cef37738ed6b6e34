"""Answer in words: one sentence per variant, from the verdicts of its comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hpcq.report.add_comparisons import SuiteResult
from hpcq.report.clean_text import clean
from hpcq.report.line import Line
from hpcq.report.paired import PairedResult, Verdict
from hpcq.report.rows import Row
from hpcq.report.table import format_interval, format_points, format_signed


def answer_sentences(rows: Sequence[Row], suites: Sequence[SuiteResult], names: Mapping[Line, str]) -> Iterator[str]:
    """Yield a sentence per variant that was compared with its baseline.

    Args:
        rows: All rows.
        suites: Mean differences.
        names: Name of each line of the table.
    """
    lines: dict[Line, list[tuple[Row, PairedResult]]] = {}
    for row in rows:
        if row.paired is not None and row.is_main:
            lines.setdefault((row.run, row.variant), []).append((row, row.paired))
    means = {(suite.run, suite.variant): suite for suite in suites}
    for line, compared in lines.items():
        parts = [_changed(compared, verdict) for verdict in (Verdict.WORSE, Verdict.BETTER)]
        parts += [_equivalent(compared), _cannot_tell(compared)]
        if line in means:
            parts.append(_mean(means[line]))
        if symbols := sorted({mark.kind.symbol for row, _ in compared for mark in row.marks}):
            parts.append(f"see the marks {', '.join(f'^{symbol}' for symbol in symbols)}")
        yield clean(f"{names[line]}: {'; '.join(part for part in parts if part)}.")


def _of(compared: Sequence[tuple[Row, PairedResult]], verdict: Verdict) -> list[tuple[Row, PairedResult]]:
    return [(row, paired) for row, paired in compared if paired.verdict is verdict]


def _changed(compared: Sequence[tuple[Row, PairedResult]], verdict: Verdict) -> str:
    tasks = ", ".join(
        f"{row.task} {format_signed(100 * (row.delta or 0.0))} ({format_interval(paired.delta_low, paired.delta_high)})"
        for row, paired in _of(compared, verdict)
    )
    return f"{verdict} on {tasks}" if tasks else ""


def _equivalent(compared: Sequence[tuple[Row, PairedResult]]) -> str:
    found = _of(compared, Verdict.EQUIVALENT)
    if not found:
        return ""
    return f"{Verdict.EQUIVALENT} within {format_points(100 * found[0][1].margin)} on {_count(found, compared)}"


def _cannot_tell(compared: Sequence[tuple[Row, PairedResult]]) -> str:
    found = _of(compared, Verdict.CANNOT_TELL)
    if not found:
        return ""
    sizes = sorted(100 * paired.detectable for _, paired in found)
    shown = " to ".join(dict.fromkeys(f"{size:.1f}" for size in (sizes[0], sizes[-1])))
    return f"{Verdict.CANNOT_TELL} on {_count(found, compared)} (smallest detectable difference: {shown} points)"


def _count(found: Sequence[object], compared: Sequence[object]) -> str:
    return f"{len(found)} of {len(compared)} tasks" if len(compared) > 1 else "its task"


def _mean(suite: SuiteResult) -> str:
    interval = format_interval(suite.delta_low, suite.delta_high)
    return f"mean of {len(suite.tasks)} tasks {format_signed(100 * suite.delta)} ({interval}): {suite.verdict}"
