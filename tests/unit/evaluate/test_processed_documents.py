"""Documents of definitions that shuffle choices: one order per split, as with the cache of datasets."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
import pytest

from hpcq.core.work_records import SHUFFLE_SEED, Task
from hpcq.evaluate.lm_eval_tasks import build_tasks

ITEMS = [
    {
        "Question": f"Which is {number}?",
        "Correct Answer": f"right {number}",
        **{f"Incorrect Answer {step}": f"wrong {step} of {number}" for step in (1, 2, 3)},
    }
    for number in range(8)
]
DEFINITIONS = Path(lm_eval.tasks.__file__).parent


@pytest.fixture
def items(tmp_path: Path) -> Path:
    """Return a folder with items in the schema of GPQA."""
    folder = tmp_path / "items"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    return folder


def built_by_lm_eval(name: str, definition: str, tmp_path: Path, items: Path, num_fewshot: int) -> list[Any]:
    """Return the requests of a second run of lm-eval, with the seeds of its command line."""
    config = {
        "include": str(DEFINITIONS / definition),
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"train": str(items / "train.jsonl")}, "cache_dir": str(tmp_path / "cache")},
        "num_fewshot": num_fewshot,
    }
    (tmp_path / "gpqa.yaml").write_text(json.dumps(config))
    datasets.enable_caching()
    for _ in range(2):
        for module in [one for one in sys.modules if one.startswith("lm_eval.tasks.") and "gpqa" in one]:
            del sys.modules[module]  # as in a new process
        random.seed(0)
        task = lm_eval.tasks.TaskManager(include_path=str(tmp_path), include_defaults=False).load(name)["tasks"][name]
        task.set_fewshot_seed(1234)
        task.build_all_requests(rank=0, world_size=1)
        documents = list(task.doc_iterator(rank=0, world_size=1))  # as for the scores
    assert [instance.doc for instance in task.instances[::4]] == [document for _, document in documents]
    return [instance.args for instance in task.instances]


@pytest.mark.parametrize(
    ("name", "definition", "num_fewshot"),
    [
        ("leaderboard_gpqa_main", "leaderboard/gpqa/gpqa_main_zeroshot.yaml", 0),
        ("gpqa_main_zeroshot", "gpqa/zeroshot/gpqa_main_zeroshot.yaml", 0),
        ("gpqa_main_n_shot", "gpqa/n_shot/gpqa_main_n_shot.yaml", 2),
    ],
)
def test_shuffled_choices_are_those_of_lm_eval(
    items: Path, tmp_path: Path, name: str, definition: str, num_fewshot: int
) -> None:
    """A split is shuffled once; tasks before it have no effect.

    Observed: choices of GPQA in another order than in lm-eval.
    """
    expected = built_by_lm_eval(name, definition, tmp_path, items, num_fewshot)
    task = Task(name=name, data_path=str(items), num_fewshot=num_fewshot, shuffle_seed=SHUFFLE_SEED)
    for _ in range(2):
        assert [request.arguments for request in build_tasks([task])[0].requests()] == expected
