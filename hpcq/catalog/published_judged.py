"""MT-Bench scores of the study for a model and a scheme, as the study prints them: by turn and by category."""

from __future__ import annotations

from collections.abc import Mapping

from hpcq.catalog.models import find_model_shape
from hpcq.catalog.published_scores import study_name
from hpcq.catalog.published_tables import CATEGORIES_SUITE, TURNS_SUITE, published_cells, table_rows
from hpcq.core.frozen import dataclass

_LABELS = {"fp16": "FP16", "bf16": "FP16", "gptq-w4a16": "GPTQ", "awq-w4a16": "AWQ"}
"""Method in the study's MT-Bench tables, by scheme."""

_PREFIX = "mt-bench "
SUITES = (TURNS_SUITE, CATEGORIES_SUITE)


@dataclass(frozen=True, kw_only=True)
class JudgedScores:
    """Scores of a model and method in one table, from 1 to 10.

    Attributes:
        scores: By turn or category, in the order of the study.
        average: The printed average; for a quantized model in the table of categories, that of the baseline plus the
            printed difference.
        is_quantized: Whether the model is quantized.
    """

    scores: Mapping[str, float]
    average: float
    is_quantized: bool


def find_judged_scores(suite: str, model_id: str, scheme: str) -> JudgedScores | None:
    """Return the scores of a suite for a model and scheme; None: the study has none.

    Args:
        suite: One of `SUITES`.
        model_id: Id of the model on the hub.
        scheme: Name of the scheme.
    """
    label = _LABELS.get(scheme)
    if label is None or find_model_shape(model_id) is None:
        return None
    name = study_name(model_id)
    scores = {
        cell.task.removeprefix(_PREFIX): cell.value
        for cell in published_cells()
        if cell.suite == suite and cell.label == label and cell.model.lower() == name
    }
    if not scores:
        return None
    return JudgedScores(scores=scores, average=_average(suite, name, label), is_quantized=label != "FP16")


def _average(suite: str, name: str, label: str) -> float:
    if suite == TURNS_SUITE:
        return next(float(row[f"Avg_{label}"]) for row in table_rows("mtbench-turns") if row["model"].lower() == name)
    printed = {
        row["method"]: float(row["avg"]) for row in table_rows("mtbench-categories") if row["model"].lower() == name
    }
    return printed[label] if label == "FP16" else round(printed["FP16"] + printed[label], 2)
