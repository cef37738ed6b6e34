"""Section of the attempts: a timeline with preemptions and failures, and all attempts in a table."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from enum import StrEnum

from hpcq.core.attempts import AttemptRecord
from hpcq.core.failures import Failure
from hpcq.core.frozen import dataclass
from hpcq.core.outcomes import Outcome
from hpcq.report.number_formats import MISSING, format_duration
from hpcq.report.page.axes import Scale, drawing
from hpcq.report.page.content import PageContent
from hpcq.report.page.evidence import RunEvidence
from hpcq.report.page.markup import Content, Html, join, tag
from hpcq.report.page.sections import Section, folded, paragraph
from hpcq.report.page.tables import Cell, Heading, Record, data_table

MAX_UNITS, MAX_ATTEMPTS = 80, 600
WIDTH = 960.0
_LEFT, _RIGHT, _TOP, _LINE = 300.0, 950.0, 8.0, 20.0
_MIN_BAR = 2.0
_NAME_CHARACTERS = 42
_MAX_TICKS = 8
_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_STEPS = (10, 30, 60, 300, 600, 1800, 3600, 7200, 14_400, 43_200, 86_400, 172_800, 604_800, 2_592_000, 31_536_000)
"""Seconds between two ticks."""

_HEADINGS = (
    Heading(name="unit"),
    Heading(name="attempt", is_number=True),
    Heading(name="start (UTC)", is_number=True),
    Heading(name="duration", is_number=True),
    Heading(name="estimate", is_number=True),
    Heading(name="end", is_choice=True),
    Heading(name="next"),
    Heading(name="job"),
    Heading(name="node", is_choice=True),
    Heading(name="GPUs", is_number=True),
    Heading(name="committed", is_number=True),
    Heading(name="reason"),
)


class End(StrEnum):
    """How an attempt has ended, as the timeline shows it."""

    DONE = "done"
    PREEMPTED = "preempted"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    RUNNING = "running"


_SYMBOLS = {
    End.DONE: "",
    End.PREEMPTED: "P",
    End.INTERRUPTED: "I",
    End.FAILED: "\N{MULTIPLICATION SIGN}",
    End.RUNNING: "\N{HORIZONTAL ELLIPSIS}",
}


def end_of(attempt: AttemptRecord) -> End:
    """Return how the attempt has ended."""
    if attempt.failure is Failure.PREEMPTED:
        return End.PREEMPTED
    ends = {Outcome.DONE: End.DONE, Outcome.RUNNING: End.RUNNING, Outcome.INTERRUPTED: End.INTERRUPTED}
    return ends.get(attempt.outcome, End.FAILED)


def timeline_section(content: PageContent) -> Section | None:
    """Return the section; None without attempts."""
    parts = [_run(run, number) for number, run in enumerate(content.evidence.runs) if run.attempts]
    if not parts:
        return None
    return Section(id="attempts", link="Attempts", title="Timeline of attempts", content=join(parts))


def _run(run: RunEvidence, number: int) -> Html:
    units = units_by_start(run)
    attempts = [attempt for _, own in units for attempt in own]
    counts = [(end, sum(end_of(attempt) is end for attempt in attempts)) for end in End]
    words = f"{len(attempts)} attempts of {len(units)} units: {', '.join(f'{n} {end}' for end, n in counts if n)}."
    parts: list[Content] = [tag("h3", run.name), paragraph(words), _legend()]
    if len(units) > MAX_UNITS:
        # Units with several attempts show what went wrong.
        kept = sorted(units, key=lambda item: -len(item[1]))[:MAX_UNITS]
        units = sorted(kept, key=lambda item: item[1][0].start)
        parts.append(paragraph(f"The plot shows the {MAX_UNITS} units with the most attempts."))
    parts.append(tag("figure", timeline_plot(units, run.name, number=number), class_="wide"))
    estimates = {str(unit.get("id")): unit.get("seconds") for unit in run.plan_document.get("units", ())}
    shown = attempts[:MAX_ATTEMPTS]
    more = f" (of {len(attempts)})" if len(attempts) > len(shown) else ""
    records = (_record(attempt, estimates.get(attempt.unit)) for attempt in shown)
    table = data_table(_HEADINGS, records, label=f"Attempts of {run.name}", can_filter=True)
    parts.append(folded(f"{len(shown)} attempts{more} in a table", table, class_="more"))
    return join(parts)


def units_by_start(run: RunEvidence) -> list[tuple[str, Sequence[AttemptRecord]]]:
    """Return the attempts of each unit, in the order of the first ones' starts."""
    return sorted(run.attempts.items(), key=lambda item: item[1][0].start)


