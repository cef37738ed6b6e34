"""Prompts, responses and scores with prompt settings equal those of lm-eval's own `simple_evaluate`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.tasks
import pytest
from lm_eval.models.huggingface import HFLM

from hpcq.catalog.packages import staged_dataset_path, staged_model_path
from hpcq.core.attempts import Attempt, AttemptRecord, utc_now
from hpcq.core.prompt_settings import Prompt, Sampling
from hpcq.core.work_records import EvaluateWork, MergeWork, Model, Scheme, Shard, Task, Variant
from hpcq.evaluate.chat_templates import load_chat_template
from hpcq.evaluate.lm_eval_tasks import build_tasks
from hpcq.evaluate.merge import merge
from hpcq.evaluate.worker import evaluate
from hpcq.store import VariantScores, read_responses, read_results
from tests.staged import staged_dataset, staged_model

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
THINK_END = "is"
LIMIT, SHOTS = 2, 2
BASE = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
DEFINITIONS = {
    "arc_challenge": "arc/arc_challenge.yaml",
    "winogrande": "winogrande/default.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """Settings of one run, for both programs."""

    prompt: Prompt
    model_args: Mapping[str, Any] = field(default_factory=dict)
    bos: bool = False
    until: tuple[str, ...] = ("\n\n", "Question:")

    @property
    def generation(self) -> dict[str, Any]:
        """lm-eval's --gen_kwargs."""
        return {"max_gen_toks": 16, "until": list(self.until), "repetition_penalty": 1.2}

    @property
    def theirs(self) -> dict[str, Any]:
        """Arguments of lm-eval's `simple_evaluate`."""
        named = self.prompt.chat_template
        return {
            "apply_chat_template": named,
            "system_instruction": self.prompt.system,
            "fewshot_as_multiturn": self.prompt.fewshot_as_multiturn,
        }


