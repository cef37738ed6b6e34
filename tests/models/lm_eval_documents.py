"""Program for the transformers environment: documents and prompts of lm-eval's own definitions on staged items.

Reads one JSON object from stdin, task name to {definition, folder, shots}, and prints another one. It uses only
lm-eval, as an independent check of hpcq's own loader.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import lm_eval.tasks


def describe_task(name: str, definition: str, folder: str, shots: int) -> dict[str, Any]:
    """Load the task from local files in the way that lm-eval documents, build all requests, and describe them."""
    changes = {
        "include": str(Path(lm_eval.tasks.__file__).parent / definition),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {path.stem: str(path) for path in Path(folder).glob("*.jsonl")}},
        "num_fewshot": shots,
    }
    with tempfile.TemporaryDirectory() as definitions:
        (Path(definitions) / "task.yaml").write_text(json.dumps(changes), encoding="utf-8")
        task = lm_eval.tasks.TaskManager(include_path=definitions, include_defaults=False).load(name)["tasks"][name]
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
    tasks = json.load(sys.stdin).items()
    json.dump({name: describe_task(name, **arguments) for name, arguments in tasks}, sys.stdout)
