"""Prompts from which tokens were removed, by variant and task: their share and their items, for `report --verbose`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hpcq.core.frozen import dataclass
from hpcq.core.item_selection import format_ranges
from hpcq.core.sentences import one_line
from hpcq.core.work_records import PANEL_TASK
from hpcq.store.results import open_results, read_results
from hpcq.verify.marks import share_text

if TYPE_CHECKING:
    from hpcq.report.make_report import MergedRun
    from hpcq.store.response_columns import Columns


@dataclass(frozen=True, kw_only=True)
class CutPrompts:
    """Prompts of one task that were cut from the left, because they did not fit the model's maximum length.

    Attributes:
        run: Name of the run.
        variant: Id of the variant.
        task: Name of the task.
        prompts: All prompts.
        cut: Those that were cut.
        unknown: Those of which it was not recorded.
        max_cut_tokens: The most tokens that were removed from a prompt.
        items: Numbers of the items with such a prompt, as ranges: '0-4,7'.
    """

    run: str
    variant: str
    task: str
    prompts: int
    cut: int
    unknown: int
    max_cut_tokens: int
    items: str

    @property
    def sentence(self) -> str:
        """The counts in words."""
        found = f"{self.variant}: {self.task}: {share_text(self.cut, self.prompts, 'prompts')} cut from the left"
        if self.cut:
            found += f", by up to {self.max_cut_tokens} tokens; items {self.items}"
        return found + (f"; not recorded of {self.unknown} prompts" if self.unknown else "")


def cut_prompts(runs: Sequence[MergedRun]) -> list[CutPrompts]:
    """Return one record per variant and task of the runs, also of tasks without a cut prompt.

    Raises:
        RunIncompleteError: A run has no merged results yet.
        SegmentCorruptError: Merged results cannot be trusted.
    """
    return [record for run in runs for record in _of_run(run)]


def _of_run(run: MergedRun) -> Iterator[CutPrompts]:
    variants = read_results(run.results).variants
    with open_results(run.results) as file:
        for variant in variants:
            for task in variant.rows:
                columns = None if task == PANEL_TASK else file.columns(variant.variant, task)
                if columns is not None:
                    yield _counted(run.name, variant.variant, task, columns)


def _counted(run: str, variant: str, task: str, columns: Columns) -> CutPrompts:
    is_cut = columns.cut_tokens > 0
    return CutPrompts(
        run=run,
        variant=variant,
        task=task,
        prompts=len(columns),
        cut=int(np.count_nonzero(is_cut)),
        unknown=int(np.count_nonzero(columns.cut_tokens < 0)),
        max_cut_tokens=max(0, int(columns.cut_tokens.max(initial=0))),
        items=format_ranges(sorted(set(columns.doc_id[is_cut].tolist()))),
    )


def cut_prompts_text(records: Sequence[CutPrompts]) -> str:
    """Return the lines that `hpcq report --verbose` adds."""
    names = {record.run for record in records}
    prefixes = (f"{record.run}: " if len(names) > 1 else "" for record in records)
    lines = [one_line(f"{prefix}{record.sentence}") for prefix, record in zip(prefixes, records, strict=True)]
    return "\n".join(["Prompts cut from the left, because they did not fit the model's maximum length", "", *lines, ""])
