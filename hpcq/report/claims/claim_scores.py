"""Scores as claims see them: of published tables, or of the rows of a report."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from hpcq.catalog.models import published_parameters
from hpcq.catalog.published_tables import STUDY, published_cells
from hpcq.catalog.tasks import find_suite, suite_names
from hpcq.core.frozen import dataclass
from hpcq.report.baselines import RequestSettings
from hpcq.report.claims.claim import Field
from hpcq.report.rows import Row

OTHER_SUITE = "other tasks"
_SIZE = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)
_MILLION = 1e6
_BILLION = 1e9
_BITS = re.compile(r"(?<=[a-z])\d+")
"""Bits in the name of a data type: 'int4', 'bf16', 'fp8_e4m3'."""
_NOT_COMPARED = "ignores_generation_config"
"""Setting of a task that depends on the model."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What was evaluated: a model with a number format.

    Attributes:
        source: Name of the run or study.
        variant: Id of the variant; for a study, the method as printed.
        model: Name of the model.
        family: The name without the number of parameters: models of a family differ in size only.
        parameters_b: Parameters in billions; None: unknown.
        scheme: Name of the scheme; for a study, the method as printed.
        method: fp8, gptq, awq, smoothquant, none and so on.
        tool: Quantization tool.
        weight_bits: Bits of a weight; None: unknown.
        activation_bits: Bits of an activation; None: unknown.
        backend: What answered the requests; '' for a study.
    """

    source: str
    variant: str
    model: str
    family: str
    parameters_b: float | None
    scheme: str
    method: str
    tool: str
    weight_bits: int | None
    activation_bits: int | None
    backend: str = ""

    def value(self, field: Field) -> str | float | None:
        """Return the value of a field other than suite and task."""
        found: str | float | None = getattr(self, field)
        return found

    @property
    def size(self) -> float | None:
        """Size of the weights in gigabytes: parameters times bits; None: unknown."""
        if self.parameters_b is None or self.weight_bits is None:
            return None
        return self.parameters_b * self.weight_bits / 8


@dataclass(frozen=True, kw_only=True)
class ClaimScore:
    """A score.

    Attributes:
        subject: What was evaluated.
        suite: Suite of the task.
        task: Name of the task.
        value: The score in points: percent, or those of a judge.
        error: Its standard error; None: unknown.
        protocol: Text that is equal for scores that may be compared.
        row: The row of a report with the score; None for a study.
    """

    subject: Subject
    suite: str
    task: str
    value: float
    error: float | None
    protocol: str = ""
    row: Row | None = None

    @property
    def is_marked(self) -> bool:
        """Whether the score has a warning."""
        return self.row is not None and bool(self.row.marks)


def published_claim_scores() -> list[ClaimScore]:
    """Return the scores of the published tables, with corrected misprints."""
    return [
        ClaimScore(
            subject=Subject(
                source=STUDY,
                variant=f"{cell.label} {cell.bits}",
                model=cell.model,
                family=family_name(cell.model),
                parameters_b=_parameters_b(cell.model),
                scheme=cell.label,
                method=cell.method,
                tool=cell.tool,
                weight_bits=cell.weight_bits,
                activation_bits=cell.activation_bits,
            ),
            suite=cell.suite,
            task=cell.task,
            value=cell.value,
            error=cell.error,
        )
        for cell in published_cells()
    ]


def family_name(model: str) -> str:
    """Return the last part of a model's id in lower case without its size: 'llama-3.1-instruct'."""
    return re.sub("[-_]{2,}", "-", _SIZE.sub("", model.rsplit("/", 1)[-1].lower())).strip("-_")


@cache
def _parameters_b(model: str) -> float | None:
    known = published_parameters(model)
    if known is not None:
        return known / _BILLION
    sizes = _SIZE.findall(model.rsplit("/", 1)[-1])
    if not sizes:
        return None
    number, unit = sizes[0]
    return float(number) * (_MILLION / _BILLION if unit.lower() == "m" else 1.0)


def row_claim_scores(
    rows: Sequence[Row],
    recipes: Mapping[tuple[str, str], str],
    settings: Mapping[tuple[str, str], RequestSettings],
) -> list[ClaimScore]:
    """Return the main scores of a report, in percent of the raw metric.

    Args:
        rows: Rows of a report.
        recipes: By run and variant: JSON document of the scheme.
        settings: By run and variant: what determines the requests.
    """
    found = []
    for row in rows:
        if row.is_main and row.value is not None:
            recipe = json.loads(recipes.get((row.run, row.variant)) or "{}")
            found.append(
                ClaimScore(
                    subject=Subject(
                        source=row.run,
                        variant=row.variant,
                        model=row.model,
                        family=family_name(row.model),
                        parameters_b=_parameters_b(row.model),
                        scheme=row.scheme,
                        method=_method(recipe, row.tool),
                        tool=row.tool,
                        weight_bits=_bits(recipe.get("weights")),
                        activation_bits=_bits(recipe.get("activations")),
                        backend=row.backend,
                    ),
                    suite=_suite(row.task),
                    task=row.task,
                    value=100 * row.value,
                    error=None if row.stderr is None else 100 * row.stderr,
                    protocol=_protocol(row, settings.get((row.run, row.variant))),
                    row=row,
                )
            )
    return found


def _method(recipe: Mapping[str, Any], tool: str) -> str:
    """Return the method of a scheme; rounding to FP8 is 'fp8', as in the study."""
    method = str(recipe.get("method") or tool)
    return "fp8" if method == "rtn" and str(recipe.get("weights")).startswith("fp8") else method


def _bits(data_type: object) -> int | None:
    found = _BITS.search(str(data_type or ""))
    return int(found[0]) if found else None


def _protocol(row: Row, settings: RequestSettings | None) -> str:
    """Return a text that is equal for equal requests; scores without recorded settings are compared within a run."""
    if settings is None or settings.tasks is None:
        return f"{row.run} n={row.n}"
    tasks = [{key: value for key, value in task.items() if key != _NOT_COMPARED} for task in settings.of_task(row.task)]
    return json.dumps([tasks, settings.lm_eval, settings.max_length, row.n], sort_keys=True)


@cache
def _suite(task: str) -> str:
    """Return the first suite of the catalog that has the task."""
    for name in suite_names():
        suite = find_suite(name)
        if suite and task in {one for one, _ in suite.tasks}:
            return name
    return OTHER_SUITE
