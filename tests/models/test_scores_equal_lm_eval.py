"""Scores through the store equal lm-eval's own on the same model, tasks and documents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.tasks
import pytest
from lm_eval.models.huggingface import HFLM

from hpcq.catalog.packages import staged_dataset_path, staged_model_path
from hpcq.core.attempts import Attempt, AttemptRecord, utc_now
from hpcq.core.paths import cache_folder
from hpcq.core.work import EvaluateWork, MergeWork, Model, Scheme, Task, Variant
from hpcq.evaluate.merge import merge
from hpcq.evaluate.worker import evaluate
from hpcq.store import VariantScores, read_responses, read_results
from tests.staged import staged_dataset, staged_model

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
BASE = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
DEFINITIONS = {
    "arc_challenge": "arc/arc_challenge.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "truthfulqa_mc1": "truthfulqa/truthfulqa_mc1.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
    "ifeval": "ifeval/ifeval.yaml",
}
FIXED_AT_ZERO_SHOTS = ("truthfulqa_mc1", "ifeval")
LIMIT, SHOTS, GENERATED_TOKENS = 3, 1, 24


@pytest.fixture(scope="module", autouse=True)
def staged() -> None:
    """The model and every task's items are staged."""
    staged_model(MODEL_ID)
    for name in DEFINITIONS:
        staged_dataset(name)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> tuple[VariantScores, Path]:
    """Return hpcq's results, through worker, segments, merge and results file."""
    run = tmp_path_factory.mktemp("run")
    model = str(staged_model_path(MODEL_ID))
    tasks = tuple(
        Task(
            name=name,
            limit=LIMIT,
            num_fewshot=None if name in FIXED_AT_ZERO_SHOTS else SHOTS,
            max_gen_toks=GENERATED_TOKENS,
            data_path=str(staged_dataset_path(name)),
        )
        for name in DEFINITIONS
    )
    variant = Variant(model=Model(id=MODEL_ID, path=model), scheme=BASE)
    work = EvaluateWork(
        variant=variant,
        tasks=tasks,
        backend="accelerate",
        dtype="float32",
        checkpoint_path=model,
        segments_path=str(run / "segments" / f"evaluate.{variant.id}"),
        batch_size=4,
    )
    results = run / "results.h5"
    merging = MergeWork(run="run", evaluations=(work,), segments_path=str(run / "segments"), results_path=str(results))
    for unit, do in (("evaluate", lambda at: evaluate(work, at)), ("merge", lambda at: merge(merging, at))):
        record = AttemptRecord(unit=unit, attempt=1, job_id="1", node="here", pid=1, start=utc_now())
        do(Attempt(run / "attempts", record))
    return read_results(results).variants[0], results


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Return lm-eval's results, from its own model class, task manager and JSON loader."""
    folder = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NLTK_DATA", str(cache_folder() / "nltk_data"))
        for name, definition in DEFINITIONS.items():
            original = Path(lm_eval.tasks.__file__).parent / definition
            items = staged_dataset_path(name)
            assert items is not None
            files = {path.stem: str(path) for path in items.glob("*.jsonl")}
            settings = {"data_files": files}
            text = f"include: {original}\ntask: {name}\ndataset_path: json\ndataset_name: null\n"
            (folder / f"{name}.yaml").write_text(f"{text}dataset_kwargs: {json.dumps(settings)}\n")
        results = lm_eval.simple_evaluate(
            model=HFLM(pretrained=str(staged_model_path(MODEL_ID)), dtype="float32", device="cpu", batch_size=1),
            tasks=list(DEFINITIONS),
            task_manager=lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False),
            num_fewshot=SHOTS,
            limit=LIMIT,
            gen_kwargs={"max_gen_toks": GENERATED_TOKENS},
        )
    assert results is not None
    return results


@pytest.mark.parametrize("task", DEFINITIONS)
def test_every_metric_is_equal(ours: tuple[VariantScores, Path], theirs: Mapping[str, Any], task: str) -> None:
    """Every metric, its standard error and its number of documents equal lm-eval's."""
    scores = {(one.metric, one.filter): one for one in ours[0].scores if one.task == task}
    expected = theirs["results"][task]
    labels = {tuple(label.split(",")) for label in expected if "," in label and "_stderr," not in label}

    assert scores.keys() == labels
    for (metric, filter_), one in scores.items():
        stderr = expected[f"{metric}_stderr,{filter_}"]
        assert one.value == pytest.approx(expected[f"{metric},{filter_}"], rel=1e-6)
        assert one.stderr == (None if stderr == "N/A" else pytest.approx(stderr, rel=1e-6))
        assert one.n == expected["sample_len"] == LIMIT


@pytest.mark.parametrize("task", DEFINITIONS)
def test_every_response_is_equal(ours: tuple[VariantScores, Path], theirs: Mapping[str, Any], task: str) -> None:
    """Texts and greedy flags equal lm-eval's; log-likelihoods too, up to the effect of another batch size."""
    variant, results = ours
    responses = {
        (key.doc_id, key.request_index): response
        for key, response in read_responses(results, variant.variant).items()
        if key.task == task
    }
    expected = {
        (sample["doc_id"], index): answers[0]
        for sample in theirs["samples"][task]
        for index, answers in enumerate(sample["resps"])
    }

    assert responses.keys() == expected.keys()
    for key, answer in expected.items():
        if isinstance(answer, str):
            assert responses[key].text == answer
        else:
            assert responses[key].is_greedy == answer[1]
            assert responses[key].loglikelihood == pytest.approx(answer[0], rel=1e-5)
