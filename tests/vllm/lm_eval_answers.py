"""A program of the vLLM environment: what lm-eval's own vLLM back end answers, and the scores that it computes.

Reads {model, settings, requests: [[kind, arguments]], tasks: {name: [definition, folder]}, limit, shots, new_tokens}
from standard input, and writes {answers, results} to the file that is named. Knows lm-eval and vLLM alone.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}

_version = importlib.metadata.version
# lm-eval asks for the distribution vllm, which vLLM's build for CPUs is not; vLLM knows it by its version's end.
importlib.metadata.version = lambda name: f"{_version('vllm-cpu')}+cpu" if name == "vllm" else _version(name)

import lm_eval  # noqa: E402
import lm_eval.tasks  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.vllm_causallms import VLLM  # noqa: E402


def answers(model: VLLM, requests: list[tuple[str, list[Any]]]) -> list[Any]:
    """lm-eval's answer to each request, all of one kind in one call."""
    kinds = defaultdict(list)
    for number, (kind, arguments) in enumerate(requests):
        kinds[kind].append((number, Instance(kind, {}, tuple(arguments), number)))
    found: dict[int, Any] = {}
    for kind, members in kinds.items():
        said = getattr(model, kind)([instance for _, instance in members], disable_tqdm=True)
        found |= dict(zip((number for number, _ in members), said, strict=True))
    return [found[number] for number in range(len(requests))]


def results(model: VLLM, asked: dict[str, Any]) -> Any:
    """The scores of whole tasks, from local documents."""
    with tempfile.TemporaryDirectory() as folder:
        for name, (definition, items) in asked["tasks"].items():
            files = {path.stem: str(path) for path in Path(items).glob("*.jsonl")}
            original = Path(lm_eval.tasks.__file__).parent / definition
            text = f"include: {original}\ntask: {name}\ndataset_path: json\ndataset_name: null\n"
            text += f"dataset_kwargs: {json.dumps({'data_files': files})}\n"
            (Path(folder) / f"{name}.yaml").write_text(text, encoding="utf-8")
        done = lm_eval.simple_evaluate(
            model=model,
            tasks=list(asked["tasks"]),
            task_manager=lm_eval.tasks.TaskManager(include_path=folder, include_defaults=False),
            num_fewshot=asked["shots"],
            limit=asked["limit"],
            gen_kwargs={"max_gen_toks": asked["new_tokens"]},
            log_samples=False,
        )
    return done["results"]


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    theirs = VLLM(
        pretrained=asked["model"], distributed_executor_backend="uni", enforce_eager=True, **asked["settings"]
    )
    told = {"answers": answers(theirs, asked["requests"]), "results": results(theirs, asked)}
    Path(sys.argv[1]).write_text(json.dumps(told), encoding="utf-8")
