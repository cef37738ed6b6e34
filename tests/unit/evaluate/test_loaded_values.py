"""Checks of loaded models and tokenizers that no file shows at plan time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from hpcq.core.attempts import Attempt
from hpcq.core.work_records import EvaluateWork, MergeWork
from hpcq.evaluate.merge import merge
from hpcq.evaluate.worker import evaluate
from hpcq.store import read_results
from hpcq.verify.loaded_model import stored_tensors, tokenizer_problem, values_problem
from tests.staged import staged_model


@pytest.mark.parametrize(("name", "is_found"), [("saved", True), ("computed", False)])
def test_buffers_of_the_files_must_be_finite(name: str, *, is_found: bool) -> None:
    """A router's bias (DeepSeek-V3) is a buffer: with a NaN, its expert is always chosen, and all logits are finite."""
    model = torch.nn.Linear(2, 2)
    model.register_buffer("saved", torch.zeros(2))
    model.register_buffer("computed", torch.zeros(2), persistent=False)
    assert values_problem(stored_tensors(model)) is None
    getattr(model, name)[0] = torch.nan
    problem = "the weight saved has values that are not finite (NaN or infinity)" if is_found else None
    assert values_problem(stored_tensors(model)) == problem


def test_a_tokenizer_that_splits_texts_at_random_is_refused() -> None:
    """BPE dropout is part of tokenizer.json: every process would score other tokens."""
    tokenizer = AutoTokenizer.from_pretrained(staged_model("HuggingFaceTB/SmolLM2-135M-Instruct"))
    assert tokenizer_problem(tokenizer, 10**6) is None
    tokenizer.backend_tokenizer.model.dropout = 0.1
    assert "splits the same text differently each time" in (tokenizer_problem(tokenizer, 10**6) or "")


def test_marks_of_a_checkpoint_outlive_it(
    make_work: Callable[..., EvaluateWork],
    make_merge: Callable[..., MergeWork],
    make_attempt: Callable[[str], Attempt],
    tmp_path: Path,
) -> None:
    """Segments have the number of layers that were not quantized as declared; a later merge needs no `hpcq.json`."""
    metadata = tmp_path / "checkpoint" / "hpcq.json"
    metadata.parent.mkdir()
    metadata.write_text('{"fallbacks": {"gptq": {"layers": 3, "of": 14}}}')
    work = make_work(checkpoint_path=str(metadata.parent))
    evaluate(work, make_attempt(f"evaluate.{work.variant.id}"))
    metadata.unlink()
    merge(make_merge(work), make_attempt("merge.run"))
    (variant,) = read_results(Path(make_merge(work).results_path)).variants
    assert [mark["detail"] for mark in variant.marks or ()] == ["3 of 14 layers rounded to nearest instead of GPTQ"]
