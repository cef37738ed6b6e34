"""Exports: results in the file formats of other tools. Needs none of these tools."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from hpcq.report.exports.every_eval_ever import export_every_eval_ever
from hpcq.report.exports.inspect_logs import export_inspect
from hpcq.report.exports.lm_eval import export_lm_eval
from hpcq.report.make_report import MergedRun

EXPORTERS: Mapping[str, Callable[[Sequence[MergedRun], Path], Iterator[Path]]] = {
    "lm-eval": export_lm_eval,
    "inspect": export_inspect,
    "eee": export_every_eval_ever,
}
