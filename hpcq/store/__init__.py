"""The store: responses as immutable segments, the index over them, and the merged results.

Knows units, errors and files; must not know models, tasks' meaning, Slurm or scores' computation.
"""

from hpcq.store.index import VARIES, Claim, Conflict, Index, SegmentFacts, SetAside, load
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
    results_hold,
    write_results,
)
from hpcq.store.segments import Segment, SegmentName, count_rows, read_segment, segment_paths
from hpcq.store.writer import SegmentWriter

__all__ = [
    "VARIES",
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
    "SegmentFacts",
    "SegmentName",
    "SegmentWriter",
    "SetAside",
    "VariantResults",
    "VariantScores",
    "count_rows",
    "digest_of_arguments",
    "load",
    "merge_report",
    "read_responses",
    "read_results",
    "read_segment",
    "results_hold",
    "segment_paths",
    "write_results",
]