def _legend() -> Html:
    keys = [tag("li", tag("span", class_=f"key end-{end}"), f"{end} {_SYMBOLS[end]}".strip()) for end in End]
    return tag("ul", *keys, class_="legend", aria_label="Legend")


@dataclass(frozen=True, kw_only=True)
class _Bar:
    """An attempt on the axis of time, in seconds since the first one's start."""

    start: float
    end: float
    attempt: AttemptRecord


def timeline_plot(units: Sequence[tuple[str, Sequence[AttemptRecord]]], run: str, *, number: int = 0) -> Html:
    """Return the plot: one line per unit, one bar per attempt.

    Args:
        units: Attempts of each unit.
        run: Name of the run.
        number: Number of the plot in the page.
    """
    times = [_seconds(text) for _, own in units for one in own for text in (one.start, one.end) if text]
    first, last = min(times), max(times)
    scale = Scale(low=0.0, high=max(last - first, 1.0), start=_LEFT, end=_RIGHT)
    bottom = _TOP + _LINE * len(units)
    parts = list(_time_axis(scale, bottom))
    for at, (unit, own) in enumerate(units):
        y = _TOP + at * _LINE
        parts.append(tag("text", _short(unit), x=_LEFT - 8, y=y + 14, class_="label end"))
        for one in own:
            end = _seconds(one.end) if one.end else last
            bar = _Bar(start=_seconds(one.start) - first, end=max(end, _seconds(one.start)) - first, attempt=one)
            parts.append(_bar(bar, scale, y))
    return drawing(
        join(parts),
        width=WIDTH,
        height=bottom + 40,
        name=f"timeline-{number}",
        title=f"Attempts of {run}",
        description=f"One line per unit, from {units[0][1][0].start}. The table below has all attempts.",
    )


def _bar(bar: _Bar, scale: Scale, y: float) -> Html:
    end, one = end_of(bar.attempt), bar.attempt
    left = scale(bar.start)
    width = max(_MIN_BAR, scale(bar.end) - left)
    reason = f": {one.reason}" if one.reason else ""
    words = f"{one.unit}, attempt {one.attempt}: {end} after {format_duration(bar.end - bar.start)}{reason}"
    symbol = _SYMBOLS[end]
    return tag(
        "g",
        tag("title", words),
        tag("rect", x=left, y=y + 3, width=width, height=_LINE - 6, class_=f"bar end-{end}"),
        tag("text", symbol, x=left + width + 2, y=y + 14, class_="symbol") if symbol else None,
        class_="point",
    )


def _time_axis(scale: Scale, bottom: float) -> Iterator[Html]:
    step = next((step for step in _STEPS if scale.high / step <= _MAX_TICKS), _STEPS[-1])
    for number in range(int(scale.high / step) + 1):
        at = scale(number * step)
        yield tag("line", x1=at, x2=at, y1=_TOP, y2=bottom, class_="grid")
        yield tag("text", _tick(number * step), x=at, y=bottom + 16, class_="tick middle")
    yield tag("text", "since the first start", x=(_LEFT + _RIGHT) / 2, y=bottom + 34, class_="axis middle")


def _tick(seconds: int) -> str:
    """Format with the largest unit of which it is a multiple: '90 min', '2 h'."""
    size, unit = next((size, unit) for size, unit in _UNITS if seconds % size == 0 and (seconds or size == 1))
    return f"{seconds // size} {unit}"


def _seconds(time: str) -> float:
    return datetime.datetime.fromisoformat(time).timestamp()


def _short(name: str) -> str:
    half = _NAME_CHARACTERS // 2
    return name if len(name) <= _NAME_CHARACTERS else f"{name[:half]}…{name[-half + 1 :]}"


def _record(attempt: AttemptRecord, estimate: float | None) -> Record:
    seconds = _seconds(attempt.end) - _seconds(attempt.start) if attempt.end else None
    end = end_of(attempt)
    failure = f" ({attempt.failure})" if attempt.failure and end is End.FAILED else ""
    return Record(
        cells=(
            attempt.unit,
            Cell(content=str(attempt.attempt), value=attempt.attempt),
            attempt.start.replace("T", " ")[:19],
            Cell(content=format_duration(seconds), value=seconds),
            Cell(content=format_duration(estimate), value=estimate),
            f"{end}{failure}",
            str(attempt.decision or MISSING),
            attempt.job_id,
            attempt.node,
            Cell(content=str(attempt.gpus), value=attempt.gpus),
            Cell(content=str(attempt.committed), value=attempt.committed),
            Cell(content=tag("div", attempt.reason, class_="remark") if attempt.reason else ""),
        )
    )
