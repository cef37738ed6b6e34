"""lm-eval's own task definitions make their documents and requests from the staged items."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hpcq.catalog.packages import find_items, nltk_data, packaged_tasks
from hpcq.stage import stage_items

PROGRAM = Path(__file__).parent / "lm_eval_documents.py"
# The definition under lm_eval/tasks, few-shot examples to draw, split that is evaluated, requests in all.
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
    """What lm-eval makes of every task's staged items, with no way to the network."""
    wanted = {
        task: {
            "definition": definition,
            "folder": str(stage_items(task, progress=lambda _: None)),
            "shots": shots,
        }
        for task, (definition, shots, _, _) in EXPECTED.items()
    }
    ended = subprocess.run(
        [str(transformers_python), str(PROGRAM)],
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NLTK_DATA": str(nltk_data()), "HTTP_PROXY": DEAD_PROXY, "HTTPS_PROXY": DEAD_PROXY},
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    told: dict[str, dict[str, Any]] = json.loads(ended.stdout)
    return told


@pytest.mark.parametrize("task", packaged_tasks())
def test_the_definition_reads_them(task: str, built: dict[str, dict[str, Any]]) -> None:
    """lm-eval finds the splits that the catalog states, evaluates the right one, and asks for every choice."""
    items = find_items(task)
    _, _, evaluated, requests = EXPECTED[task]
    assert items is not None
    assert built[task]["splits"] == dict(items.splits)
    assert built[task]["documents"] == built[task]["splits"][evaluated]
    assert len(built[task]["prompts"]) == requests


@pytest.mark.parametrize("task", ["arc_challenge", "gsm8k", "hellaswag", "winogrande"])
def test_examples_stand_before_the_question(task: str, built: dict[str, dict[str, Any]]) -> None:
    """Each prompt of a task with held-out documents begins with the two examples that were asked for."""
    assert all(len(prompt.split("\n\n")) >= 3 for prompt in built[task]["prompts"])


def test_hellaswag_reads_as_the_original_does(built: dict[str, dict[str, Any]]) -> None:
    """A prompt whose last sentence is unfinished begins that sentence with a capital, as lm-eval does with ctx_b."""
    last_sentences = [prompt.rsplit(". ", 1)[-1] for prompt in built["hellaswag"]["prompts"]]
    unfinished = [sentence for sentence in last_sentences if sentence[-1] not in ".!?"]
    assert len(unfinished) == 4 * 26
    assert all(sentence[0].isupper() for sentence in unfinished)


def test_truthfulqa_answers_with_its_first_choice(built: dict[str, dict[str, Any]]) -> None:
    """TruthfulQA's definition takes choice 0 for the true one, and the staged items put it there."""
    folder = stage_items("truthfulqa_mc1", progress=lambda _: None)
    lines = (folder / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(json.loads(line)["mc1_targets"]["labels"].index(1) == 0 for line in lines)
    assert set(built["truthfulqa_mc1"]["targets"]) == {0}


@pytest.mark.parametrize("task", ["ifeval", "leaderboard_ifeval"])
def test_ifeval_judges_without_the_network(task: str, built: dict[str, dict[str, Any]]) -> None:
    """Every IFEval instruction can be judged, those that need NLTK's sentence splitter included."""
    verdicts = [verdict["prompt_level_strict_acc"] for verdict in built[task]["judged"]]
    assert len(verdicts) == 541
    assert 0 < sum(verdicts) < 541
