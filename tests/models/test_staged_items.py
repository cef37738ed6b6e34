"""Documents and requests of lm-eval's own task definitions on the staged items."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hpcq.catalog.packages import find_packaged_dataset, nltk_data_folder, packaged_tasks
from tests.staged import staged_dataset

PROGRAM = Path(__file__).parent / "lm_eval_documents.py"
# Definition under lm_eval/tasks, number of few-shot examples, evaluated split, number of requests.
EXPECTED = {
    "arc_challenge": ("arc/arc_challenge.yaml", 2, "test", 4172),
    "gsm8k": ("gsm8k/gsm8k.yaml", 2, "test", 1219),
    "hellaswag": ("hellaswag/hellaswag.yaml", 2, "validation", 320),
    "ifeval": ("ifeval/ifeval.yaml", 0, "train", 541),
    "leaderboard_ifeval": ("leaderboard/ifeval/ifeval.yaml", 0, "train", 541),
    "truthfulqa_mc1": ("truthfulqa/truthfulqa_mc1.yaml", 0, "validation", 4114),
    "winogrande": ("winogrande/default.yaml", 2, "validation", 2278),
}
DEAD_PROXY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def built(transformers_python: Path) -> dict[str, dict[str, Any]]:
    """Return lm-eval's description of every task's staged items, built without network access."""
    wanted = {
        task: {
            "definition": definition,
            "folder": str(staged_dataset(task)),
            "shots": shots,
        }
        for task, (definition, shots, _, _) in EXPECTED.items()
    }
    completed = subprocess.run(
        [str(transformers_python), str(PROGRAM)],
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NLTK_DATA": str(nltk_data_folder()), "HTTP_PROXY": DEAD_PROXY, "HTTPS_PROXY": DEAD_PROXY},
    )
    assert completed.returncode == 0, completed.stderr[-2000:]
    descriptions: dict[str, dict[str, Any]] = json.loads(completed.stdout)
    return descriptions


@pytest.mark.parametrize("task", packaged_tasks())
def test_the_definition_reads_them(task: str, built: dict[str, dict[str, Any]]) -> None:
    """lm-eval finds the splits of the catalog, evaluates the right one, and makes a request for every choice."""
    items = find_packaged_dataset(task)
    _, _, evaluated, requests = EXPECTED[task]
    assert items is not None
    assert built[task]["splits"] == dict(items.splits)
    assert built[task]["documents"] == built[task]["splits"][evaluated]
    assert len(built[task]["prompts"]) == requests


@pytest.mark.parametrize("task", ["arc_challenge", "gsm8k", "hellaswag", "winogrande"])
def test_examples_come_before_the_question(task: str, built: dict[str, dict[str, Any]]) -> None:
    """Each prompt of a task with held-out documents begins with the two requested examples."""
    assert all(len(prompt.split("\n\n")) >= 3 for prompt in built[task]["prompts"])


def test_hellaswag_reads_as_the_original_does(built: dict[str, dict[str, Any]]) -> None:
    """In a prompt with an unfinished last sentence, that sentence is capitalized, as lm-eval does with ctx_b."""
    last_sentences = [prompt.rsplit(". ", 1)[-1] for prompt in built["hellaswag"]["prompts"]]
    unfinished = [sentence for sentence in last_sentences if sentence[-1] not in ".!?"]
    assert len(unfinished) == 4 * 26
    assert all(sentence[0].isupper() for sentence in unfinished)


def test_truthfulqa_answers_with_its_first_choice(built: dict[str, dict[str, Any]]) -> None:
    """TruthfulQA's definition expects the true choice at index 0, and the staged items have it there."""
    folder = staged_dataset("truthfulqa_mc1")
    lines = (folder / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(json.loads(line)["mc1_targets"]["labels"].index(1) == 0 for line in lines)
    assert set(built["truthfulqa_mc1"]["targets"]) == {0}


@pytest.mark.parametrize("task", ["ifeval", "leaderboard_ifeval"])
def test_ifeval_judges_without_the_network(task: str, built: dict[str, dict[str, Any]]) -> None:
    """Every IFEval instruction can be judged offline, including those that need NLTK's sentence splitter."""
    verdicts = [verdict["prompt_level_strict_acc"] for verdict in built[task]["judged"]]
    assert len(verdicts) == 541
    assert 0 < sum(verdicts) < 541
