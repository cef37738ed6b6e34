"""Tables as a study prints them: scores of the report, published scores and their differences, on the study's scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hpcq.catalog.leaderboard import Scale
from hpcq.catalog.published_scores import PublishedScore, find_published_score
from hpcq.catalog.published_tables import STUDY_TASKS
from hpcq.report.number_formats import MISSING
from hpcq.report.rows import Row
from hpcq.report.table import Column, Table, format_signed

PROTOCOL_MARK = "\N{DOUBLE DAGGER}"
_SCALES = {
    Scale.RAW: "percent",
    Scale.NORMALIZED: "normalized: 100 (raw \N{MINUS SIGN} guessing) / (1 \N{MINUS SIGN} guessing)",
}
_LEGEND = (
    "Difference with 95 % interval, as if both had answered independent samples of the items. They answered the same"
    " ones, so the interval is rather too wide. Average: of the tasks with both scores."
)
_PARTS = (
    "Normalized: per subtask for BBH, MuSR and MATH, then averaged. IFEval: mean of strict accuracy per prompt and per"
    " instruction. GPQA: leaderboard_gpqa_extended alone, because the published scores are those of its 546 items."
)


def published_tables(rows: Sequence[Row], names: Mapping[tuple[str, str], str]) -> tuple[Table, ...]:
    """Return one table per suite of the study that has scores of these rows.

    Args:
        rows: Rows with published scores.
        names: Name of each run and variant in the main table.
    """
    suites = dict.fromkeys(task.suite for task in STUDY_TASKS.values())
    return tuple(table for suite in suites if (table := _table(suite, rows, names)))


def _table(suite: str, rows: Sequence[Row], names: Mapping[tuple[str, str], str]) -> Table | None:
    compared: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        if row.published_value is not None and STUDY_TASKS[row.task].suite == suite:
            compared.setdefault((row.run, row.variant), {})[row.task] = row
    if not compared:
        return None
    tasks = [
        name
        for name, task in STUDY_TASKS.items()
        if task.suite == suite and any(name in own for own in compared.values())
    ]
    scale = STUDY_TASKS[tasks[0]].scale
    columns = ("variant", "", "GB", *(STUDY_TASKS[name].column for name in tasks), "average")
    first = next(iter(next(iter(compared.values())).values()))
    return Table(
        title=f"{suite}, {_SCALES[scale]}: scores of this report and of {first.published_source}",
        columns=tuple(Column(name=name) for name in columns),
        lines=tuple(line for key, own in compared.items() for line in _lines(names[key], own, tasks, scale)),
        notes=(
            _LEGEND,
            *((_PARTS,) if scale is Scale.NORMALIZED else ()),
            *_protocol_notes(compared, names),
            *_misprint_notes(compared),
        ),
        left_columns=2,
    )


def _lines(name: str, rows: Mapping[str, Row], tasks: Sequence[str], scale: Scale) -> Iterator[tuple[str, ...]]:
    first = next(iter(rows.values()))
    own = "" if first.checkpoint_bytes is None else f"{first.checkpoint_bytes / 1e9:.3g}"
    published = _published(first)
    size = f"{published.cell.gigabytes:g}" if published and published.cell.gigabytes else MISSING
    yield (name, "here", own or MISSING, *_numbers(rows, tasks, "published_own"))
    if scale is Scale.NORMALIZED:
        cells = (f"{100 * rows[task].value:.2f}" if task in rows else MISSING for task in tasks)  # type: ignore[operator]
        yield ("", "here, raw", "", *cells, MISSING)
    yield ("", "published", size, *_numbers(rows, tasks, "published_value"))
    differences = (_difference(rows[task]) if task in rows else MISSING for task in tasks)
    yield ("", "difference", "", *differences, _mean(rows, "published_delta", sign=True))


def _published(row: Row) -> PublishedScore | None:
    return find_published_score(row.published_source or "", row.model, row.scheme, row.task)


def _numbers(rows: Mapping[str, Row], tasks: Sequence[str], name: str) -> Iterator[str]:
    yield from (f"{getattr(rows[task], name):.2f}" if task in rows else MISSING for task in tasks)
    yield _mean(rows, name)


def _mean(rows: Mapping[str, Row], name: str, *, sign: bool = False) -> str:
    mean = sum(getattr(row, name) for row in rows.values()) / len(rows)
    return format_signed(mean) if sign else f"{mean:.2f}"


def _difference(row: Row) -> str:
    mark = PROTOCOL_MARK if row.published_protocol else ""
    cell = format_signed(row.published_delta or 0.0) + mark
    if row.published_low is None or row.published_high is None:
        return cell
    return f"{cell} ({format_signed(row.published_low)} to {format_signed(row.published_high)})"


def _protocol_notes(
    compared: Mapping[tuple[str, str], Mapping[str, Row]], names: Mapping[tuple[str, str], str]
) -> Iterator[str]:
    """Yield one sentence per difference, with the tasks or variants that have it."""
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for line, rows in compared.items():
        for task, row in rows.items():
            for difference in row.published_protocol:
                variants, tasks = found.setdefault(difference, ({}, {}))
                variants[names[line]] = tasks[task] = None
    for difference, (variants, tasks) in found.items():
        where = "" if len(variants) == len(compared) else f"{', '.join(variants)}, "
        yield f"{PROTOCOL_MARK} The protocol differs: {where}{', '.join(tasks)}: {difference}."


def _misprint_notes(compared: Mapping[tuple[str, str], Mapping[str, Row]]) -> Iterator[str]:
    found = [_published(row) for rows in compared.values() for row in rows.values()]
    for sentence in dict.fromkeys(one.misprint.sentence for one in found if one and one.misprint):
        yield f"Misprint in the study: {sentence}"
