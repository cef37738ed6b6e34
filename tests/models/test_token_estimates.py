"""The plan's estimate of tokens, beside what the back end's own schedule counts on real items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from transformers import AutoTokenizer

from hpcq.catalog.packages import staged_model
from hpcq.core.work import EvaluateWork, Model, Scheme, Task, Variant
from hpcq.evaluate.prefix.batching import Limits
from hpcq.evaluate.prefix.chunks import cut
from hpcq.evaluate.prefix.planner import schedule
from hpcq.evaluate.prefix.token_counts import Counts, count
from hpcq.evaluate.prefix.tokenization import asks_of, encode_pairs
from hpcq.evaluate.requests import LOGLIKELIHOOD
from hpcq.evaluate.tasks import build_tasks
from hpcq.plan.cost.token_estimates import TokenEstimate, estimate
from hpcq.stage import stage_items

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
MAX_LENGTH = 8192
DOCUMENTS = 48
WITHIN = 0.2


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The tokenizer that the catalog's figures were counted with."""
    folder = staged_model(MODEL)
    if folder is None or not folder.is_dir():
        pytest.fail(f"{MODEL} is not staged: type 'python -m hpcq stage manifests/quickstart.toml'.", pytrace=False)
    return AutoTokenizer.from_pretrained(folder)


def counted(task: Task, tokenizer: Any) -> Counts:
    """What the schedules of the task's pieces ask for and compute."""

    def encode(texts: Sequence[str], *, plain: bool) -> list[list[int]]:
        found: list[list[int]] = tokenizer(list(texts), **({"add_special_tokens": False} if plain else {}))["input_ids"]
        return found

    (built,) = build_tasks([task])
    counts = Counts()
    for piece in cut(built.requests()):
        if piece.requests[0].kind == LOGLIKELIHOOD:
            pairs: list[Any] = [request.arguments for request in piece.requests]
            asks = asks_of(encode_pairs(pairs, encode, tokenizer.bos_token_id), MAX_LENGTH)
            counts += count(asks, schedule(asks, Limits()))
    return counts


def estimated(task: Task) -> TokenEstimate:
    """What a plan says of an evaluation of that task alone."""
    scheme = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
    return estimate(
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
    """Asked for and computed, of the first documents that are staged; of what is generated both say nothing."""
    items = stage_items(name, progress=lambda _: None)
    task = Task(name=name, num_fewshot=shots, limit=DOCUMENTS, data_path=str(items))
    counts, expected = counted(task, tokenizer), estimated(task)
    assert expected.without == ()
    assert expected.asked == pytest.approx(counts.asked, rel=WITHIN)
    assert expected.computed == pytest.approx(counts.computed, rel=WITHIN)
