"""What sharing prefixes saves, counted without a model: tokens asked for, computed by lm-eval, computed by hpcq.

Real items and the real model's tokenizer, as `hpcq stage manifests/quickstart.toml` brings them; other tasks only where
they are staged, and the layouts of MMLU and MMLU-Pro with ARC's questions (parts/layouts.py). Runs itself in the
environment that has lm-eval.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parts.bars import Bar, tell
from parts.layouts import LETTERS, TEXTS, WORKED, laid_out

from hpcq.core import environments
from hpcq.core.cache import cache_folder
from hpcq.core.work import Shard, Task
from hpcq.evaluate.prefix.batching import Limits
from hpcq.evaluate.prefix.chunks import Piece, cut, deal
from hpcq.evaluate.prefix.planner import schedule
from hpcq.evaluate.prefix.radix_tree import Ask, build
from hpcq.evaluate.prefix.token_counts import Counts, count
from hpcq.evaluate.prefix.tokenization import asks_of, encode_pairs
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
BALANCE_BAR = 1.05
LAID_OUT = 300
"""Questions of a layout, about as many as a subject of MMLU has."""
LIMITS = {"a pass costs 16 tokens": Limits(pass_tokens=16), "a pass costs 512": Limits(pass_tokens=512)}


def asks(requests: Sequence[Request], tokenizer: Any) -> list[Ask]:
    """The asks of `requests`; a prompt to generate from is read like a context with one token to score."""

    def encode(texts: Sequence[str], *, plain: bool) -> list[list[int]]:
        return tokenizer(list(texts), **({"add_special_tokens": False} if plain else {}))["input_ids"]

    if requests[0].kind == GENERATE:
        prompts = encode([request.arguments[0] for request in requests], plain=False)
        return asks_of([(prompt, [0]) for prompt in prompts], MAX_LENGTH)
    pairs = [request.arguments for request in requests]
    return asks_of(encode_pairs(pairs, encode, tokenizer.bos_token_id), MAX_LENGTH)


def distinct(asked: Sequence[Ask]) -> int:
    """Tokens that must be computed at least: the distinct beginnings."""
    tree = build(asked)
    standing = [*tree.roots, *(child for node in tree.nodes for child in node.children)]
    return sum(len(tree.tokens(node)) for node in standing)


def balance(pieces: Sequence[Piece], computed: dict[RequestKey, int]) -> float:
    """The slowest of eight shards over the mean, in computed tokens, when dealt by bytes of text."""
    loads = [
        sum(computed[piece.requests[0].key] for piece in deal(pieces, Shard(index=index, count=SHARDS)))
        for index in range(SHARDS)
    ]
    return max(loads) * SHARDS / sum(loads)


def measure(name: str, requests: Sequence[Request], tokenizer: Any) -> tuple[list[Piece], dict[RequestKey, int]]:
    """Print the lines of one task; its pieces, and what each of them computes, by its first request."""
    pieces = cut(requests)
    asked = [asks(piece.requests, tokenizer) for piece in pieces]
    least = distinct([one for part in asked for one in part])
    in_pieces = sum(map(distinct, asked))
    computed = {}
    for words, limits in LIMITS.items():
        began = time.process_time()
        plans = [schedule(part, limits) for part in asked]
        seconds = time.process_time() - began
        counts = sum((count(part, plan) for part, plan in zip(asked, plans, strict=True)), start=Counts())
        if not computed:
            computed = {piece.requests[0].key: plan.tokens for piece, plan in zip(pieces, plans, strict=True)}
            print(
                f"{name:22}{counts.requests:9,}{counts.asked:12,}{counts.lm_eval:12,}{counts.computed:12,}"
                f"{counts.ratio:8.2f}{counts.lm_eval / counts.computed:9.2f}{len(pieces):8}"
                f"{in_pieces / least - 1:10.1%}{balance(pieces, computed):9.3f}"
            )
        print(
            f"    {words}: {counts.computed:,} tokens in {counts.passes:,} passes, {counts.padded:,} with padding,"
            f" planned in {seconds:.1f} s"
        )
    if requests[0].kind == GENERATE:
        print(f"    its prompts have {least:,} distinct tokens in all")
    return pieces, computed


def main() -> None:
    """Count every task's tokens, and how evenly eight shards share all of them."""
    if importlib.util.find_spec("lm_eval") is None:
        interpreter = environments.interpreter("transformers")
        root = str(Path(__file__).resolve().parents[1])
        quietly = {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}
        variables = {**os.environ, **quietly, "PYTHONPATH": root}
        raise SystemExit(subprocess.run([interpreter, __file__], env=variables, check=False).returncode)
    if not MODEL.is_dir():
        raise SystemExit(f"{MODEL} is not there: bring it with `hpcq stage manifests/quickstart.toml`.")
    from transformers import AutoTokenizer

    from hpcq.evaluate.tasks import build_tasks

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    data = cache_folder() / "data"
    tasks = {}
    for name, shots in TASKS.items():
        folder = data / name.removeprefix("leaderboard_")
        if not folder.is_dir():
            print(f"{name} is left out: its items are not staged.")
            continue
        (built,) = build_tasks([Task(name=name, num_fewshot=shots or None, data_path=str(folder))])
        tasks[f"{name}, {shots}-shot"] = built.requests()
    for kind, choices in ((LETTERS, 4), (LETTERS, 10), (WORKED, 10), (TEXTS, 10)):
        tasks[f"{choices} {kind}, 5-shot"] = laid_out(kind, choices=choices, documents=LAID_OUT)
    print(f"{'tokens':22}{'requests':>9}{'asked':>12}{'lm-eval HF':>12}{'computed':>12}", end="")
    print(f"{'asked/':>8}{'lm-eval/':>9}{'pieces':>8}{'again':>10}{'slowest':>9}")
    pieces: list[Piece] = []
    computed: dict[RequestKey, int] = {}
    for name, requests in tasks.items():
        found, costs = measure(name, requests, tokenizer)
        if requests[0].kind == LOGLIKELIHOOD:
            pieces += found
            computed |= costs
    name = f"slowest of {SHARDS} shards over the mean, computed tokens, all log-likelihoods together"
    tell([Bar(name=name, measured=balance(pieces, computed), bar=BALANCE_BAR, is_most=True)])


if __name__ == "__main__":
    main()
