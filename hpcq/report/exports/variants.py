"""Variants of merged runs, as exports read them: scores, items, provenance, and names of files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from hpcq.catalog.tasks import find_task
from hpcq.core.files import make_folder
from hpcq.core.frozen import dataclass
from hpcq.core.work_records import PANEL_TASK
from hpcq.report.make_report import MergedRun
from hpcq.store import ItemTables, ResultsFile, VariantScores, open_results, read_results
from hpcq.verify.marks import Mark

_MODEL_TYPES = {"accelerate": "hf"}
"""Names of back ends in lm-eval and Inspect, where they differ."""
_NOT_IN_A_NAME = re.compile(
    r"[\"<>:/|\\?*\[\]\s\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]+|^\.+"
)
"""What lm-eval's `sanitize_model_name` replaces, white space, control characters, characters that change the
direction of text, halves of surrogate pairs, and dots at the beginning."""
_LONGEST_NAME = 120
"""Maximum bytes of a name: with date and ending it has less than the 255 bytes that file systems permit."""


def file_name(text: str) -> str:
    """Return `text` as the name of a file or folder; of a long one, the beginning and a digest."""
    name = _NOT_IN_A_NAME.sub("__", text)
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{name.encode()[: _LONGEST_NAME - 20].decode(errors='ignore')}--{digest}"


@dataclass(frozen=True, kw_only=True)
class ExportedVariant:
    """Input of the export of a variant.

    Attributes:
        scores: Its scores, provenance and marks.
        items: Scores of its items.
        file: Open results.
        missing_responses: Requests of the variant without a response, by task.
        when: Time of the merge.
        folder: Folder of its files; it exists, unless the format has no folders of variants.
    """

    scores: VariantScores
    items: ItemTables
    file: ResultsFile
    missing_responses: Mapping[str, int]
    when: datetime
    folder: Path

    @property
    def date_id(self) -> str:
        """Time in names of files, as lm-eval writes it."""
        return self.when.strftime("%Y-%m-%dT%H-%M-%S.%f")

    @property
    def model_type(self) -> str:
        """Name of the back end in other tools."""
        return _MODEL_TYPES.get(self.fact("backend"), self.fact("backend"))

    @property
    def model_name(self) -> str:
        """Name of the model with the scheme."""
        return f"{self.fact('model')}--{self.fact('scheme')}"

    @property
    def documents(self) -> dict[str, str]:
        """By task: how many items of how many documents were evaluated, as far as the catalog knows the task."""
        known = {score.task: (score.n, find_task(score.task)) for score in self.scores.scores}
        return {task: f"{n} of {info.documents}" for task, (n, info) in known.items() if info}

    @property
    def origin(self) -> dict[str, Any]:
        """What other formats have no place for: variant, provenance, sentences of marks, missing responses, items."""
        return {
            "missing_responses": self.missing_responses,
            "documents": self.documents,
            "variant": self.scores.variant,
            "provenance": {name: plain(value) for name, value in self.scores.provenance.items()},
            "marks": [Mark.from_json(mark).sentence for mark in self.scores.marks or ()],
        }

    def fact(self, name: str) -> str:
        """Return an entry of the provenance; '' if it has none."""
        return str(self.scores.provenance.get(name) or "")

    def document(self, name: str) -> Any:
        """Return an entry of the provenance that is a JSON document; None if it has none."""
        return json.loads(self.fact(name) or "null")


def exported_variants(
    runs: Sequence[MergedRun], folder: Path, *, has_folders: bool = True
) -> Iterator[ExportedVariant]:
    """Yield the variants of all runs, each with a new or existing folder below `folder` if it `has_folders`.

    Raises:
        RunIncompleteError: A run has no merged results yet.
        StorageError: A folder cannot be created.
    """
    for run in runs:
        when = datetime.fromtimestamp(run.results.stat().st_mtime, tz=UTC)
        with open_results(run.results) as file:
            results = read_results(run.results)
            for scores in results.variants:
                own = folder / file_name(scores.variant if len(runs) == 1 else f"{run.name}--{scores.variant}")
                if has_folders:
                    make_folder(own)
                items = file.item_tables(scores.variant)
                # The fidelity panel is no task of lm-eval, and has no score.
                rows = {task: count for task, count in scores.rows.items() if task != PANEL_TASK}
                missing = {
                    item["task"]: item["rows"]
                    for item in results.merge.get("missing_from", ())
                    if item["variant"] == scores.variant and item["task"] != PANEL_TASK
                }
                yield ExportedVariant(
                    scores=dataclasses.replace(scores, rows=rows),
                    items=items,
                    file=file,
                    missing_responses=missing,
                    when=when,
                    folder=own,
                )


def plain(value: object) -> object:
    """Return a number of numpy as Python's."""
    return value.item() if isinstance(value, np.generic) else value
