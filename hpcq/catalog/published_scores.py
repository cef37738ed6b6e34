"""Scores that studies have published, as data, to be shown beside ours: one TSV a study under `published/`.

Only what is on the same scale as lm-eval's raw metrics is looked up (percent). arXiv 2409.11055v6 normalises its second
leaderboard's scores, so those are not compared.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "published"
_STUDIES = {"arxiv-2409.11055v6": "arxiv-2409.11055v6-leaderboards.tsv"}

# The study's column for a task of ours: its first leaderboard, raw percent, table 2.
_COLUMNS = {
    "arc_challenge": "arc_challenge",
    "hellaswag": "hellaswag",
    "mmlu": "mmlu",
    "truthfulqa_mc2": "truthfulqa",
    "winogrande": "winogrande",
    "gsm8k": "gsm8k",
}
# The study's method and bits for a scheme of ours; '*' is its AutoGPTQ, '**' its llmcompressor.
_METHODS = {
    "fp16": ("FP16", "16/16"),
    "bf16": ("FP16", "16/16"),
    "fp8": ("FP8", "8/8"),
    "awq-w4a16": ("AWQ", "4/16"),
    "gptq-w4a16": ("GPTQ**", "4/16"),
    "gptq-w8a16": ("GPTQ**", "8/16"),
    "smoothquant-w8a8": ("SmoothQuant", "8/8"),
}


@dataclass(frozen=True, kw_only=True)
class PublishedScore:
    """A score in percent, and the study that reports it."""

    study: str
    value: float


def study_names() -> tuple[str, ...]:
    """Every study that the catalog has tables of."""
    return tuple(_STUDIES)


def find_published(study: str, model_id: str, scheme: str, task: str) -> PublishedScore | None:
    """What `study` reports for that model, scheme and task; None: nothing, or not on our scale."""
    column, method = _COLUMNS.get(task), _METHODS.get(scheme)
    if column is None or method is None:
        return None
    row = _rows(study).get((_study_name(model_id), *method))
    return PublishedScore(study=study, value=float(row[column])) if row and row[column] else None


def _study_name(model_id: str) -> str:
    """The study writes 'Llama-3.1-8B-it' for 'meta-llama/Llama-3.1-8B-Instruct'; capital letters do not matter."""
    name = model_id.rsplit("/", 1)[-1].lower()
    return name.replace("-instruct", "-it").replace("-hf", "").replace("meta-", "")


@lru_cache
def _rows(study: str) -> dict[tuple[str, str, str], dict[str, str]]:
    with (_FOLDER / _STUDIES[study]).open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    return {(row["model"].lower(), row["method"], row["bits"]): row for row in rows}
