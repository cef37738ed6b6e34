"""lm-eval's tasks over documents in a folder, with what a manifest may change of them."""

from __future__ import annotations

import random
from pathlib import Path

import datasets
import pytest
from lm_eval.api.task import ConfigurableTask

from hpcq.core.digests import digest_of_items
from hpcq.core.errors import SetupError, UserInputError, WorkFailed
from hpcq.core.work import Task
from hpcq.evaluate.requests import Request
from hpcq.evaluate.tasks import _build_requests, build_tasks


def _requests(items: Path, **fields: object) -> list[Request]:
    (built,) = build_tasks([Task(name="arc_challenge", data_path=str(items), **fields)])  # type: ignore[arg-type]
    return built.requests()


def _prompts(requests: list[Request]) -> list[tuple[str, str]]:
    return [request.arguments for request in requests]  # type: ignore[misc]


def test_prompts_are_the_definitions_own(arc_items: Path) -> None:
    """The prompt and the choices are those of lm-eval's definition, and so is the version."""
    requests = _requests(arc_items)

    assert len(requests) == sum(3 + number % 2 for number in range(9))
    assert requests[0].arguments == ("Question: What is 0 times 1 in the test book?\nAnswer:", " 0")
    assert requests[0].key[:5] == ("arc_challenge", "1.0", 0, 0, 0)


def test_documents_are_those_that_datasets_would_load(arc_items: Path) -> None:
    """Reading the lines in memory gives what the JSON loader of datasets gives."""
    files = {"test": str(arc_items / "test.jsonl"), "train": str(arc_items / "train.jsonl")}
    (built,) = build_tasks([Task(name="arc_challenge", data_path=str(arc_items))])
    loaded = datasets.load_dataset("json", data_files=files)

    for split in files:
        assert list(built.leaves["arc_challenge"].dataset[split]) == list(loaded[split])


def test_prompts_are_the_same_each_time(arc_items: Path) -> None:
    """Two builds draw the same few-shot examples; another seed draws others."""
    first, again = (_requests(arc_items, num_fewshot=2) for _ in range(2))
    other = _requests(arc_items, num_fewshot=2, fewshot_seed=4321)

    assert [request.key for request in first] == [request.key for request in again]
    assert _prompts(first) != _prompts(other)


def test_building_again_keeps_the_prompts(arc_items: Path) -> None:
    """lm-eval's evaluator builds requests again before scoring; that must not draw new few-shot examples."""
    (built,) = build_tasks([Task(name="arc_challenge", data_path=str(arc_items), num_fewshot=2)])
    before = _prompts(built.requests())

    built.leaves["arc_challenge"].build_all_requests(limit=None, rank=0, world_size=1)

    assert _prompts(built.requests()) == before


def test_shuffled_choices_stay_as_they_were_asked() -> None:
    """A definition that shuffles choices shuffles them once: what is scored is what was asked."""

    def shuffled(dataset: datasets.Dataset) -> datasets.Dataset:
        def shuffle(document: dict[str, list[str]]) -> dict[str, list[str]]:
            return {"choices": random.sample(document["choices"], k=8)}

        return dataset.map(shuffle)

    rows = datasets.Dataset.from_list([{"question": f"{n}?", "choices": list("abcdefgh")} for n in range(5)])
    config = {
        "task": "shuffling",
        "custom_dataset": lambda **_: datasets.DatasetDict({"test": rows}),
        "test_split": "test",
        "process_docs": shuffled,
        "output_type": "multiple_choice",
        "doc_to_text": "question",
        "doc_to_target": 0,
        "doc_to_choice": "choices",
        "num_fewshot": 0,
    }
    leaf = ConfigurableTask(config=config)

    _build_requests("shuffling", leaf, Task(name="shuffling"))

    asked = [[instance.args[1].strip() for instance in leaf.instances[start : start + 8]] for start in range(0, 40, 8)]
    assert [document["choices"] for _, document in leaf.doc_iterator()] == asked


def test_changed_documents_are_refused(arc_items: Path) -> None:
    """Documents that are not those of the plan are a fault of the environment: the address would tell a lie."""
    digest = digest_of_items(arc_items)
    assert _requests(arc_items, data_digest=digest)
    with (arc_items / "test.jsonl").open("a") as file:
        file.write("\n")

    with pytest.raises(SetupError, match="the documents of arc_challenge are not those that the plan was made with"):
        _requests(arc_items, data_digest=digest)


def test_limit_takes_the_first_documents(arc_items: Path) -> None:
    """A limit keeps the first documents, with the prompts that they have without it."""
    limited, whole = _requests(arc_items, num_fewshot=2, limit=4), _requests(arc_items, num_fewshot=2)

    assert {request.key.doc_id for request in limited} == {0, 1, 2, 3}
    assert _prompts(limited) == _prompts(whole)[: len(limited)]


def test_generated_tokens_can_be_limited(tmp_path: Path) -> None:
    """`max_gen_toks` changes the generation arguments, and nothing else of them."""
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"question": "How many?", "answer": "Two. #### 2"}\n')

    (built,) = build_tasks([Task(name="gsm8k", data_path=str(tmp_path), num_fewshot=0, max_gen_toks=24)])

    (request,) = built.requests()
    assert request.generation["max_gen_toks"] == 24
    assert request.generation["until"] == ["Question:", "</s>", "<|im_end|>"]


def test_unknown_task_is_one_sentence() -> None:
    """A task that the catalog lacks is refused by name."""
    with pytest.raises(UserInputError, match="tasks: the catalog has no task 'arc_chalenge'"):
        build_tasks([Task(name="arc_chalenge")])


def test_missing_documents_are_one_sentence(tmp_path: Path) -> None:
    """An empty folder is a fault of the environment, with the folder and the cure."""
    with pytest.raises(SetupError, match=rf"arc_challenge: .*{tmp_path.name} has no .jsonl file.*hpcq stage"):
        build_tasks([Task(name="arc_challenge", data_path=str(tmp_path))])


def test_one_folder_cannot_serve_a_group(tmp_path: Path) -> None:
    """A group of tasks over one folder of documents is refused."""
    with pytest.raises(UserInputError, match="mmlu is a group of tasks"):
        build_tasks([Task(name="mmlu", data_path=str(tmp_path))])


def test_fixed_fewshot_is_not_overridden(tmp_path: Path) -> None:
    """Where a definition fixes no examples, asking for some is refused: lm-eval would pass over it in silence."""
    row = '{"question": "Why?", "mc1_targets": {"choices": ["a", "b"], "labels": [1, 0]}}\n'
    (tmp_path / "validation.jsonl").write_text(row)

    with pytest.raises(UserInputError, match=r"tasks\.options\.truthfulqa_mc1\.num_fewshot: 3 is not possible"):
        build_tasks([Task(name="truthfulqa_mc1", data_path=str(tmp_path), num_fewshot=3)])


def test_too_few_examples_are_one_sentence(arc_items: Path) -> None:
    """More few-shot examples than the split holds is a sentence that names the task."""
    with pytest.raises(WorkFailed, match="arc_challenge: lm-eval cannot make its requests"):
        _requests(arc_items, num_fewshot=25)


def test_a_task_is_asked_once(arc_items: Path) -> None:
    """The same task twice, with whatever settings, is refused: its keys could not be told apart."""
    task = Task(name="arc_challenge", data_path=str(arc_items))

    with pytest.raises(WorkFailed, match="arc_challenge would be asked twice"):
        build_tasks([task, Task(name="arc_challenge", data_path=str(arc_items), num_fewshot=1)])
