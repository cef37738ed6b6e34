"""Plans, states and merges as lines of plain text: the same on a terminal and in a pipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hpcq.core.work import State
from hpcq.report.table import duration, sharing

if TYPE_CHECKING:
    from hpcq.api import Planned
    from hpcq.monitor.snapshot import RunStatus, UnitStatus

SHOWN_UNITS = 40
GIB = 2**30


def columns(lines: list[tuple[str, ...]]) -> list[str]:
    """Left-aligned columns, two blanks apart."""
    if not lines:
        return []
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def plan_lines(planned: Planned, *, with_units: bool = False) -> list[str]:
    """What would be submitted, what exists, what is refused, what is missing."""
    document, status = planned.document, planned.status
    kinds = Counter(unit["kind"] for unit in document["units"])
    lines = [
        f"run {document['run']}: "
        + (", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "no units")
        + f"; on {planned.opened.profile.name} ({planned.opened.profile.scheduler})",
    ]
    if with_units:
        lines += [
            "",
            *columns(
                [("unit", "state", "class", "shape", "takes"), *(_unit_cells(unit) for unit in document["units"])]
            ),
        ]
    if planned.arrays:
        heading = ("array", "units", "class", "shape", "environment", "limit", "after")
        lines += ["", *columns([heading, *(_array_cells(array) for array in document["arrays"])])]
    already = status.counts.get("done", 0)
    lines += ["", f"done already: {already} of {len(status.units)} units"]
    lines += total_lines(document)
    for refusal in document["refused"]:
        lines.append(f"refused: {refusal['reason']} Try this: {refusal['try']}.")
    lines += [f"note: {note}" for note in document["notes"]]
    lines += [f"missing: {sentence}" for sentence in planned.opened.resolved.missing]
    return lines


def total_lines(document: Mapping[str, Any]) -> list[str]:
    """What the plan takes: disk, GPU-hours by class, wall time, tokens, and what the figures rest on."""
    totals, lines = document["totals"], []
    if totals["checkpoint_bytes"]:
        lines.append(f"checkpoints: about {totals['checkpoint_bytes'] / GIB:.1f} GiB")
    if totals["results_bytes"]:
        lines.append(f"responses and results: about {totals['results_bytes'] / GIB:.2f} GiB")
    for gpu_class, hours in totals["gpu_hours"].items():
        most = totals["gpu_hours_at_most"][gpu_class]
        lines.append(f"GPU-hours on {gpu_class}: about {hours:.3g}, at most {most:.0f} (by the time limits)")
    if totals["wall_seconds"] is not None:
        lines.append(f"wall time: about {duration(totals['wall_seconds'])}, if nothing else runs")
    if totals["critical_path"]:
        lines.append(f"critical path: {' -> '.join(totals['critical_path'])}")
    lines += [f"estimates: {sentence}" for sentence in document["reckoning"]]
    return lines + _token_lines(totals["tokens"])


def _token_lines(tokens: Mapping[str, Any] | None) -> list[str]:
    """What the plan estimates; nothing where no log-likelihood is asked for."""
    if not tokens or not (tokens["asked"] or tokens["without"]):
        return []
    told = sharing(tokens["asked"], tokens["computed"]) if tokens["asked"] else "not known"
    without = f"; without {', '.join(tokens['without'])}" if tokens["without"] else ""
    return [f"tokens of log-likelihoods, estimated: {told}{without}"]


def _shape(row: Mapping[str, Any]) -> str:
    if not row["gpus_per_node"]:
        return f"{row['nodes']} x CPU"
    return f"{row['nodes']} x {row['gpus_per_node']} GPU"


def _unit_cells(unit: Mapping[str, Any]) -> tuple[str, ...]:
    parallel = f" TP{unit['tensor_parallel']} PP{unit['pipeline_parallel']}" if unit["tensor_parallel"] > 1 else ""
    memory = f" {unit['memory_gib_per_gpu']:.1f} GiB each" if unit["memory_gib_per_gpu"] else ""
    takes = "" if unit["seconds"] is None else duration(unit["seconds"])
    return (unit["id"], unit["state"], unit["gpu_class"], _shape(unit) + parallel + memory, takes)


def _array_cells(array: Mapping[str, Any]) -> tuple[str, ...]:
    after = f"{array['dependency']} {len(array['depends_on'])} array(s)" if array["depends_on"] else ""
    if len(array["depends_on"]) == 1:
        after = f"{array['dependency']} {array['depends_on'][0]}"
    throttle = f" (at most {array['throttle']} at once)" if array["throttle"] else ""
    return (
        array["name"],
        f"{len(array['units'])}{throttle}",
        array["gpu_class"],
        _shape(array),
        array["environment"],
        f"{array['time_limit_minutes']} min",
        after,
    )


def status_lines(status: RunStatus) -> list[str]:
    """The run in a sentence, then its units; of a large run, those that tell something."""
    from hpcq.monitor.eta import run_progress

    progress = run_progress(status)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(status.counts.items()))
    lines = [f"run {status.run}: {status.state} ({counts})"]
    if progress.total:
        left = f", about {duration(progress.seconds_left)} left" if progress.seconds_left is not None else ""
        lines.append(f"requests: {progress.done} of {progress.total}{left}")
    if status.asked_tokens and status.computed_tokens is not None:
        lines.append(f"tokens: {sharing(status.asked_tokens, status.computed_tokens)}")
    units = status.units
    if len(units) > SHOWN_UNITS:
        units = tuple(unit for unit in units if unit.state in ("running", "failed", "cancelled"))[:SHOWN_UNITS]
    lines += columns([_status_cells(unit) for unit in units])
    if len(units) < len(status.units):
        lines.append(f"({len(status.units) - len(units)} more units: see --json)")
    return lines


def _status_cells(unit: UnitStatus) -> tuple[str, ...]:
    told = unit.reason or unit.phase or ""
    if unit.failure and unit.decision and unit.state is not State.DONE:
        told = f"{told} [{unit.failure}: {unit.decision}]".lstrip()
    job = f"job {unit.job_id}" if unit.job_id else ""
    return (f"  {unit.id}", str(unit.state), requests_of(unit), job, told)


def requests_of(unit: UnitStatus) -> str:
    """'312/840 requests' for an evaluation that has begun."""
    if unit.done is None or unit.total is None:
        return ""
    return f"{unit.done}/{unit.total} requests"


def merge_lines(document: Mapping[str, Any]) -> list[str]:
    """What a merge found, each doubtful thing by name."""
    counted = ("missing", "duplicates", "conflicts", "set_aside")
    lines = [
        f"run {document['run']}: {document['found']} of {document['expected']} responses",
        ", ".join(f"{document[name]} {name.replace('_', ' ')}" for name in counted),
    ]
    lines += [f"  missing: {item['rows']} of {item['variant']} {item['task']}" for item in document["missing_from"]]
    lines += [f"  set aside: {item['file']}: {item['reason']}" for item in document["set_aside_details"]]
    for item in document["conflict_details"]:
        key = item["key"]
        files = ", ".join(claim["file"] for claim in item["claims"])
        lines.append(f"  conflict: {key['task']} document {key['doc_id']} request {key['request_index']}: {files}")
    return lines
