"""Program for the vLLM environment: responses and scores of lm-eval's own vLLM backend.

Reads {model, settings, requests: [[kind, arguments]], tasks: {name: [definition, folder]}, limit, shots, new_tokens}
from standard input, and writes {answers, results} to the file in its argument. Imports nothing of hpcq.
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
# lm-eval requires the distribution vllm, but vLLM's CPU build is named vllm-cpu; vLLM recognizes it by the suffix.
importlib.metadata.version = lambda name: f"{_version('vllm-cpu')}+cpu" if name == "vllm" else _version(name)

import lm_eval  # noqa: E402
import lm_eval.tasks  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.vllm_causallms import VLLM  # noqa: E402


def answers(model: VLLM, requests: list[tuple[str, list[Any]]]) -> list[Any]:
    """lm-eval's response to each request, with one call per kind."""
    kinds = defaultdict(list)
    for number, (kind, arguments) in enumerate(requests):
        kinds[kind].append((number, Instance(kind, {}, tuple(arguments), number)))
    found: dict[int, Any] = {}
    for kind, members in kinds.items():
        responses = getattr(model, kind)([instance for _, instance in members], disable_tqdm=True)
        found |= dict(zip((number for number, _ in members), responses, strict=True))
    return [found[number] for number in range(len(requests))]


def results(model: VLLM, program_input: dict[str, Any]) -> Any:
    """Scores of whole tasks, from local documents."""
    with tempfile.TemporaryDirectory() as folder:
        for name, (definition, items) in program_input["tasks"].items():
            files = {path.stem: str(path) for path in Path(items).glob("*.jsonl")}
            original = Path(lm_eval.tasks.__file__).parent / definition
            text = f"include: {original}\ntask: {name}\ndataset_path: json\ndataset_name: null\n"
            text += f"dataset_kwargs: {json.dumps({'data_files': files})}\n"
            (Path(folder) / f"{name}.yaml").write_text(text, encoding="utf-8")
        done = lm_eval.simple_evaluate(
            model=model,
            tasks=list(program_input["tasks"]),
            task_manager=lm_eval.tasks.TaskManager(include_path=folder, include_defaults=False),
            num_fewshot=program_input["shots"],
            limit=program_input["limit"],
            gen_kwargs={"max_gen_toks": program_input["new_tokens"]},
            log_samples=False,
        )
    return done["results"]


if __name__ == "__main__":
    program_input = json.load(sys.stdin)
    backend = VLLM(
        pretrained=program_input["model"],
        distributed_executor_backend="uni",
        enforce_eager=True,
        **program_input["settings"],
    )
    output = {"answers": answers(backend, program_input["requests"]), "results": results(backend, program_input)}
    Path(sys.argv[1]).write_text(json.dumps(output), encoding="utf-8")
