"""Token estimates: what is counted, and how unknown tasks are reported."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpcq.catalog.packages import staged_dataset_path
from hpcq.core.prompt_settings import Sampling
from hpcq.core.work_records import EvaluateWork, Model, Scheme, Shard, Task, Variant
from hpcq.plan.cost.tokens import TokenEstimate, estimate_tokens, estimate_workload
from hpcq.plan.plan_json import plan_document
from hpcq.plan.units import Plan, PlannedUnit, Shape


def work(*tasks: Task, backend: str = "accelerate", prefix_sharing: bool = True) -> EvaluateWork:
    """Return an evaluation of `tasks`."""
    scheme = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
    return EvaluateWork(
        variant=Variant(model=Model(id="m"), scheme=scheme),
        tasks=tasks,
        backend=backend,
        dtype="float32",
        options=() if prefix_sharing else (("prefix_sharing", False),),
        checkpoint_path="c",
        segments_path="s",
    )


def test_examples_of_a_subtask_are_computed_once() -> None:
    """MMLU: examples and description are in every request, and computed once per subject."""
    found = estimate_tokens(work(Task(name="mmlu", num_fewshot=5)))
    assert found.requested == 14042 * 4 * (16 + 5 * 97 + 95)
    assert found.computed == 57 * (16 + 5 * 97) + 14042 * 95


def test_sampled_examples_are_computed_for_each_document() -> None:
    """WinoGrande samples examples for each sentence; its two choices share them."""
    found = estimate_tokens(work(Task(name="winogrande", num_fewshot=5)))
    assert found.requested == 1267 * 2 * (5 * 25 + 16 + 6)
    assert found.computed == 1267 * (5 * 25 + 16 + 2 * 6)


@pytest.mark.parametrize(
    ("task", "items"),
    [
        (Task(name="winogrande"), 1267),
        (Task(name="winogrande", limit=40), 40),
        (Task(name="winogrande", limit=9999), 1267),
        (Task(name="winogrande", data_path=str(staged_dataset_path("winogrande"))), 1139),
        (Task(name="winogrande", data_path="/elsewhere"), 1267),
    ],
)
def test_documents_are_those_that_are_evaluated(task: Task, items: int) -> None:
    """The original data set or the packaged one; a limit cannot exceed it."""
    assert estimate_tokens(work(task)).requested == items * 2 * (16 + 6)


def test_a_limit_applies_to_each_subtask() -> None:
    """A limit of ten documents of MMLU means ten of each of its 57 subjects."""
    assert estimate_tokens(work(Task(name="mmlu", limit=10))).computed == 57 * 16 + 570 * 95


def test_without_prefix_sharing_all_requested_tokens_are_computed() -> None:
    """`evaluate.prefix_sharing = false` saves no tokens."""
    found = estimate_tokens(work(Task(name="mmlu", num_fewshot=5), prefix_sharing=False))
    assert found.computed == found.requested > 0


def test_shards_add_up_to_the_whole() -> None:
    """The estimate of a shard is the total divided by the number of shards."""
    whole = work(Task(name="arc_challenge"), Task(name="hellaswag"))
    shards = [estimate_tokens(replace(whole, shard=Shard(index=index, count=3))) for index in range(3)]
    total = sum(shards, start=TokenEstimate())
    assert (total.requested, total.computed) == pytest.approx(
        (estimate_tokens(whole).requested, estimate_tokens(whole).computed)
    )


def test_unknown_tasks_are_named_and_generation_counts_nothing() -> None:
    """MMLU-Pro has no token averages, and GSM8K has no log-likelihood requests."""
    arc = estimate_tokens(work(Task(name="arc_challenge")))
    with_others = [Task(name="arc_challenge"), Task(name="leaderboard_mmlu_pro"), Task(name="gsm8k")]
    assert estimate_tokens(work(*with_others)) == replace(arc, unknown_tasks=("leaderboard_mmlu_pro",))


def test_the_document_has_tokens_of_evaluations_and_their_sum() -> None:
    """Each shard has an estimate, and the totals their sum; the synthetic backend has none."""

    def document(backend: str) -> dict[str, object]:
        units = [
            PlannedUnit(
                id=f"evaluate.v.{index}of2",
                work=replace(
                    work(Task(name="winogrande", limit=40), backend=backend), shard=Shard(index=index, count=2)
                ),
                environment="transformers",
                shape=Shape(gpu_class="cpu"),
            )
            for index in range(2)
        ]
        planned = plan_document(Plan(run="r", address="a", units=tuple(units)), (), {})
        return {"units": [unit["tokens"] for unit in planned["units"]], "totals": planned["totals"]["tokens"]}

    half = {"requested": 880, "computed": 560, "unknown_tasks": []}
    assert document("accelerate") == {
        "units": [half, half],
        "totals": {"requested": 1760, "computed": 1120, "unknown_tasks": []},
    }
    assert document("synthetic") == {"units": [None, None], "totals": None}


def test_repeats_are_counted() -> None:
    """Four texts per prompt are four generations."""
    sampling = Sampling(arguments=(("do_sample", True), ("temperature", 0.7)), repeats=4)
    one, four = (
        estimate_workload([Task(name="gsm8k", sampling=each)], shares_prefixes=True) for each in (Sampling(), sampling)
    )
    assert (four.generations, four.generated_tokens) == (4 * one.generations, 4 * one.generated_tokens)
