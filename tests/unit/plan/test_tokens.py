"""The plan's estimate of tokens: what enters it, and what it says of what it does not know."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpcq.catalog.packages import staged_items
from hpcq.core.work import EvaluateWork, Model, Scheme, Shard, Task, Variant
from hpcq.plan.cost.token_estimates import TokenEstimate, estimate
from hpcq.plan.plan_json import plan_document
from hpcq.plan.units import Plan, PlannedUnit, Shape


def work(*tasks: Task, backend: str = "accelerate", prefix_sharing: bool = True) -> EvaluateWork:
    """An evaluation of `tasks`."""
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


def test_examples_of_a_data_set_are_computed_once() -> None:
    """MMLU's examples and its line of description are asked for with each choice, and computed once a subject."""
    found = estimate(work(Task(name="mmlu", num_fewshot=5)))
    assert found.asked == 14042 * 4 * (16 + 5 * 97 + 95)
    assert found.computed == 57 * (16 + 5 * 97) + 14042 * 95


def test_examples_that_are_drawn_are_computed_for_each_item() -> None:
    """WinoGrande's are other ones before each sentence; its two choices share them."""
    found = estimate(work(Task(name="winogrande", num_fewshot=5)))
    assert found.asked == 1267 * 2 * (5 * 25 + 16 + 6)
    assert found.computed == 1267 * (5 * 25 + 16 + 2 * 6)


@pytest.mark.parametrize(
    ("task", "items"),
    [
        (Task(name="winogrande"), 1267),
        (Task(name="winogrande", limit=40), 40),
        (Task(name="winogrande", limit=9999), 1267),
        (Task(name="winogrande", data_path=str(staged_items("winogrande"))), 1139),
        (Task(name="winogrande", data_path="/elsewhere"), 1267),
    ],
)
def test_items_are_those_that_will_be_asked(task: Task, items: int) -> None:
    """The original's items, or those that a package ships; a limit takes no more than there are."""
    assert estimate(work(task)).asked == items * 2 * (16 + 6)


def test_a_limit_is_one_for_each_data_set() -> None:
    """Ten documents of MMLU are ten of each of its 57 subjects."""
    assert estimate(work(Task(name="mmlu", limit=10))).computed == 57 * 16 + 570 * 95


def test_without_sharing_all_that_is_asked_for_is_computed() -> None:
    """`evaluate.prefix_sharing = false` saves nothing."""
    found = estimate(work(Task(name="mmlu", num_fewshot=5), prefix_sharing=False))
    assert found.computed == found.asked > 0


def test_shards_add_up_to_the_whole() -> None:
    """A shard's estimate is its part of the whole, whatever the pieces will be."""
    whole = work(Task(name="arc_challenge"), Task(name="hellaswag"))
    shards = [estimate(replace(whole, shard=Shard(index=index, count=3))) for index in range(3)]
    total = sum(shards, start=TokenEstimate())
    assert (total.asked, total.computed) == pytest.approx((estimate(whole).asked, estimate(whole).computed))


def test_a_task_without_figures_is_left_out_by_name_and_generation_counts_nothing() -> None:
    """Nothing is guessed: of MMLU-Pro nobody has counted the tokens, and GSM8K asks for no log-likelihood."""
    arc = estimate(work(Task(name="arc_challenge")))
    with_others = [Task(name="arc_challenge"), Task(name="leaderboard_mmlu_pro"), Task(name="gsm8k")]
    assert estimate(work(*with_others)) == replace(arc, without=("leaderboard_mmlu_pro",))


def test_the_document_has_tokens_of_evaluations_and_their_sum() -> None:
    """Each shard has its own, the totals all of them; a rehearsal, which computes nothing from tokens, has none."""

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

    half = {"asked": 880, "computed": 560, "without": []}
    assert document("accelerate") == {"units": [half, half], "totals": {"asked": 1760, "computed": 1120, "without": []}}
    assert document("synthetic") == {"units": [None, None], "totals": None}
