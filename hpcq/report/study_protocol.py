"""Differences between the protocol of a score and that of a published one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hpcq.catalog.published_scores import PublishedScore
from hpcq.catalog.tasks import find_task
from hpcq.report.baselines import RequestSettings
from hpcq.report.prompt_facts import flat_settings
from hpcq.report.rows import UNQUANTIZED_TOOL, Row
from hpcq.report.study_scale import ScaledScore

_STUDY_DTYPE = "float16"


def protocol_differences(
    row: Row, own: ScaledScore, published: PublishedScore, settings: RequestSettings | None
) -> Iterator[str]:
    """Yield each difference that can be seen, as a phrase. The study does not state its version of lm-eval."""
    yield from _shots(row.task, published.task.shots, settings)
    if own.n != published.task.items:
        yield f"{own.n} items (study: {published.task.items})"
    if settings is not None and settings.max_length is not None:
        yield f"prompts cut at {settings.max_length} tokens (study: not stated)"
    if settings is not None and settings.tasks is not None:
        yield from dict.fromkeys(found for task in settings.of_task(row.task) for found in _settings(task))
    tool = published.cell.tool
    if row.tool not in (tool, UNQUANTIZED_TOOL):
        yield f"quantized by {row.tool} (study: {tool})"
    if row.dtype and row.dtype != _STUDY_DTYPE and row.tool == UNQUANTIZED_TOOL:
        yield f"computed in {row.dtype} (study: {_STUDY_DTYPE})"


def _shots(task: str, study: int, settings: RequestSettings | None) -> Iterator[str]:
    if settings is None or settings.tasks is None:
        yield f"examples per prompt not recorded (study: {study})"
        return
    chosen = {setting.get("num_fewshot") for setting in settings.of_task(task)}
    info = find_task(task)
    shots = {info.num_fewshot if info and one is None else one for one in chosen}
    if shots != {study}:
        shown = ", ".join("unknown" if one is None else str(one) for one in sorted(shots, key=str)) or "unknown"
        yield f"{shown} examples per prompt (study: {study})"


def _settings(task: Mapping[str, Any]) -> Iterator[str]:
    """Yield prompt and generation settings that are not lm-eval's defaults; the studies state none."""
    for name in ("prompt", "sampling"):
        if task.get(name):
            found = ", ".join(key.partition(".")[2] for key in flat_settings({name: task[name]}))
            yield f"other {'prompts' if name == 'prompt' else 'generation'}: {found} (study: not stated)"
