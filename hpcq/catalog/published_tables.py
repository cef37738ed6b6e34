"""Tables of published studies, cell by cell: leaderboards and MT-Bench of arXiv 2409.11055v6, with corrected misprints.

What a study printed is in the TSV files below `published/`, unchanged. `*-misprints.tsv` has the corrections.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import sqrt
from pathlib import Path

from hpcq.catalog.leaderboard import NORMALIZED_PARTS, NORMALIZED_SUITE, RAW_SUITE, Scale, ScorePart
from hpcq.core.frozen import dataclass

FOLDER = Path(__file__).parent / "published"
STUDY = "arxiv-2409.11055v6"
TURNS_SUITE, CATEGORIES_SUITE = "mt-bench-turns", "mt-bench-categories"

_UNQUANTIZED = "none"
_METHODS = {
    "FP16": (_UNQUANTIZED, _UNQUANTIZED),
    "FP8": ("fp8", "llmcompressor"),
    "GPTQ": ("gptq", "not stated"),
    "GPTQ*": ("gptq", "autogptq"),
    "GPTQ**": ("gptq", "llmcompressor"),
    "GPTQ***": ("gptq", "not stated"),  # our copy of the table has no explanation
    "AWQ": ("awq", "autoawq"),
    "SmoothQuant": ("smoothquant", "llmcompressor"),
}
"""Method and tool."""


@dataclass(frozen=True, kw_only=True)
class StudyTask:
    """Protocol of a task in the study.

    Attributes:
        task: Name of the task in lm-eval.
        column: Column of the study's table.
        suite: Suite whose table has it.
        shots: Examples per prompt.
        items: Items of the score.
        parts: Raw scores of which the normalized score is the mean; empty: the scale is raw.
        part_items: Items of each part.
    """

    task: str
    column: str
    suite: str
    shots: int
    items: int
    parts: tuple[ScorePart, ...] = ()
    part_items: tuple[int, ...] = ()

    @property
    def scale(self) -> Scale:
        """Scale of the printed scores."""
        return Scale.NORMALIZED if self.parts else Scale.RAW


# GPQA: the printed scores are k / 546 with k a whole number, 50 of 50 after the correction: gpqa_extended alone. Only 3
# of 50 agree with the 1192 items of lm-eval's group. MATH: 42 of 50 do not agree with 1324 items, so the score is the
# mean of the subtasks.
_GPQA = (ScorePart(task="leaderboard_gpqa_extended", metric="acc_norm", bound=1 / 4),)
_BBH_ITEMS = {"causal_judgement": 187, "penguins_in_a_table": 146, "snarks": 178}


def _raw(task: str, column: str, shots: int, items: int) -> StudyTask:
    return StudyTask(task=task, column=column, suite=RAW_SUITE, shots=shots, items=items)


def _normalized(
    task: str, column: str, shots: int, part_items: tuple[int, ...], parts: tuple[ScorePart, ...] | None = None
) -> StudyTask:
    found = NORMALIZED_PARTS[task] if parts is None else parts
    return StudyTask(
        task=task,
        column=column,
        suite=NORMALIZED_SUITE,
        shots=shots,
        items=part_items[0] if len({part.task for part in found}) == 1 else sum(part_items),
        parts=found,
        part_items=part_items,
    )


STUDY_TASKS: Mapping[str, StudyTask] = {
    one.task: one
    for one in (
        _raw("arc_challenge", "arc_challenge", 25, 1172),
        _raw("gsm8k", "gsm8k", 5, 1319),
        _raw("hellaswag", "hellaswag", 10, 10042),
        _raw("mmlu", "mmlu", 5, 14042),
        _raw("truthfulqa_mc2", "truthfulqa", 0, 817),
        _raw("winogrande", "winogrande", 5, 1267),
        _normalized(
            "leaderboard_bbh",
            "bbh",
            3,
            tuple(
                _BBH_ITEMS.get(part.task.removeprefix("leaderboard_bbh_"), 250)
                for part in NORMALIZED_PARTS["leaderboard_bbh"]
            ),
        ),
        _normalized("leaderboard_gpqa", "gpqa", 0, (546,), _GPQA),
        _normalized("leaderboard_ifeval", "ifeval", 0, (541, 541)),
        _normalized("leaderboard_math_hard", "math_lvl5", 4, (307, 123, 132, 280, 154, 193, 135)),
        _normalized("leaderboard_mmlu_pro", "mmlu_pro", 5, (12032,)),
        _normalized("leaderboard_musr", "musr", 0, (250, 256, 250)),
    )
}
"""Tasks of both leaderboards, by their names in lm-eval, in the order of the study's columns."""


@dataclass(frozen=True, kw_only=True)
class Misprint:
    """A printed number that must be wrong."""

    model: str
    method: str
    column: str
    printed: float
    corrected: float
    reason: str

    @property
    def sentence(self) -> str:
        """What was printed, and what is used."""
        return (
            f"{self.model} {self.method}, {self.column}: {self.printed:g} is printed, {self.corrected:g} is used"
            f" ({self.reason})."
        )


