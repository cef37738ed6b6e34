"""Program for the transformers environment: features and prompts of lm-eval's tasks, loaded from the hub by lm-eval.

Reads one JSON object from stdin, task name to {definition, shots}, and prints another one. It uses only lm-eval, as an
independent check of hpcq's own loader. The cache of datasets keeps the first order of choices that GPQA shuffles.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import lm_eval.tasks


def describe_task(name: str, definition: str, shots: int | None) -> dict[str, Any]:
    """Build all requests of a task, and describe its leaves."""
    folder = Path(lm_eval.tasks.__file__).parent / definition
    random.seed(0)  # the default of lm-eval's command line
    loaded = lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False).load(name)["tasks"]
    return {leaf_name: describe_leaf(leaf, shots) for leaf_name, leaf in loaded.items()}


def describe_leaf(leaf: Any, shots: int | None) -> dict[str, Any]:
    """Return the features of each split, and the arguments of each request."""
    features = {split: str(rows.features) for split, rows in leaf.dataset.items()}
    if shots is not None:
        leaf.set_config(key="num_fewshot", value=shots)
    leaf.set_fewshot_seed(1234)
    leaf.build_all_requests(rank=0, world_size=1)
    return {"features": features, "requests": [instance.args for instance in leaf.instances]}


if __name__ == "__main__":
    tasks = json.load(sys.stdin).items()
    json.dump({name: describe_task(name, **arguments) for name, arguments in tasks}, sys.stdout)
