"""Tokens that prefix sharing saves, counted without a model: requested, computed by lm-eval, computed by hpcq.

Uses the data sets and the tokenizer that `hpcq stage manifests/quickstart.toml` stages; other tasks only if they are
staged, and the layouts of MMLU and MMLU-Pro with ARC's questions (parts/layouts.py). Restarts itself in the environment
that has lm-eval.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parts.layouts import LETTERS, TEXTS, WORKED, synthetic_layout
from parts.thresholds import Threshold, print_thresholds

from hpcq.core import environments
from hpcq.core.paths import cache_folder
from hpcq.core.prompt_settings import Prompt
from hpcq.core.work_records import EvaluateWork, Model, Scheme, Shard, Task, Variant
from hpcq.evaluate.prefix.batching import Budget
from hpcq.evaluate.prefix.planner import plan_passes
from hpcq.evaluate.prefix.radix_tree import TokenRequest, build_tree
from hpcq.evaluate.prefix.request_chunks import Chunk, balanced_part, partition
from hpcq.evaluate.prefix.token_counts import TokenCounts, count_tokens
from hpcq.evaluate.prefix.tokenization import encode_pairs, token_requests
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD, Request
from hpcq.store import RequestKey

MODEL = cache_folder() / "models" / "smollm2-135m-instruct"
TASKS = {
    "arc_challenge": 25,
    "hellaswag": 10,
    "winogrande": 5,
    "truthfulqa_mc1": 0,
    "gsm8k": 5,
    "leaderboard_ifeval": 0,
}
MAX_LENGTH = 8192
SHARDS = 8
MAX_IMBALANCE = 1.05
LAYOUT_DOCUMENTS = 300
"""Questions of a layout, about as many as in a subject of MMLU."""
BUDGETS = {f"overhead of {tokens} tokens per pass": Budget(pass_overhead_tokens=tokens) for tokens in (16, 512)}


def tokenize(requests: Sequence[Request], tokenizer: Any) -> list[TokenRequest]:
    """Return the token ids of `requests`. A generation prompt counts as a context with one token to score."""

    def encode(texts: Sequence[str], *, without_special_tokens: bool) -> list[list[int]]:
        options = {"add_special_tokens": False} if without_special_tokens else {}
        return tokenizer(list(texts), **options)["input_ids"]

    if requests[0].kind == GENERATE:
        prompts = encode([request.arguments[0] for request in requests], without_special_tokens=False)
        return token_requests([(prompt, [0]) for prompt in prompts], MAX_LENGTH)
    pairs = [request.arguments for request in requests]
    return token_requests(encode_pairs(pairs, encode, tokenizer.bos_token_id), MAX_LENGTH)


def count_distinct(requests: Sequence[TokenRequest]) -> int:
    """Return the minimum number of tokens to compute: those of distinct prefixes."""
    tree = build_tree(requests)
    nodes = [*tree.roots, *(child for node in tree.nodes for child in node.children)]
    return sum(len(tree.tokens(node)) for node in nodes)


def imbalance(chunks: Sequence[Chunk], computed: dict[RequestKey, int]) -> float:
    """Return the computed tokens of the slowest of eight shards divided by the mean, balanced by bytes of text."""
    loads = [
        sum(computed[chunk.requests[0].key] for chunk in balanced_part(chunks, Shard(index=index, count=SHARDS)))
        for index in range(SHARDS)
    ]
    return max(loads) * SHARDS / sum(loads)


def measure(name: str, requests: Sequence[Request], tokenizer: Any) -> tuple[list[Chunk], dict[RequestKey, int]]:
    """Print the lines of one task.

    Returns:
        Its chunks, and the tokens that each of them computes, by its first request.
    """
    chunks = partition(requests)
    tokenized = [tokenize(chunk.requests, tokenizer) for chunk in chunks]
    minimum = count_distinct([one for part in tokenized for one in part])
    in_chunks = sum(map(count_distinct, tokenized))
    computed = {}
    for name_of_budget, budget in BUDGETS.items():
        start = time.process_time()
        plans = [plan_passes(part, budget) for part in tokenized]
        seconds = time.process_time() - start
        counts = sum(
            (count_tokens(part, plan) for part, plan in zip(tokenized, plans, strict=True)), start=TokenCounts()
        )
        if not computed:
            computed = {chunk.requests[0].key: plan.num_tokens for chunk, plan in zip(chunks, plans, strict=True)}
            print(
                f"{name:22}{counts.requests:9,}{counts.requested:12,}{counts.lm_eval:12,}{counts.computed:12,}"
                f"{counts.ratio:8.2f}{counts.lm_eval / counts.computed:9.2f}{len(chunks):8}"
                f"{in_chunks / minimum - 1:10.1%}{imbalance(chunks, computed):10.3f}"
            )
        print(
            f"    {name_of_budget}: {counts.computed:,} tokens in {counts.passes:,} passes,"
            f" {counts.padded:,} with padding, planned in {seconds:.1f} s"
        )
    if requests[0].kind == GENERATE:
        print(f"    its prompts have {minimum:,} distinct tokens")
    return chunks, computed


def _work() -> EvaluateWork:
    """Return an evaluation of the model, for its chat template."""
    scheme = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
    return EvaluateWork(
        variant=Variant(model=Model(id=MODEL.name, path=str(MODEL)), scheme=scheme),
        tasks=(),
        backend="accelerate",
        dtype="float32",
        checkpoint_path=str(MODEL),
        segments_path="",
    )


def main() -> None:
    """Count the tokens of every task, and the imbalance of eight shards over all of them."""
    if importlib.util.find_spec("lm_eval") is None:
        interpreter = environments.interpreter("transformers")
        root = str(Path(__file__).resolve().parents[1])
        quiet = {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}
        variables = {**os.environ, **quiet, "PYTHONPATH": root}
        raise SystemExit(subprocess.run([interpreter, __file__], env=variables, check=False).returncode)
    if not MODEL.is_dir():
        raise SystemExit(f"{MODEL} does not exist. Create it with `hpcq stage manifests/quickstart.toml`.")
    from transformers import AutoTokenizer

    from hpcq.evaluate.chat_templates import read_chat_template
    from hpcq.evaluate.lm_eval_tasks import build_tasks

    tokenizer, chat = AutoTokenizer.from_pretrained(MODEL), read_chat_template(_work())
    data = cache_folder() / "data"
    tasks, chats = {}, {}
    for name, shots in TASKS.items():
        folder = data / name.removeprefix("leaderboard_")
        if not folder.is_dir():
            print(f"{name} is skipped: its data set is not staged.")
            continue
        (built,) = build_tasks([Task(name=name, num_fewshot=shots or None, data_path=str(folder))])
        tasks[f"{name}, {shots}-shot"] = built.requests()
        if shots:
            turns = Prompt(chat_template=True, fewshot_as_multiturn=True)
            [built] = build_tasks([Task(name=name, num_fewshot=shots, data_path=str(folder), prompt=turns)], chat)
            chats[f"{name}, {shots} turns"] = built.requests()
    for kind, choices in ((LETTERS, 4), (LETTERS, 10), (WORKED, 10), (TEXTS, 10)):
        tasks[f"{choices} {kind}, 5-shot"] = synthetic_layout(kind, choices=choices, documents=LAYOUT_DOCUMENTS)
    print(f"{'tokens':22}{'requests':>9}{'requested':>12}{'lm-eval HF':>12}{'computed':>12}", end="")
    print(f"{'req./':>8}{'lm-eval/':>9}{'chunks':>8}{'repeated':>10}{'imbalance':>10}")
    chunks: list[Chunk] = []
    computed: dict[RequestKey, int] = {}
    for name, requests in tasks.items():
        found, costs = measure(name, requests, tokenizer)
        if requests[0].kind == LOGLIKELIHOOD:
            chunks += found
            computed |= costs
    for name, requests in chats.items():
        measure(name, requests, tokenizer)
    name = f"slowest of {SHARDS} shards / mean, computed tokens of all log-likelihood tasks"
    print_thresholds([Threshold(name=name, measured=imbalance(chunks, computed), limit=MAX_IMBALANCE, is_maximum=True)])


if __name__ == "__main__":
    main()