@dataclass(frozen=True, kw_only=True)
class PublishedCell:
    """One printed score, or the mean that follows from it.

    Attributes:
        model: Name of the model in the study.
        label: Method as the study prints it.
        method: fp8, gptq, awq, smoothquant or none.
        tool: Quantization tool; 'not stated' if our copy of the table does not say.
        bits: Weights and activations, such as '4/16'.
        gigabytes: Size of the weights; None: not in this table.
        suite: Suite whose table has the score.
        task: Name of the task in lm-eval, or 'mt-bench turn 1', 'mt-bench writing' and so on.
        scale: Scale of the score.
        value: The score, corrected.
        error: Upper bound of its standard error if the items were drawn at random; None: unknown.
        misprint: What was printed instead; None: the same.
    """

    model: str
    label: str
    method: str
    tool: str
    bits: str
    gigabytes: float | None
    suite: str
    task: str
    scale: Scale
    value: float
    error: float | None = None
    misprint: Misprint | None = None

    @property
    def weight_bits(self) -> int:
        """Bits of a weight."""
        return int(self.bits.partition("/")[0])

    @property
    def activation_bits(self) -> int:
        """Bits of an activation."""
        return int(self.bits.partition("/")[2])


@lru_cache
def published_cells() -> tuple[PublishedCell, ...]:
    """Return all scores of the study."""
    return (*_leaderboard_cells(), *_turn_cells(), *_category_cells())


@lru_cache
def misprints() -> tuple[Misprint, ...]:
    """Return the misprints of the study."""
    return tuple(_misprints_by_cell().values())


@lru_cache
def _misprints_by_cell() -> Mapping[tuple[str, str, str, str], Misprint]:
    return {
        (row["model"], row["method"], row["bits"], row["column"]): Misprint(
            model=row["model"],
            method=row["method"],
            column=row["column"],
            printed=float(row["printed"]),
            corrected=float(row["corrected"]),
            reason=row["reason"],
        )
        for row in table_rows("misprints")
    }


def table_rows(name: str) -> list[dict[str, str]]:
    """Return the rows of a table of the study as they are printed."""
    with (FOLDER / f"{STUDY}-{name}.tsv").open(encoding="utf-8", newline="") as table:
        return list(csv.DictReader(table, delimiter="\t"))


def _leaderboard_cells() -> Iterator[PublishedCell]:
    corrections = _misprints_by_cell()
    for row in table_rows("leaderboards"):
        name = (row["model"], row["method"], row["bits"])
        method, tool = _METHODS[row["method"]]
        size = corrections.get((*name, "size_gb"))
        for task in STUDY_TASKS.values():
            misprint = corrections.get((*name, task.column))
            value = misprint.corrected if misprint else float(row[task.column])
            yield PublishedCell(
                model=row["model"],
                label=row["method"],
                method=method,
                tool=tool,
                bits=row["bits"],
                gigabytes=size.corrected if size else float(row["size_gb"]),
                suite=task.suite,
                task=task.task,
                scale=task.scale,
                value=value,
                error=largest_error(task, value),
                misprint=misprint,
            )


def largest_error(task: StudyTask, value: float) -> float:
    """Return the largest standard error that a score can have, on its own scale.

    The variance of a score between 0 and 1 is at most p * (1 - p) / n, which is concave in p: of several raw scores
    with a bound of 0, only the mean is needed (MATH; IFEval, with two metrics of the same items). With other bounds, p
    is 1/2.
    """
    if not task.parts:
        share = value / 100
        return 100 * sqrt(share * (1 - share) / task.items)
    if len(task.parts) == 1:
        part = task.parts[0]
        share = part.bound + value / part.factor
        return part.factor * sqrt(share * (1 - share) / task.items)
    share = value / 100
    if len({part.task for part in task.parts}) == 1:
        return 100 * sqrt(share * (1 - share) / task.items)
    if not any(part.bound for part in task.parts):
        return 100 * sqrt(share * (1 - share) / (len(task.parts) * min(task.part_items)))
    errors = [part.factor * sqrt(0.25 / n) for part, n in zip(task.parts, task.part_items, strict=True)]
    return sqrt(sum(error**2 for error in errors)) / len(errors)


_TURNS = {"T1": "mt-bench turn 1", "T2": "mt-bench turn 2"}


def _turn_cells() -> Iterator[PublishedCell]:
    for row in table_rows("mtbench-turns"):
        for label in ("FP16", "GPTQ", "AWQ"):
            for turn, task in _TURNS.items():
                yield _judged(row["model"], label, TURNS_SUITE, task, float(row[f"{turn}_{label}"]))


def _category_cells() -> Iterator[PublishedCell]:
    """Yield the scores per category: the table has differences for quantized models."""
    baselines: dict[str, dict[str, str]] = {}
    for row in table_rows("mtbench-categories"):
        if row["method"] == "FP16":
            baselines[row["model"]] = row
        for name in list(row)[2:-1]:
            value = float(row[name]) + (0.0 if row["method"] == "FP16" else float(baselines[row["model"]][name]))
            task = f"mt-bench {name.lower()}"
            yield _judged(row["model"], row["method"], CATEGORIES_SUITE, task, round(value, 2))


def _judged(model: str, label: str, suite: str, task: str, value: float) -> PublishedCell:
    method, tool = _METHODS[label]
    bits = "16/16" if method == _UNQUANTIZED else "4/16"
    return PublishedCell(
        model=model, label=label, method=method, tool=tool, bits=bits, gigabytes=None, suite=suite, task=task,
        scale=Scale.JUDGE, value=value,
    )  # fmt: skip
