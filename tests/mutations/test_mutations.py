"""A mutation per kind of verdict; `python -m tests.mutations` runs as many as wanted, of all families and schemes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutations.kinds.table import KINDS
from tests.mutations.oracle import Class
from tests.mutations.processes import preload
from tests.mutations.trial import Laboratory
from tests.mutations.warm_workers import WarmWorkers
from tests.staged import staged_dataset, staged_model

FAMILY = "llama"
CASES = {
    "add_layer:900169": Class.REFUSED,
    "other_shape:828494": Class.REFUSED,
    "tokenizer_of_a_larger_model:347600": Class.REFUSED,
    "remove_weight_file:750489": Class.REFUSED,
    "not_a_number:92868": Class.FAILED,
    "drop_tensor:871464": Class.FAILED,
    "change_item:200599": Class.FAILED,
    "unknown_key:439297": Class.EQUAL,
    "other_number:876272": Class.OTHER,
    "very_long_item:359904": Class.MARKED,
}
"""Kind and seed of each mutation, and its verdict; all are of the scheme bf16."""


@pytest.mark.timeout(900)
def test_no_mutation_ends_in_a_wrong_score(transformers_python: Path, tmp_path: Path) -> None:
    """Mutated inputs are refused, or fail with a sentence, or are marked, or are scored as lm-eval scores them."""
    staged_model("HuggingFaceTB/SmolLM2-135M-Instruct")
    staged_dataset("arc_challenge")
    staged_dataset("gsm8k")
    preload()
    found = {}
    with WarmWorkers(python=transformers_python) as workers:
        laboratory = Laboratory(folder=tmp_path, workers=workers)
        for case in CASES:
            kind, _, seed = case.partition(":")
            verdict = laboratory.run_trial(FAMILY, KINDS[kind], int(seed))
            assert verdict, case
            found[case] = verdict
    assert {case: (verdict.outcome, verdict.text) for case, verdict in found.items()} == {
        case: (outcome, found[case].text) for case, outcome in CASES.items()
    }
