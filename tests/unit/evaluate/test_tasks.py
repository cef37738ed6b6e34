"""lm-eval's tasks over documents in a folder, with the overrides of a manifest."""

from __future__ import annotations

import json
import random
from pathlib import Path

import datasets
import pytest
from lm_eval.api.task import ConfigurableTask

from hpcq.core.digests import digest_of_items
from hpcq.core.errors import SetupError, UserInputError, WorkerError
from hpcq.core.task_definitions import digest_of_definitions
from hpcq.core.work_records import Task
from hpcq.evaluate.lm_eval_tasks import _build_requests, build_tasks
from hpcq.evaluate.requests import Request
from tests.lm_eval_tasks.runner import write_own_tasks


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


def test_documents_equal_those_that_datasets_loads(arc_items: Path) -> None:
    """Reading the lines into memory gives the same documents as the JSON loader of datasets."""
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
    """lm-eval's evaluator builds requests again before scoring, which must not draw new few-shot examples."""
    (built,) = build_tasks([Task(name="arc_challenge", data_path=str(arc_items), num_fewshot=2)])
    before = _prompts(built.requests())

    built.leaves["arc_challenge"].build_all_requests(limit=None, rank=0, world_size=1)

    assert _prompts(built.requests()) == before


def test_shuffled_choices_keep_their_order() -> None:
    """A definition that shuffles choices shuffles them once: the scored requests are the answered ones."""

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

    built = [[instance.args[1].strip() for instance in leaf.instances[start : start + 8]] for start in range(0, 40, 8)]
    assert [document["choices"] for _, document in leaf.doc_iterator()] == built


def test_changed_documents_are_refused(arc_items: Path) -> None:
    """Documents with another digest than in the plan are refused: the content address would be wrong."""
    digest = digest_of_items(arc_items)
    assert _requests(arc_items, data_digest=digest)
    with (arc_items / "test.jsonl").open("a") as file:
        file.write("\n")

    with pytest.raises(SetupError, match="the documents of arc_challenge have changed since the plan was made"):
        _requests(arc_items, data_digest=digest)


def test_limit_takes_the_first_documents(arc_items: Path) -> None:
    """A limit keeps the first documents, with the same prompts as without it."""
    limited, whole = _requests(arc_items, num_fewshot=2, limit=4), _requests(arc_items, num_fewshot=2)

    assert {request.key.doc_id for request in limited} == {0, 1, 2, 3}
    assert _prompts(limited) == _prompts(whole)[: len(limited)]


def test_generated_tokens_can_be_limited(tmp_path: Path) -> None:
    """`max_gen_toks` changes that generation argument and no other."""
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"question": "How many?", "answer": "Two. #### 2"}\n')

    (built,) = build_tasks([Task(name="gsm8k", data_path=str(tmp_path), num_fewshot=0, max_gen_toks=24)])

    (request,) = built.requests()
    assert request.generation_kwargs["max_gen_toks"] == 24
    assert request.generation_kwargs["until"] == ["Question:", "</s>", "<|im_end|>"]


def test_an_unknown_task_is_refused() -> None:
    """A task that lm-eval does not have is refused by name."""
    with pytest.raises(UserInputError, match=r"tasks\.use: lm-eval has no task 'arc_chalenge'"):
        build_tasks([Task(name="arc_chalenge")])


def test_missing_documents_are_a_setup_error(tmp_path: Path) -> None:
    """An empty folder is a SetupError with the folder and the fix."""
    with pytest.raises(SetupError, match=rf"arc_challenge: .*{tmp_path.name} has no .jsonl file.*hpcq stage"):
        build_tasks([Task(name="arc_challenge", data_path=str(tmp_path))])


def test_the_members_of_a_group_have_a_folder_each(tmp_path: Path) -> None:
    """Each member reads the documents in the folder of its name."""
    members = ("leaderboard_gpqa_diamond", "leaderboard_gpqa_extended", "leaderboard_gpqa_main")
    wrong = {f"Incorrect Answer {number}": f"wrong {number}" for number in (1, 2, 3)}
    for number, member in enumerate(members, start=1):
        (tmp_path / member).mkdir()
        row = json.dumps({"Question": f"{member}?", "Correct Answer": "right", **wrong})
        (tmp_path / member / "train.jsonl").write_text(f"{row}\n" * number)

    (built,) = build_tasks([Task(name="leaderboard_gpqa", data_path=str(tmp_path))])

    assert {name: len(leaf.eval_docs) for name, leaf in built.leaves.items()} == dict(
        zip(members, (1, 2, 3), strict=True)
    )
    assert all(f"{name}?" in leaf.instances[0].args[0] for name, leaf in built.leaves.items())


def test_documents_of_own_tasks_are_next_to_their_definitions(tmp_path: Path) -> None:
    """JSON lines are read from the folder of the definition, and its Python function makes the prompt."""
    write_own_tasks(tmp_path / "mine")
    digest = digest_of_definitions([tmp_path / "mine"])
    task = Task(name="my_colors", definitions=digest, definition_folders=(str(tmp_path / "mine"),), limit=2)

    (built,) = build_tasks([task])

    assert [request.arguments for request in built.requests()][:2] == [
        ("Color of box 0:", " red"),
        ("Color of box 0:", " dark green"),
    ]
    (tmp_path / "mine" / "colors.jsonl").write_text("")
    with pytest.raises(SetupError, match="the definitions of my_colors have changed since the plan was made"):
        build_tasks([task])


def test_fixed_fewshot_is_not_overridden(tmp_path: Path) -> None:
    """If a definition fixes 0 examples, another number is refused: lm-eval would ignore it silently."""
    row = '{"question": "Why?", "mc1_targets": {"choices": ["a", "b"], "labels": [1, 0]}}\n'
    (tmp_path / "validation.jsonl").write_text(row)

    with pytest.raises(UserInputError, match=r"tasks\.options\.truthfulqa_mc1\.num_fewshot: 3 is not possible"):
        build_tasks([Task(name="truthfulqa_mc1", data_path=str(tmp_path), num_fewshot=3)])


def test_too_many_examples_are_refused(arc_items: Path) -> None:
    """More few-shot examples than the split has is an error that names the task."""
    with pytest.raises(WorkerError, match="arc_challenge: lm-eval cannot make its requests"):
        _requests(arc_items, num_fewshot=25)


def test_a_first_document_that_does_not_fit_is_named(arc_items: Path) -> None:
    """lm-eval makes a prompt of it when it loads the task; its error has neither task nor folder.

    Observed: a unit failed with "ValueError: 'C' is not in list".
    """
    path = arc_items / "test.jsonl"
    first, rest = path.read_text(encoding="utf-8").split("\n", 1)
    path.write_text(json.dumps({**json.loads(first), "answerKey": " "}) + "\n" + rest, encoding="utf-8")
    with pytest.raises(
        WorkerError,
        match=r"^arc_challenge: lm-eval cannot use the first document in .*' ' is not in list\. Check the items",
    ):
        _requests(arc_items)


def test_a_task_runs_once(arc_items: Path) -> None:
    """The same task twice, with any settings, is refused: their keys would be the same."""
    task = Task(name="arc_challenge", data_path=str(arc_items))

    with pytest.raises(WorkerError, match="arc_challenge would run twice"):
        build_tasks([task, Task(name="arc_challenge", data_path=str(arc_items), num_fewshot=1)])