TOY_TEMPLATE = (
    "{{ bos_token }}{{ strftime_now('%d %b %Y') }}{% for m in messages %}[{{ m.role }}"
    "{% if enable_thinking is defined %}"
    "{{ enable_thinking }}{{ effort }}{% endif %}]{{ m.content }}{{ eos_token if not loop.last else '' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
CASES = {
    "system": Case(prompt=Prompt(system="Answer briefly.")),
    "multiturn": Case(prompt=Prompt(chat_template=True, system="You are a careful solver.", fewshot_as_multiturn=True)),
    "thinking": Case(
        prompt=Prompt(
            chat_template=True,
            template_args=(("effort", "low"), ("enable_thinking", False)),
            think_end_token=THINK_END,
            date=datetime.now().astimezone().date().isoformat(),
        ),
        model_args={"enable_thinking": False, "think_end_token": THINK_END, "chat_template_args": {"effort": "low"}},
        bos=True,
        until=("no such text",),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def staged() -> None:
    """The model and every task's items are staged."""
    staged_model(MODEL_ID)
    for name in DEFINITIONS:
        staged_dataset(name)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The staged model; its tokenizer adds a BOS token, and its template begins with one."""
    source, folder = staged_model_path(MODEL_ID), tmp_path_factory.mktemp("model") / "bos"
    assert source
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).symlink_to(path)
    for name, change in (("tokenizer_config.json", {"chat_template": TOY_TEMPLATE}), ("tokenizer.json", {})):
        document = json.loads((folder / name).read_text(encoding="utf-8")) | change
        if name == "tokenizer.json":
            bos = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
            document["post_processor"] = {
                "type": "TemplateProcessing",
                "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
            }
        (folder / name).unlink()
        (folder / name).write_text(json.dumps(document), encoding="utf-8")
    return folder


def _work(run: Path, folder: Path, case: Case) -> EvaluateWork:
    tasks = tuple(
        Task(
            name=name,
            limit=LIMIT,
            num_fewshot=SHOTS,
            data_path=str(staged_dataset_path(name)),
            prompt=case.prompt,
            sampling=Sampling(
                arguments=tuple(
                    (key, tuple(value) if isinstance(value, list) else value)
                    for key, value in sorted(case.generation.items())
                )
            ),
        )
        for name in DEFINITIONS
    )
    variant = Variant(model=Model(id=MODEL_ID, path=str(folder)), scheme=BASE)
    return EvaluateWork(
        variant=variant,
        tasks=tasks,
        backend="accelerate",
        dtype="float32",
        checkpoint_path=str(folder),
        segments_path=str(run / "segments" / f"evaluate.{variant.id}"),
        batch_size=4,
    )


def _run(run: Path, work: EvaluateWork, shards: int) -> tuple[VariantScores, Path]:
    results = run / "results.h5"
    merging = MergeWork(run="run", evaluations=(work,), segments_path=str(run / "segments"), results_path=str(results))
    for index in range(shards):
        unit = f"evaluate.{work.variant.id}" + (f".{index}of{shards}" if shards > 1 else "")
        shard = replace(work, shard=Shard(index=index, count=shards), segments_path=str(run / "segments" / unit))
        evaluate(shard, _attempt(run, unit))
    merge(merging, _attempt(run, "merge"))
    return read_results(results).variants[0], results


def _attempt(run: Path, unit: str) -> Attempt:
    return Attempt(
        run / "attempts", AttemptRecord(unit=unit, attempt=1, job_id="1", node="here", pid=1, start=utc_now())
    )


def _theirs(root: Path, folder: Path, case: Case) -> Mapping[str, Any]:
    definitions = Path(lm_eval.tasks.__file__).parent
    for name, definition in DEFINITIONS.items():
        files = {path.stem: str(path) for path in staged_dataset(name).glob("*.jsonl")}
        (root / f"{name}.yaml").write_text(
            f"include: {definitions / definition}\ntask: {name}\ndataset_path: json\ndataset_name: null\n"
            f"dataset_kwargs: {json.dumps({'data_files': files})}\n"
        )
    lm = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1, **case.model_args)
    manager = lm_eval.tasks.TaskManager(include_path=str(root), include_defaults=False)
    results: Mapping[str, Any] = lm_eval.simple_evaluate(
        lm,
        tasks=list(DEFINITIONS),
        task_manager=manager,
        limit=LIMIT,
        num_fewshot=SHOTS,
        gen_kwargs=case.generation,
        **case.theirs,
    )
    return results


@pytest.mark.parametrize("name", CASES)
def test_prompts_responses_and_scores_equal_those_of_lm_eval(name: str, model: Path, tmp_path: Path) -> None:
    """Every prompt is the same text, every answer too, every score the same number; also on three shards."""
    case = CASES[name]
    folder = model if case.bos else staged_model(MODEL_ID)
    theirs = _theirs(tmp_path, folder, case)
    work = _work(tmp_path / "run", folder, case)
    scores, results = _run(tmp_path / "run", work, 3 if name == "multiturn" else 1)

    ours = {
        (request.key.task, request.key.doc_id, request.key.request_index): request.arguments
        for one in build_tasks(work.tasks, load_chat_template(work))
        for request in one.requests()
    }
    asked = {
        (task, sample["doc_id"], number): tuple(arguments)
        for task, samples in theirs["samples"].items()
        for sample in samples
        for number, arguments in enumerate(sample["arguments"])
    }
    assert ours == asked
    answers = {
        (key.task, key.doc_id, key.request_index): response
        for key, response in read_responses(results, work.variant.id).items()
    }
    for task, samples in theirs["samples"].items():
        for sample in samples:
            for number, [expected] in enumerate(sample["resps"]):
                found = answers[task, sample["doc_id"], number]
                if isinstance(expected, str):
                    assert found.text == expected
                else:
                    assert found.loglikelihood == pytest.approx(expected[0], rel=1e-5)
                    assert found.is_greedy == expected[1]
    assert scores.scores
    for score in scores.scores:
        assert score.value == pytest.approx(theirs["results"][score.task][f"{score.metric},{score.filter}"], rel=1e-6)
