"""Baselines in other runs of a report, for scores of a run without the unquantized variant of their model.

Scores of two runs are compared only if their requests are the same: the same items, examples, prompts and version of
the task. These follow from the settings of the task and from the version of lm-eval, which the merge records.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hpcq.core.frozen import dataclass
from hpcq.core.work_records import PANEL_TASK
from hpcq.report.line import Line
from hpcq.report.prompt_facts import CHAT_TEMPLATES, flat_settings
from hpcq.report.rows import UNQUANTIZED_TOOL, Row, with_baseline

_SHOWN = 12
"""Characters of a digest or a commit in a message."""

_ScoreKey = tuple[str, str, str]
"""Task, metric and filter."""


@dataclass(frozen=True, kw_only=True)
class RequestSettings:
    """What determines the requests of a variant. Scores are compared only if all of it is the same.

    Attributes:
        tasks: Settings of each task, by its name in the manifest; None: merged by an earlier version.
        lm_eval: Version of lm-eval.
        max_length: Tokens after which prompts are cut; None: the model's own limit.
        add_bos_token: Whether prompts get a begin token; None: as the tokenizer does.
        add_eos: Whether texts keep the end token that the tokenizer appends.
        chat_templates: SHA-256 of the chat templates, as JSON; empty: none is applied.
    """

    tasks: Mapping[str, Mapping[str, Any]] | None
    lm_eval: str | None
    max_length: int | None
    add_bos_token: bool | None = None
    add_eos: bool = True
    chat_templates: str = ""

    @classmethod
    def read(cls, provenance: Mapping[str, Any]) -> RequestSettings:
        """Return the settings in the provenance of a merged variant."""
        tasks = json.loads(str(provenance.get("tasks") or "null"))
        versions = json.loads(str(provenance.get("backend_versions") or "{}"))
        options = json.loads(str(provenance.get("options") or "{}"))
        return cls(
            tasks=None if tasks is None else {task["name"]: task for task in tasks if task["name"] != PANEL_TASK},
            lm_eval=versions.get("lm-eval"),
            max_length=options.get("max_length"),
            add_bos_token=options.get("add_bos_token"),
            add_eos=options.get("add_eos", True),
            chat_templates=str(provenance.get(CHAT_TEMPLATES) or ""),
        )

    def of_task(self, name: str) -> list[Mapping[str, Any]]:
        """Return the settings of a task; for a member of a group of tasks, of all groups that may contain it."""
        tasks = self.tasks or {}
        return [tasks[name]] if name in tasks else list(tasks.values())


_SPECIAL_TOKENS = {"prompt.add_bos_token": "add_bos_token", "evaluate.add_eos": "add_eos"}
"""Settings of the tokenizer, by key: field of RequestSettings."""


def with_other_baselines(rows: Sequence[Row], settings: Mapping[Line, RequestSettings]) -> list[Row]:
    """Return the rows; those without a baseline in their run with one of another run, or the reason why there is none.

    Args:
        rows: Rows of all runs of the report.
        settings: What determines the requests, by run and variant.
    """
    unquantized: dict[_ScoreKey, list[Row]] = {}
    for row in rows:
        if row.tool == UNQUANTIZED_TOOL and row.value is not None:
            unquantized.setdefault(_score_key(row), []).append(row)
    everywhere = [row for found in unquantized.values() for row in found]
    return [
        row
        if row.tool == UNQUANTIZED_TOOL or row.delta is not None or row.value is None or row.baseline_problem
        else _compared(row, unquantized.get(_score_key(row), ()), everywhere, settings)
        for row in rows
    ]


def _score_key(row: Row) -> _ScoreKey:
    return row.task, row.metric, row.filter


def _compared(
    row: Row,
    candidates: Iterable[Row],
    unquantized: Iterable[Row],
    settings: Mapping[Line, RequestSettings],
) -> Row:
    problems = []
    for other in candidates:
        if other.run != row.run and _is_same_model(row, other):
            problem = settings_difference(row, other, settings)
            if problem is None:
                return dataclasses.replace(with_baseline(row, other), baseline_run=other.run)
            problems.append(problem)
    return dataclasses.replace(row, baseline_problem=problems[0] if problems else _absence(row, unquantized))


def _is_same_model(row: Row, other: Row) -> bool:
    """Return whether the files are the same. A digest identifies them alone: a local model has any name."""
    if row.model_digest and other.model_digest:
        return row.model_digest == other.model_digest
    return row.model_identity == other.model_identity


def _absence(row: Row, unquantized: Iterable[Row]) -> str:
    """Return why there is no unquantized variant to compare with."""
    if row.baseline_backend:
        return f"the unquantized variant of {row.model} has no score"
    candidates = [other for other in unquantized if other.model == row.model or _is_same_model(row, other)]
    alike = [other for other in candidates if _is_same_model(row, other)]
    if alike:
        return f"{', '.join(dict.fromkeys(other.run for other in alike))} has no unquantized score of {row.task}"
    for other in candidates:
        return f"{row.model} in {other.run} is {_identity(other)}, not {_identity(row)}"
    return f"there is no unquantized variant of {row.model}"


def _identity(row: Row) -> str:
    revision, digest = row.model_revision, row.model_digest
    return f"the files {digest[:_SHOWN]}" if digest else f"revision {(revision or 'unknown')[:_SHOWN]}"


def settings_difference(row: Row, other: Row, settings: Mapping[Line, RequestSettings]) -> str | None:
    """Return why the requests of two rows differ; None: they are the same."""
    mine, theirs = settings.get((row.run, row.variant)), settings.get((other.run, other.variant))
    if mine is None or theirs is None or mine.tasks is None or theirs.tasks is None:
        return f"{row.run} or {other.run} does not record the settings of its tasks: run `hpcq merge` again"
    if mine.lm_eval != theirs.lm_eval:
        return f"{other.run} used lm-eval {theirs.lm_eval}, {row.run} lm-eval {mine.lm_eval}"
    if mine.max_length != theirs.max_length:
        return f"evaluate.max_length is {theirs.max_length} in {other.run} and {mine.max_length} in {row.run}"
    for key, field in _SPECIAL_TOKENS.items():
        if getattr(mine, field) != getattr(theirs, field):
            return f"{key} is not the same in {other.run} and in {row.run}"
    different = next(_different_settings(row, other, mine.of_task(row.task), theirs.of_task(row.task)), None)
    if different is None and mine.chat_templates != theirs.chat_templates:
        return f"the chat templates in {other.run} and {row.run} differ: not comparable"
    return different


def _different_settings(
    row: Row, other: Row, mine: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    if len(mine) != len(theirs):
        yield f"{other.run} and {row.run} have other groups of tasks with {row.task}"
    for one, another in zip(map(flat_settings, mine), map(flat_settings, theirs), strict=False):
        for key in sorted(one.keys() | another.keys()):
            if one.get(key) != another.get(key):
                yield f"{key} of {row.task} is {another.get(key)} in {other.run} and {one.get(key)} in {row.run}"


def baseline_notes(rows: Iterable[Row]) -> Iterator[str]:
    """Yield where baselines of other runs come from, and why rows have no difference, by run."""
    rows = [row for row in rows if row.is_main]
    runs = dict.fromkeys(row.run for row in rows)
    start = {run: f"{run}: no difference" if len(runs) > 1 else "No difference" for run in runs}
    origins = dict.fromkeys((row.run, row.baseline_run) for row in rows if row.baseline_run)
    for run, origin in origins:
        yield f"{run}: differences from the unquantized variant in {origin}: same model, same requests."
    problems: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        if row.baseline_problem:
            problems.setdefault((row.run, row.baseline_problem), {})[row.scheme] = None
    for (run, problem), schemes in problems.items():
        yield f"{start[run]} for {', '.join(schemes)}, because {problem}."
