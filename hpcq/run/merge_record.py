"""Record of a run's merge in its folder: `merge` needs neither the models nor the data of the run."""

from __future__ import annotations

from dataclasses import replace

from hpcq.core.files import read_regular, write_text
from hpcq.core.json_records import InvalidRecordError, from_json, to_json
from hpcq.core.paths import RunLayout
from hpcq.core.work_records import MergeWork, UnitKind
from hpcq.plan.units import Plan, PlannedUnit


def write_merge_unit(layout: RunLayout, plan: Plan) -> None:
    """Write the unit that merges the plan's responses, if there is one."""
    for unit in plan.units:
        if unit.kind is UnitKind.MERGE:
            write_text(layout.merge_record, to_json(unit) + "\n")


def read_merge_unit(layout: RunLayout) -> PlannedUnit | None:
    """Return the recorded unit; None: the run was submitted by an earlier version, or the file is damaged."""
    try:
        unit = from_json(PlannedUnit, read_regular(layout.merge_record))
    except (OSError, InvalidRecordError):
        return None
    if not isinstance(unit.work, MergeWork):
        return None
    work = replace(unit.work, segments_path=str(layout.segments), results_path=str(layout.results))
    return replace(unit, work=work)
