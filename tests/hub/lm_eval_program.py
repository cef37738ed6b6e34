"""Program for the transformers environment: responses and scores of lm-eval itself, with its own access to the hub.

Reads {models: {label: folder or id}, tasks: {name: limit}} from standard input, and writes
{label: {task: {scores, responses}}} to the file in its argument. Imports nothing of hpcq.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import lm_eval.tasks
from lm_eval.models.huggingface import HFLM


def evaluate(model: HFLM, tasks: dict[str, int], loaded: dict[str, Any]) -> dict[str, Any]:
    """Return scores and responses of each task, and of each leaf of a group."""
    found: dict[str, Any] = {}
    for name, limit in tasks.items():
        done = lm_eval.evaluate(model, loaded[name], limit=limit)
        for task, scores in {**done.get("groups", {}), **done["results"]}.items():
            samples = done["samples"].get(task, [])
            responses = {str(one["doc_id"]): [answers[0] for answers in one["resps"]] for one in samples}
            found[task] = {"scores": scores, "responses": responses}
    return found


def main() -> None:
    """Load the tasks once, and evaluate each model."""
    datasets.disable_progress_bars()
    program_input = json.load(sys.stdin)
    tasks = program_input["tasks"]
    loaded = {name: lm_eval.tasks.TaskManager().load([name]) for name in tasks}
    output = {
        label: evaluate(HFLM(pretrained=source, dtype="float32", device="cpu", batch_size=1), tasks, loaded)
        for label, source in program_input["models"].items()
    }
    Path(sys.argv[1]).write_text(json.dumps(output, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
