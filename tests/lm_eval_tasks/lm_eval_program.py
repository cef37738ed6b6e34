"""Program for the transformers environment: what lm-eval itself gives, with its own access to the hub.

`layout` writes the configurations of data sets with many equal ones. Otherwise it reads {model, tasks: {name:
settings}} from standard input, and appends a line [task, {metrics, arguments: {leaf: {document: [arguments]}}}] to the
file in its argument when a task is done. Imports nothing of hpcq.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.tasks
import yaml

SHUFFLED_ANEW = {"gpqa_main_n_shot": "lm_eval.tasks.gpqa.n_shot.utils"}
"""Tasks, with their modules, that are evaluated twice: the first run scores other choices than it has asked for."""

DEFINITIONS = Path(lm_eval.tasks.__file__).parent


def layout() -> dict[str, Any]:
    """Return the configurations by repository; those of BBH with their choices."""
    bbh = {}
    for path in (DEFINITIONS / "leaderboard" / "bbh_mc").glob("*.yaml"):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "dataset_name" in config:
            bbh[config["dataset_name"]] = config["doc_to_choice"]
    return {
        "cais/mmlu": sorted(p.stem.removeprefix("mmlu_") for p in (DEFINITIONS / "mmlu/default").glob("mmlu_*.yaml")),
        "ceval/ceval-exam": sorted(
            p.stem.removeprefix("ceval-valid_") for p in (DEFINITIONS / "ceval").glob("ceval-valid_*.yaml")
        ),
        "SaylorTwift/bbh": bbh,
    }


def evaluate(model: Any, name: str, settings: dict[str, Any], manager: Any) -> dict[str, Any]:
    """Return what lm-eval gives for one task, as its command line calls it, with its default seeds."""
    max_gen_toks = settings.pop("max_gen_toks", None)
    done = lm_eval.simple_evaluate(
        model=model,
        tasks=[name],
        task_manager=manager,
        gen_kwargs={"max_gen_toks": max_gen_toks} if max_gen_toks else None,
        confirm_run_unsafe_code=True,
        **settings,
    )
    rows = {**done["results"], **done.get("groups", {})}
    return {
        "metrics": {
            task: {label: value for label, value in row.items() if isinstance(value, int | float)}
            for task, row in rows.items()
        },
        "arguments": {
            task: {str(one["doc_id"]): _arguments(one) for one in samples} for task, samples in done["samples"].items()
        },
    }


def _arguments(sample: dict[str, Any]) -> list[Any]:
    found = sample["arguments"]
    return [
        list(one.values()) if isinstance(one, dict) else one
        for one in (found.values() if isinstance(found, dict) else found)
    ]


class CodeEval:
    """The metric code_eval, which lm-eval downloads from the hub: a program passes if it ends without an error."""

    def compute(
        self, references: list[str], predictions: list[list[str]], k: list[int]
    ) -> tuple[dict[str, float], None]:
        """Return pass@1 of one program per problem."""
        done = [
            subprocess.run(
                [sys.executable, "-c", f"{programs[0]}\n{test}"], capture_output=True, check=False, timeout=60
            )
            for test, programs in zip(references, predictions, strict=True)
        ]
        assert k == [1]
        return {"pass@1": sum(one.returncode == 0 for one in done) / len(done)}, None


def main() -> None:
    """Write what the first argument asks for."""
    if sys.argv[1] == "layout":
        sys.stdout.write(json.dumps(layout()))
        return
    import datasets
    import evaluate as metrics
    from lm_eval.models.huggingface import HFLM

    datasets.disable_progress_bars()
    # Its pool of bootstrapping processes can wait for ever after a fork with threads; the digits are the same.
    os.environ["DISABLE_MULTIPROC"] = "1"
    load = metrics.load
    metrics.load = lambda path, *arguments: CodeEval() if path == "code_eval" else load(path, *arguments)
    document = json.load(sys.stdin)
    manager = lm_eval.tasks.TaskManager(include_path=document.get("include"))
    model = HFLM(pretrained=document["model"], dtype="float32", device="cpu", batch_size=1)
    for name, settings in document["tasks"].items():
        if name in SHUFFLED_ANEW:  # the next run of lm-eval
            evaluate(model, name, dict(settings), manager)
            del sys.modules[SHUFFLED_ANEW[name]]
        with Path(sys.argv[1]).open("a", encoding="utf-8") as output:
            output.write(json.dumps([name, evaluate(model, name, settings, manager)]) + "\n")


if __name__ == "__main__":
    main()
