"""Store of responses: immutable segments, the index over them, and the merged results."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcq.store.compaction import compact
    from hpcq.store.index import TOLERANCE_ATTRIBUTE, Claim, Conflict, Index, SegmentInfo, SetAsideFile, load_index
    from hpcq.store.item_scores import GroupShares, ItemTables, TaskItems
    from hpcq.store.records import RequestKey, Response, ResponseKind, digest_of_arguments
    from hpcq.store.response_columns import Columns
    from hpcq.store.results import (
        MergeReport,
        MissingRows,
        Results,
        ResultsFile,
        Score,
        VariantResults,
        VariantScores,
        merge_report,
        open_results,
        read_responses,
        read_results,
        results_are_current,
        write_results,
    )
    from hpcq.store.segments import Segment, SegmentName, read_segment, segment_paths
    from hpcq.store.top_logprobs import PanelTable, TopLogprobs
    from hpcq.store.unit_folder import count_rows
    from hpcq.store.writer import SegmentWriter

__all__ = [
    "TOLERANCE_ATTRIBUTE",
    "Claim",
    "Columns",
    "Conflict",
    "GroupShares",
    "Index",
    "ItemTables",
    "MergeReport",
    "MissingRows",
    "PanelTable",
    "RequestKey",
    "Response",
    "ResponseKind",
    "Results",
    "ResultsFile",
    "Score",
    "Segment",
    "SegmentInfo",
    "SegmentName",
    "SegmentWriter",
    "SetAsideFile",
    "TaskItems",
    "TopLogprobs",
    "VariantResults",
    "VariantScores",
    "compact",
    "count_rows",
    "digest_of_arguments",
    "load_index",
    "merge_report",
    "open_results",
    "read_responses",
    "read_results",
    "read_segment",
    "results_are_current",
    "segment_paths",
    "write_results",
]

_MODULES = (
    "records",
    "unit_folder",
    "segments",
    "top_logprobs",
    "index",
    "item_scores",
    "response_columns",
    "results",
    "compaction",
    "writer",
)
"""Searched in this order: modules that need neither HDF5 nor numpy are first."""


def __getattr__(name: str) -> Any:
    """Import a name from its module on first use: commands that need few of them start fast."""
    if name in __all__:
        for module in _MODULES:
            found = vars(importlib.import_module(f"{__name__}.{module}"))
            if name in found:
                return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
