"""Store of responses: immutable segments, the index over them, and the merged results."""

from hpcq.store.index import TOLERANCE_ATTRIBUTE, Claim, Conflict, Index, SegmentInfo, SetAsideFile, load_index
from hpcq.store.records import RequestKey, Response, ResponseKind, digest_of_arguments
from hpcq.store.results import (
    MergeReport,
    MissingRows,
    Results,
    Score,
    VariantResults,
    VariantScores,
    merge_report,
    read_responses,
    read_results,
    results_are_current,
    write_results,
)
from hpcq.store.segments import Segment, SegmentName, count_rows, read_segment, segment_paths
from hpcq.store.writer import SegmentWriter

__all__ = [
    "TOLERANCE_ATTRIBUTE",
    "Claim",
    "Conflict",
    "Index",
    "MergeReport",
    "MissingRows",
    "RequestKey",
    "Response",
    "ResponseKind",
    "Results",
    "Score",
    "Segment",
    "SegmentInfo",
    "SegmentName",
    "SegmentWriter",
    "SetAsideFile",
    "VariantResults",
    "VariantScores",
    "count_rows",
    "digest_of_arguments",
    "load_index",
    "merge_report",
    "read_responses",
    "read_results",
    "read_segment",
    "results_are_current",
    "segment_paths",
    "write_results",
]
