"""HumanEval, scored by lm-eval's own definition with hpcq's sandbox."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcq.core.errors import UserInputError
from hpcq.core.work_records import Task
from hpcq.evaluate.lm_eval_tasks import build_tasks, load_definition
from hpcq.evaluate.scoring import main_metrics, score
from hpcq.evaluate.task_size import count_requests
from hpcq.store import Response

ITEMS = [
    {
        "task_id": f"HumanEval/{number}",
        "prompt": f"def add{number}(a, b):\n",
        "entry_point": f"add{number}",
        "canonical_solution": "    return a + b\n",
        "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
    }
    for number in range(3)
]


@pytest.fixture
def items(tmp_path: Path) -> str:
    """Return a folder with items in the schema of HumanEval."""
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    return str(tmp_path)


def test_humaneval_counts_the_programs_that_pass(items: str) -> None:
    """One of three passes; one would end the process with status 0 before its test."""
    (built,) = build_tasks([Task(name="humaneval", data_path=items, runs_code=True)])
    texts = ["    return a + b\n", "    return a - b\n", "    import os\n    os._exit(0)\n"]
    answers = {request.key: Response(text=texts[request.key.doc_id]) for request in built.requests()}
    scored = score([built], answers)
    found = {(one.metric, one.filter): one.value for one in scored.scores}
    assert found == {("pass@1", "create_test"): pytest.approx(1 / 3)}
    assert main_metrics([built])["humaneval"] == {
        "metric": "pass@1",
        "filter": "create_test",
        "lower_is_better": False,
    }


def test_its_size_is_counted_without_consent(items: str) -> None:
    """Staging runs no code that a model wrote; HumanEval could not be staged from the hub."""
    task = Task(name="humaneval", data_path=items)
    size = count_requests(task, load_definition(task)["tasks"])
    assert (size.documents, size.requests) == (3, 3)


def test_without_consent_nothing_is_built(items: str) -> None:
    """Also if a manifest of another version lets it pass."""
    with pytest.raises(UserInputError, match=r"humaneval runs code .*: set tasks\.allow_code_execution"):
        build_tasks([Task(name="humaneval", data_path=items)])
