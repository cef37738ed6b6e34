"""Text of plans, states and merges; only the last column of a table is folded on a narrow terminal."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hpcq.cli.detectable_lines import detectable_lines
from hpcq.core.sentences import one_line
from hpcq.core.work_records import UnitState
from hpcq.report.number_formats import format_count, format_duration, format_token_savings
from hpcq.report.text_tables import aligned_columns

if TYPE_CHECKING:
    from hpcq.api import PlanResult
    from hpcq.doctor.finding import Finding
    from hpcq.monitor.status import RunStatus, UnitStatus
    from hpcq.run.overview import RunOverview

MAX_LISTED_UNITS = MAX_LISTED_MARKS = 40
GIB = 2**30


def terminal_width() -> int | None:
    """Return the columns of the terminal that standard output is connected to; None for a pipe or a file.

    Asks about the process's stream, because `sys.stdout` may be a buffer.
    """
    stream = sys.__stdout__
    return shutil.get_terminal_size().columns if stream is not None and stream.isatty() else None


def plan_lines(planned: PlanResult, *, with_units: bool = False) -> list[str]:
    """Return the plan as text: units, arrays, estimates, and everything refused or missing."""
    document = planned.document
    kinds = Counter(unit["kind"] for unit in document["units"])
    lines = [
        f"run {document['run']}: "
        + (", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "no units")
        + f"; on {planned.loaded.profile.name} ({planned.loaded.profile.scheduler})",
    ]
    if with_units:
        lines += [
            "",
            *aligned_columns(
                [("unit", "state", "class", "shape", "estimate"), *(_unit_cells(unit) for unit in document["units"])],
                width=terminal_width(),
            ),
        ]
    if planned.arrays:
        heading = ("array", "units", "class", "shape", "environment", "limit", "after")
        cells = [heading, *(_array_cells(array) for array in document["arrays"])]
        lines += ["", *aligned_columns(cells, width=terminal_width())]
    lines += ["", *_not_submitted(planned)]
    lines += total_lines(document)
    lines += _panel_lines(document["fidelity_panel"])
    lines += detectable_lines(document, terminal_width())
    for refusal in document["refused"]:
        lines.append(f"refused: {refusal['reason']} Try this: {refusal['suggestion']}.")
    lines += [f"note: {note}" for note in document["notes"]]
    if missing := document["not_staged"]:
        lines.append(f"not staged yet: {', '.join(missing)}")
    lines += [f"missing: {problem}" for problem in planned.loaded.resolved.missing]
    return lines


def _not_submitted(planned: PlanResult) -> list[str]:
    """Return why units of the plan are in none of its arrays."""
    status, total = planned.status, len(planned.status.units)
    lines = [f"already done: {status.counts.get('done', 0)} of {total} units"]
    submitted = {unit.id for array in planned.arrays for unit in array.units}
    active = sum(
        unit.state in (UnitState.PENDING, UnitState.RUNNING) and unit.id not in submitted for unit in status.units
    )
    if active:
        lines.append(f"pending or running: {active} of {total} units")
    if later := planned.document["later_units"]:
        lines.append(
            f"in later portions: {later} of {total} units; the merge of each portion submits the next"
            " (slurm.max_submitted_jobs)"
        )
    if failed := sum(unit.has_failed_permanently and unit.id not in submitted for unit in status.units):
        lines.append(
            f"failed permanently: {failed} of {total} units; submit them with `hpcq resume {status.run} --failed`"
        )
    if status.is_locked:
        lines.append("another hpcq command is working on this run: `submit` refuses until it has exited")
    if error := planned.document["slurm_error"]:
        lines.append(f"pending and running units are unknown, and count as missing: {error}")
    return lines


def total_lines(document: Mapping[str, Any]) -> list[str]:
    """Return the estimated totals as text: disk, GPU-hours per class, wall time, tokens, and the basis of estimates."""
    totals, lines = document["totals"], []
    if totals["checkpoint_bytes"]:
        lines.append(f"checkpoints: about {totals['checkpoint_bytes'] / GIB:.1f} GiB")
    if totals["results_bytes"]:
        lines.append(f"responses and results: about {totals['results_bytes'] / GIB:.2f} GiB")
    for gpu_class, hours in totals["gpu_hours"].items():
        maximum = totals["max_gpu_hours"][gpu_class]
        lines.append(f"GPU-hours on {gpu_class}: about {hours:.3g}, maximum {maximum:.0f} (from the time limits)")
    if totals["wall_seconds"] is not None:
        lines.append(f"wall time: about {format_duration(totals['wall_seconds'])}, on an idle cluster")
    if totals["critical_path"]:
        lines.append(f"critical path: {' -> '.join(totals['critical_path'])}")
    lines += [f"estimates: {sentence}" for sentence in document["estimate_notes"]]
    return lines + _token_lines(totals["tokens"])


def _token_lines(tokens: Mapping[str, Any] | None) -> list[str]:
    """Return the estimated tokens as text; no line if the plan has no log-likelihood requests."""
    if not tokens or not (tokens["requested"] or tokens["unknown_tasks"]):
        return []
    estimate = format_token_savings(tokens["requested"], tokens["computed"]) if tokens["requested"] else "unknown"
    without = f"; without {', '.join(tokens['unknown_tasks'])}" if tokens["unknown_tasks"] else ""
    return [f"log-likelihood tokens (estimate): {estimate}{without}"]


def _panel_lines(panel: Mapping[str, Any] | None) -> list[str]:
    if panel is None:
        return []
    size = f"{panel['windows']} windows of {panel['window_tokens']} tokens"
    rest = ", without what the calibration may read" if panel["leaves_out_calibration"] else ""
    return [f"fidelity panel: {size} from {panel['dataset']}{rest}; the unquantized model reads them twice"]


def _shape(row: Mapping[str, Any]) -> str:
    if not row["gpus_per_node"]:
        return f"{row['nodes']} x CPU"
    return f"{row['nodes']} x {row['gpus_per_node']} GPU"


def _unit_cells(unit: Mapping[str, Any]) -> tuple[str, ...]:
    parallel = f" TP{unit['tensor_parallel']} PP{unit['pipeline_parallel']}" if unit["tensor_parallel"] > 1 else ""
    parallel += f" EP{unit['tensor_parallel']}" if unit["expert_parallel"] else ""
    memory = f" {unit['memory_gib_per_gpu']:.1f} GiB each" if unit["memory_gib_per_gpu"] else ""
    estimate = "" if unit["seconds"] is None else format_duration(unit["seconds"])
    return (unit["id"], unit["state"], unit["gpu_class"], _shape(unit) + parallel + memory, estimate)


def _array_cells(array: Mapping[str, Any]) -> tuple[str, ...]:
    after = f"{array['dependency']} {len(array['depends_on'])} array(s)" if array["depends_on"] else ""
    if len(array["depends_on"]) == 1:
        after = f"{array['dependency']} {array['depends_on'][0]}"
    throttle = f" (max {array['throttle']} at once)" if array["throttle"] else ""
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
    """Return the state of the run and its units as text; of a large run, only running, failed and cancelled units."""
    from hpcq.monitor.eta import run_progress

    progress = run_progress(status)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(status.counts.items()))
    lines = [f"run {status.run}: {status.state} ({counts})"]
    if status.slurm_error:
        lines.append(f"Slurm does not respond, so unfinished units are shown as last recorded: {status.slurm_error}")
    lines += [f"warning: {warning}" for warning in status.warnings]
    if progress.total:
        left = f", about {format_duration(progress.seconds_left)} left" if progress.seconds_left is not None else ""
        lines.append(f"requests: {progress.done} of {progress.total}{left}")
    if status.asked_tokens and status.computed_tokens is not None:
        lines.append(f"tokens: {format_token_savings(status.asked_tokens, status.computed_tokens)}")
    units = status.units
    if len(units) > MAX_LISTED_UNITS:
        listed = (UnitState.RUNNING, UnitState.FAILED, UnitState.CANCELLED)
        units = tuple(unit for unit in units if unit.state in listed)[:MAX_LISTED_UNITS]
    lines += aligned_columns([_status_cells(unit) for unit in units], width=terminal_width())
    if len(units) < len(status.units):
        lines.append(f"({len(status.units) - len(units)} more units: see --json)")
    return lines


def finding_lines(finding: Finding) -> list[str]:
    """Return a check of `doctor` as text, and its fix on a line of its own."""
    lines = [f"{finding.level:<8} {finding.section}: {one_line(finding.text)}"]
    return [*lines, f"         {finding.fix}"] if finding.fix else lines


def overview_lines(found: Sequence[RunOverview], folder: str) -> list[str]:
    """Return one line per run, or a line that says that there is none."""
    if not found:
        return [f"no runs in {folder}: start one with `hpcq submit MANIFEST`"]
    heading = ("run", "state", "units", "GPU-hours", "size", "last change (UTC)", "")
    return aligned_columns([heading, *map(_overview_cells, found)], width=terminal_width())


def _overview_cells(one: RunOverview) -> tuple[str, ...]:
    return (
        one.run,
        str(one.state or "?"),
        f"{one.done}/{one.units}" if one.units else "",
        f"{one.gpu_hours:.1f}" if one.gpu_hours else "",
        f"{format_count(one.disk_bytes)}B",
        one.last_change.partition("+")[0].replace("T", " "),
        one_line(one.problem or ""),
    )


def _status_cells(unit: UnitStatus) -> tuple[str, ...]:
    detail = one_line(unit.reason or unit.phase or "")
    if unit.failure and unit.decision and unit.state is not UnitState.DONE:
        detail = f"{detail} [{unit.failure}: {unit.decision}]".lstrip()
    job = f"job {unit.job_id}" if unit.job_id else ""
    return (f"  {unit.id}", str(unit.state), request_progress(unit), job, detail)


def request_progress(unit: UnitStatus) -> str:
    """Return '312/840 requests' for an evaluation that has started, else ''."""
    if unit.done is None or unit.total is None:
        return ""
    return f"{unit.done}/{unit.total} requests"


def merge_lines(document: Mapping[str, Any]) -> list[str]:
    """Return the counts of a merge as text, with each missing task, rejected file, conflict and mark."""
    counted = ("missing", "duplicates", "conflicts", "set_aside", "withheld")
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
    marks = document["marks"]
    for mark in marks[:MAX_LISTED_MARKS]:
        lines.append(f"  mark: {mark['variant']} {mark['task'] or 'all tasks'}: {mark['sentence']}")
    if len(marks) > MAX_LISTED_MARKS:
        lines.append(f"  ({len(marks) - MAX_LISTED_MARKS} more marks: see --json)")
    return lines
