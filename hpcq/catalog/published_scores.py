"""Published scores of other studies for comparison in reports: one TSV per study under `published/`.

Only scores on the scale of lm-eval's raw metrics (percent) are used. arXiv 2409.11055v6 normalizes the scores of its
second leaderboard, so these are not compared.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from hpcq.catalog.models import find_model_shape

_FOLDER = Path(__file__).parent / "published"
_STUDIES = {"arxiv-2409.11055v6": "arxiv-2409.11055v6-leaderboards.tsv"}

# lm-eval task -> column of the study: its first leaderboard, raw percent, table 2.
_COLUMNS = {
    "arc_challenge": "arc_challenge",
    "hellaswag": "hellaswag",
    "mmlu": "mmlu",
    "truthfulqa_mc2": "truthfulqa",
    "winogrande": "winogrande",
    "gsm8k": "gsm8k",
}
# Scheme -> method and bits in the study; '*' is its AutoGPTQ, '**' its llmcompressor.
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
    """A published score.

    Attributes:
        study: Name of the study.
        value: The score in percent.
    """

    study: str
    value: float


def study_names() -> tuple[str, ...]:
    """Return the names of all studies in the catalog."""
    return tuple(_STUDIES)


def find_published_score(study: str, model_id: str, scheme: str, task: str) -> PublishedScore | None:
    """Return the score of `study` for a model, scheme and task; None: it has none on the same scale.

    Studies name models without their organization, so only ids in the catalog are compared: another organization's
    model of the same name is another model.
    """
    column, method = _COLUMNS.get(task), _METHODS.get(scheme)
    if column is None or method is None or find_model_shape(model_id) is None:
        return None
    row = _rows(study).get((_study_name(model_id), *method))
    return PublishedScore(study=study, value=float(row[column])) if row and row[column] else None


def _study_name(model_id: str) -> str:
    """Return the study's name of a model in lower case: 'llama-3.1-8b-it' for 'meta-llama/Llama-3.1-8B-Instruct'."""
    name = model_id.rsplit("/", 1)[-1].lower()
    return name.replace("-instruct", "-it").replace("-hf", "").replace("meta-", "")


@lru_cache
def _rows(study: str) -> dict[tuple[str, str, str], dict[str, str]]:
    with (_FOLDER / _STUDIES[study]).open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    return {(row["model"].lower(), row["method"], row["bits"]): row for row in rows}
