"""Tables of families, schemes and backends: recorded checkpoints and scores, and the planner's refusals.

`python -m tests.quantize_matrix --write` records the checkpoints of tiny models in families.json. A pair that the
planner refuses has no record. `python -m tests.models.family_scores --write` records in family_scores.json what the
backends compute with these models and checkpoints.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docs.family_scores import BACKENDS, NOT_MEASURED, outcome_text
from docs.family_scores import RECORD as SCORES
from hpcq.catalog.kernels import find_kernel
from hpcq.catalog.unquantized_modules import has_experts
from tests.families import FAMILIES
from tests.quantize_matrix import SCHEMES, named_scheme, planned_problem

RECORD = Path(__file__).with_name("families.json")
_UNTESTED = "accepted, not tested"
_NO_KERNEL, _NO_CHECKPOINT = "no kernel", "no checkpoint"
_SECOND = """\
Log-likelihoods of the quantized checkpoints in float32 on CPUs: the largest difference from lm-eval's own on the same
checkpoint, in nats. "differs by" marks a difference of more than 1e-4 nats plus 1e-5 of the value. The table has only
families, and columns, with a recorded outcome. "–" is a refusal at plan time and "failed" a failure, both with the
number of the reason. "no kernel" is a refusal because vLLM computes no quantized experts on CPUs. "no checkpoint" is a
pair of family and scheme without numbers in the first table. vLLM 0.32 was measured on CPUs only: its kernels for GPUs
are not in this table.

All that differ have a scheme that rounds activations. hpcq computes the requests in other batches than lm-eval, and
from shared prefixes. A difference of 1e-7 can then move an activation to another quantization level, and the difference
grows from layer to layer, most of all where it changes the choice of experts. The weights are the same: they were
compared one by one. Reports mark such variants with `^D` and the largest difference that a check of the run found."""

Checkpoints = Mapping[str, Mapping[str, Mapping[str, Any]]]
Scores = Mapping[tuple[str, str, str], Mapping[str, Any]]


class Footnotes:
    """Numbered reasons below a table; equal reasons have one number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, family: str, reason: str) -> int:
        """Return the number of a reason, in which the name of the family is replaced."""
        model_type = FAMILIES[family].model_type
        general = reason.replace(f" ('{model_type}')", "").replace(f"'{model_type}'", "this family")
        return self._numbers.setdefault(general, len(self._numbers) + 1)

    def lines(self) -> list[str]:
        """Return the list of reasons as Markdown."""
        return [f"{number}. {reason}" for reason, number in self._numbers.items()]


def families_table() -> str:
    """Return the table of checkpoints and that of their evaluations, each with the reasons of refusals, as Markdown.

    Raises:
        ValueError: A pair with a record is refused by the planner.
    """
    found = json.loads(RECORD.read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    begin = f"Tiny models with random weights and two to four layers, recorded with {versions}."
    lines = [begin, "", *_checkpoints_table(found["checkpoints"]), "", "### Backends", ""]
    return "\n".join([*lines, *backends_table(found["checkpoints"], _scores())]) + "\n"


def _scores() -> Scores:
    rows = json.loads(SCORES.read_text(encoding="utf-8"))
    return {(row["model"], row["scheme"], row["backend"]): row for row in rows}


def _checkpoints_table(checkpoints: Checkpoints) -> Iterator[str]:
    notes = Footnotes()
    yield f"| family | {' | '.join(f'`{scheme}`' for scheme in SCHEMES)} |"
    yield "|---" * (len(SCHEMES) + 1) + "|"
    for family in FAMILIES:
        cells = [_checkpoint_cell(family, scheme, checkpoints, notes) for scheme in SCHEMES]
        yield f"| {family} | {' | '.join(cells)} |"
    yield from ("", *notes.lines())


def _checkpoint_cell(family: str, scheme: str, checkpoints: Checkpoints, notes: Footnotes) -> str:
    problem = planned_problem(family, scheme)
    record = checkpoints.get(family, {}).get(scheme)
    if record is not None and problem is not None:
        raise ValueError(f"{family}, {scheme}: run `python -m tests.quantize_matrix --write` again: {problem}")
    if problem is not None:
        return f"– ({notes.number(family, problem)})"
    if record is None:
        return _UNTESTED
    total = record["quantized_linears"] + record["unquantized_linears"]
    return f"{record['quantized_linears']}/{total}, {record['largest_error']:.2f}"


def backends_table(checkpoints: Checkpoints, scores: Scores) -> Iterator[str]:
    """Yield the lines of the table of evaluations, with the number of recorded ones.

    Args:
        checkpoints: Metadata of the recorded checkpoints, by family and scheme.
        scores: Recorded evaluations, by family, scheme and backend.
    """
    notes = Footnotes()
    planned = [
        (family, scheme, backend)
        for family in FAMILIES
        for scheme in SCHEMES
        for backend in BACKENDS
        if scheme in checkpoints.get(family, {}) and not _is_without_kernel(family, scheme, backend)
    ]
    recorded = [one for one in planned if one in scores]
    yield (
        f"{len(recorded)} of {len(planned)} evaluations of these checkpoints are recorded. An evaluation is a pair of a"
        " checkpoint and a backend that has a kernel for it on CPUs. vLLM 0.32 has no kernel on CPUs for"
        f" {_without_kernel('vllm')}."
    )
    if not recorded:
        return
    yield from ("", _SECOND, "")
    columns = [one for one in itertools.product(SCHEMES, BACKENDS) if one in {pair[1:] for pair in recorded}]
    yield f"| family | {' | '.join(f'`{scheme}`, {backend}' for scheme, backend in columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for family in [one for one in FAMILIES if one in {pair[0] for pair in recorded}]:
        cells = [_score_cell(family, scheme, backend, checkpoints, scores, notes) for scheme, backend in columns]
        yield f"| {family} | {' | '.join(cells)} |"
    yield from ("", *notes.lines())


def _without_kernel(backend: str) -> str:
    """Return the schemes for which a backend has no kernel on CPUs."""
    return ", ".join(f"`{scheme}`" for scheme in SCHEMES if find_kernel(backend, named_scheme(scheme), None) is None)


def _is_without_kernel(family: str, scheme: str, backend: str) -> bool:
    has_quantized_experts = has_experts(FAMILIES[family].sizes)
    return find_kernel(backend, named_scheme(scheme), None, has_experts=has_quantized_experts) is None


def _score_cell(
    family: str, scheme: str, backend: str, checkpoints: Checkpoints, scores: Scores, notes: Footnotes
) -> str:
    if scheme not in checkpoints.get(family, {}):
        return _NO_CHECKPOINT
    row = scores.get((family, scheme, backend))
    if row is None:
        return _NO_KERNEL if _is_without_kernel(family, scheme, backend) else NOT_MEASURED
    reason = row["refused"] or row["failed"]
    return outcome_text(row, str(notes.number(family, reason)) if reason else "")
