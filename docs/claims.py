"""Table of the study's claims, evaluated on its own tables, for docs/claims.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hpcq.catalog.published_tables import STUDY_TASKS, misprints
from hpcq.report.claims.claim import Direction
from hpcq.report.claims.claim_report import line_cells, published_results
from hpcq.report.claims.evaluate import ClaimResult


def claims_section() -> str:
    """Return the verdicts, the counts by task, and the misprints, as Markdown."""
    results = published_results("published")
    return "\n".join((*_verdicts(results), "", *_tasks(results), "", *_misprints())) + "\n"


def _verdicts(results: Sequence[ClaimResult]) -> Iterator[str]:
    yield "| claim | scores | pairs | models | mean difference | p | verdict |"
    yield "|---|---|---|---|---|---|---|"
    for result in results:
        yield f"| {result.claim.text} | | | | | | **{result.verdict}** |"
        for line in result.lines:
            if not line.task or line.is_exception:
                label = f"{line.task} (exception)" if line.is_exception else line.suite
                yield f"| | {' | '.join((label, *line_cells(result.claim, line)))} |"


def _tasks(results: Sequence[ClaimResult]) -> Iterator[str]:
    """Yield the pairs that agree, by task."""
    tasks = list(STUDY_TASKS.values())
    yield "Pairs that agree, by task:"
    yield ""
    yield f"| claim | {' | '.join(task.column for task in tasks)} |"
    yield "|---|" + "---|" * len(tasks)
    for result in results:
        lines = {line.task: line for line in result.lines if line.task}
        if lines and result.claim.direction is not Direction.DIFFERENT:
            cells = (f"{lines[task.task].agreeing}/{lines[task.task].pairs}" for task in tasks)
            yield f"| {result.claim.name} | {' | '.join(cells)} |"


def _misprints() -> Iterator[str]:
    yield "Misprints in the study, which the verdicts correct:"
    yield ""
    yield from (f"- {one.sentence}" for one in misprints())
    yield (
        "- Llama-2-70B-Chat FP16, MT-Bench: the mean of the printed turns is 7.205, the printed average is 7.18, as"
        " that of the categories. Which turn is wrong is unknown; with either correction all counts are the same."
    )
    yield ""
    yield (
        "The printed GPQA scores are those of the 546 items of `leaderboard_gpqa_extended`: after the correction, all"
        " 50 are whole numbers of items. `--compare` therefore compares them with that subtask."
    )
