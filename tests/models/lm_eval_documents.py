"""A program of the transformers environment: what lm-eval's own definitions of tasks make of folders of staged items.

Reads one JSON object from standard input, task name to {definition, folder, shots}, and prints another. Knows lm-eval
alone, so that it is a second opinion beside the product's own loader.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import lm_eval.tasks


def told(name: str, definition: str, folder: str, shots: int) -> dict[str, Any]:
    """Load the task from local files by the way that lm-eval documents, build all requests, and tell of them."""
    changes = {
        "include": str(Path(lm_eval.tasks.__file__).parent / definition),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {path.stem: str(path) for path in Path(folder).glob("*.jsonl")}},
        "num_fewshot": shots,
    }
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "task.yaml").write_text(json.dumps(changes), encoding="utf-8")
        task = lm_eval.tasks.TaskManager(include_path=place, include_defaults=False).load(name)["tasks"][name]
    task.set_fewshot_seed(1234)
    task.build_all_requests(rank=0, world_size=1)
    documents = list(task.eval_docs)
    answer = "One sentence. And MR. Smith spoke."
    return {
        "splits": {split: len(rows) for split, rows in task.dataset.items()},
        "documents": len(documents),
        "targets": [task.doc_to_target(document) for document in documents],
        "prompts": [str(instance.args[0]) for instance in task.instances],
        "judged": [task.process_results(one, [answer]) for one in documents] if name.endswith("ifeval") else [],
    }


if __name__ == "__main__":
    json.dump({name: told(name, **wanted) for name, wanted in json.load(sys.stdin).items()}, sys.stdout)
