"""The plan's estimate of tokens, compared with the backend's own plan on real items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from transformers import AutoTokenizer

from hpcq.core.work_records import EvaluateWork, Model, Scheme, Task, Variant
from hpcq.evaluate.lm_eval_tasks import build_tasks
from hpcq.evaluate.prefix.batching import Budget
from hpcq.evaluate.prefix.planner import plan_passes
from hpcq.evaluate.prefix.request_chunks import partition
from hpcq.evaluate.prefix.token_counts import TokenCounts, count_tokens
from hpcq.evaluate.prefix.tokenization import encode_pairs, token_requests
from hpcq.evaluate.requests import LOGLIKELIHOOD
from hpcq.plan.cost.tokens import TokenEstimate, estimate_tokens
from tests.staged import staged_dataset, staged_model

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
MAX_LENGTH = 8192
DOCUMENTS = 48
WITHIN = 0.2


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Return the tokenizer with which the catalog's figures were counted."""
    return AutoTokenizer.from_pretrained(staged_model(MODEL))


def counted(task: Task, tokenizer: Any) -> TokenCounts:
    """Return the token counts of the plans of the task's chunks."""

    def encode(texts: Sequence[str], *, without_special_tokens: bool) -> list[list[int]]:
        arguments = {"add_special_tokens": False} if without_special_tokens else {}
        found: list[list[int]] = tokenizer(list(texts), **arguments)["input_ids"]
        return found

    (built,) = build_tasks([task])
    counts = TokenCounts()
    for chunk in partition(built.requests()):
        if chunk.requests[0].kind == LOGLIKELIHOOD:
            pairs: list[Any] = [request.arguments for request in chunk.requests]
            requests = token_requests(encode_pairs(pairs, encode, tokenizer.bos_token_id), MAX_LENGTH)
            counts += count_tokens(requests, plan_passes(requests, Budget()))
    return counts


def estimated(task: Task) -> TokenEstimate:
    """Return the plan's estimate for an evaluation of that task alone."""
    scheme = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
    return estimate_tokens(
        EvaluateWork(
            variant=Variant(model=Model(id=MODEL), scheme=scheme),
            tasks=(task,),
            backend="accelerate",
            dtype="float32",
            checkpoint_path="",
            segments_path="",
        )
    )


@pytest.mark.parametrize(
    ("name", "shots"),
    [
        ("arc_challenge", 25),
        ("arc_challenge", 0),
        ("hellaswag", 10),
        ("winogrande", 5),
        ("truthfulqa_mc1", None),
        ("gsm8k", 5),
        ("leaderboard_ifeval", None),
    ],
)
def test_a_plans_tokens_are_within_a_fifth_of_those_counted(name: str, shots: int | None, tokenizer: Any) -> None:
    """Requested and computed tokens of the first staged documents; neither side counts generated tokens."""
    items = staged_dataset(name)
    task = Task(name=name, num_fewshot=shots, limit=DOCUMENTS, data_path=str(items))
    counts, expected = counted(task, tokenizer), estimated(task)
    assert expected.unknown_tasks == ()
    assert expected.requested == pytest.approx(counts.requested, rel=WITHIN)
    assert expected.computed == pytest.approx(counts.computed, rel=WITHIN)
