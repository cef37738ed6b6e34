"""Cost of scoring with the vLLM backend, compared with lm-eval's own vLLM backend on the same documents.

SmolLM2-135M in float32 on one thread. A process can have one engine, so each backend has its own process. They take
turns, one group of documents after the other; the ratio of a task is the median of its groups. Times are processor
seconds, which other work on the machine affects least. lm-eval submits all requests of a group together (batch size
"auto"), which is its fastest setting. In tasks with one block of examples before all questions it answers some of them,
and its seconds are extrapolated, as in benchmarks/scoring.py.

A third process has a KV cache that is smaller than the prompts, to measure its hit rate.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parts.layouts import LETTERS, TEXTS, RequestGroup, group_by_document, lm_eval_requests, synthetic_layout
from parts.thresholds import Threshold, print_thresholds

from hpcq.catalog.packages import staged_model_path
from hpcq.core.environments import create
from hpcq.core.work_records import EvaluateWork, Model, Scheme, Variant
from hpcq.evaluate.requests import GENERATE

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
OURS, SMALL, THEIRS = "--ours", "--small", "--theirs"
MAX_LENGTH = 2_048
KV_CACHE_GIB = {OURS: 1.0, SMALL: 0.1, THEIRS: 1.0}
"""The small one is slightly larger than a prompt of MAX_LENGTH tokens; with less, vLLM does not start."""
VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}

Answer = Callable[[RequestGroup], list[Any]]


@dataclass(kw_only=True)
class Case:
    """A task to measure, and its measurements.

    Attributes:
        name: Name in the output.
        min_ratio: Ratio that it must reach.
        groups: Groups of requests; each is answered in one call.
        every: lm-eval answers every n-th document of a group.
        uses_small_cache: The case is also measured with the small KV cache.
        ours_s: Seconds of hpcq per group.
        theirs_s: Seconds of lm-eval per group.
        difference: Largest difference of log-likelihoods.
        is_equal: Both backends give the same answers (texts, greedy flags).
        prompt_tokens: Tokens of hpcq's prompts.
        cached_tokens: How many of these were read from vLLM's prefix cache.
    """

    name: str
    min_ratio: float
    groups: list[RequestGroup]
    every: int = 1
    uses_small_cache: bool = False
    ours_s: list[float] = field(default_factory=list)
    theirs_s: list[float] = field(default_factory=list)
    difference: float = 0.0
    is_equal: bool = True
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def ratio(self) -> float:
        """lm-eval's seconds divided by hpcq's."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.ours_s, self.theirs_s, strict=True))

    @property
    def sample(self) -> list[RequestGroup]:
        """The requests of each group that lm-eval answers."""
        return [list(itertools.chain(*group_by_document(group)[:: self.every])) for group in self.groups]


def cases() -> list[Case]:
    """Return the cases, with few documents each, so that the benchmark takes minutes."""
    gsm8k = lm_eval_requests("gsm8k", shots=5, documents=12, tokens=48)
    return [
        Case(
            name="ARC-Challenge, 25 shots",
            min_ratio=4.0,
            groups=lm_eval_requests("arc_challenge", shots=25, documents=2),
        ),
        Case(name="HellaSwag, 10 shots", min_ratio=4.0, groups=lm_eval_requests("hellaswag", shots=10, documents=2)),
        Case(
            name="MMLU's layout, 5 shots",
            min_ratio=10.0,
            groups=[synthetic_layout(LETTERS, choices=4, documents=60)],
            every=20,
            uses_small_cache=True,
        ),
        Case(
            name="ten choices, letters, 5 shots",
            min_ratio=20.0,
            groups=[synthetic_layout(LETTERS, choices=10, documents=60)],
            every=60,
        ),
        Case(
            name="ten choices, texts, 5 shots",
            min_ratio=20.0,
            groups=[synthetic_layout(TEXTS, choices=10, documents=40)],
            every=40,
            uses_small_cache=True,
        ),
        Case(
            name="GSM8K, 5 shots, 48 tokens",
            min_ratio=0.98,
            groups=[list(itertools.chain(*gsm8k[first : first + 3])) for first in range(0, 12, 3)],
        ),
    ]


def our_backend(kv_cache_gib: float) -> tuple[Answer, Callable[[], tuple[int, int]]]:
    """Return two functions of the loaded backend: one answers a group, one returns its prompt and cached tokens."""
    from hpcq.evaluate.backends.vllm.backend import VllmBackend

    model = str(staged_model_path(MODEL_ID))
    scheme = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
    work = EvaluateWork(
        variant=Variant(model=Model(id=MODEL_ID, path=model), scheme=scheme),
        tasks=(),
        backend="vllm",
        dtype="float32",
        options=(("max_length", MAX_LENGTH),),
        engine_options=(("kv_cache_gib", kv_cache_gib),),
        checkpoint_path=model,
        segments_path="",
    )
    made = VllmBackend(work)
    made.load()
    engine_loop = made._engine_loop  # noqa: SLF001

    def answer(group: RequestGroup) -> list[Any]:
        found = dict(made.stream([group], answered=()))
        answers = (found[request] for request in group)
        return [one.text if group[0].kind == GENERATE else (one.loglikelihood, one.is_greedy) for one in answers]

    return answer, lambda: (engine_loop.prompt_tokens, engine_loop.cached_tokens)


def their_backend(kv_cache_gib: float) -> tuple[Answer, Callable[[], tuple[int, int]]]:
    """Return the same for lm-eval's own backend, without token counts.

    lm-eval looks for a distribution named vllm, and vLLM identifies its CPU build by the suffix of the version.
    """
    version = importlib.metadata.version
    importlib.metadata.version = lambda name: f"{version('vllm-cpu')}+cpu" if name == "vllm" else version(name)
    from lm_eval.models.vllm_causallms import VLLM

    made = VLLM(
        pretrained=str(staged_model_path(MODEL_ID)),
        dtype="float32",
        max_model_len=MAX_LENGTH,
        kv_cache_memory_bytes=int(kv_cache_gib * 2**30),
        enforce_eager=True,
        distributed_executor_backend="uni",
    )

    def answer(group: RequestGroup) -> list[Any]:
        return getattr(made, group[0].kind)([request.instance for request in group], disable_tqdm=True)

    return answer, lambda: (0, 0)


def serve(name: str) -> None:
    """Read numbers of groups from stdin and write answers to the original stdout; prints of libraries go to stderr."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    make = their_backend if name == THEIRS else our_backend
    answer, tokens = make(KV_CACHE_GIB[name])
    groups = [group for case in cases() for group in (case.sample if name == THEIRS else case.groups)]
    channel.write("{}\n")
    channel.flush()
    for line in sys.stdin:
        before, start = tokens(), time.process_time()
        answers = answer(groups[int(line)])
        seconds = time.process_time() - start
        prompt, cached = (after - earlier for after, earlier in zip(tokens(), before, strict=True))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        result = {"seconds": seconds, "answers": answers, "prompt": prompt, "cached": cached, "peak": peak}
        channel.write(json.dumps(result) + "\n")
        channel.flush()


def start_process(name: str) -> subprocess.Popen[str]:
    """Start the process of one backend, and wait until it is ready."""
    quiet = subprocess.DEVNULL if not os.environ.get("HPCQ_BENCHMARK_DEBUG") else None
    process = subprocess.Popen(
        [sys.executable, __file__, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, text=True
    )
    if not process.stdout or process.stdout.readline() != "{}\n":
        sys.exit(f"{name} did not start. Set HPCQ_BENCHMARK_DEBUG=1 to see its errors.")
    return process


def run_group(process: subprocess.Popen[str], number: int) -> dict[str, Any]:
    """Let a process answer one group, and return its result."""
    if not process.stdin or not process.stdout:
        sys.exit("the process has no pipes")
    process.stdin.write(f"{number}\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def measure(case: Case, first: int, ours: subprocess.Popen[str], theirs: subprocess.Popen[str]) -> dict[str, int]:
    """Measure both backends in turns, and return their peak memory in bytes."""
    peaks = {OURS: 0, THEIRS: 0}
    for number, (group, sample) in enumerate(zip(case.groups, case.sample, strict=True), start=first):
        mine, other = run_group(ours, number), run_group(theirs, number)
        case.ours_s.append(mine["seconds"])
        case.theirs_s.append(other["seconds"] * len(group_by_document(group)) / len(group_by_document(sample)))
        case.prompt_tokens += mine["prompt"]
        case.cached_tokens += mine["cached"]
        peaks = {OURS: mine["peak"], THEIRS: other["peak"]}
        answers = dict(zip(group, mine["answers"], strict=True))
        for request, answer in zip(sample, other["answers"], strict=True):
            if request.kind == GENERATE:
                case.is_equal &= answers[request] == answer
                continue
            case.difference = max(case.difference, abs(answers[request][0] - answer[0]))
            case.is_equal &= answers[request][1] == answer[1]
    return peaks


def main(names: Sequence[str]) -> None:
    """Measure and print the cases whose names start with one of `names`; all if there are none."""
    ours, theirs = start_process(OURS), start_process(THEIRS)
    print("prompts: tokens of hpcq's prompts; hits: share of them that was in vLLM's prefix cache")
    print(f"{'task':31}{'prompts':>8}{'hits':>7}{'hpcq s':>8}{'lm-eval s':>10}{'ratio':>7}  equal")
    measured, small_cases = [], []
    peaks: dict[str, int] = {}
    first = 0
    for case in cases():
        if not names or case.name.startswith(tuple(names)):
            peaks = measure(case, first, ours, theirs)
            measured.append(case)
            small_cases += [
                (case, number) for number in range(first, first + len(case.groups)) if case.uses_small_cache
            ]
            tokens = f"{case.prompt_tokens:8}{case.cached_tokens / max(1, case.prompt_tokens):7.1%}"
            seconds = f"{sum(case.ours_s):8.1f}{sum(case.theirs_s):10.1f}"
            agreement = f"{case.is_equal}, |Δ| {case.difference:.1e}"
            print(f"{case.name:31}{tokens}{seconds}{case.ratio:7.2f}  {agreement}", flush=True)
        first += len(case.groups)
    for process in (ours, theirs):
        process.communicate(timeout=60)
    if not measured:
        sys.exit("No case has a name that starts so.")
    for name, peak in peaks.items():
        print(f"peak memory of {name.strip('-')}, {KV_CACHE_GIB[name]:g} GiB of it KV cache: {peak / 2**30:.2f} GiB")
    if small_cases:
        small = start_process(SMALL)
        for case, number in small_cases:
            result = run_group(small, number)
            print(
                f"with {KV_CACHE_GIB[SMALL]:g} GiB of KV cache: {case.name}: {result['prompt']} prompt tokens,"
                f" {result['cached'] / result['prompt']:.1%} hits, {result['seconds']:.1f} s",
                flush=True,
            )
        small.communicate(timeout=60)
    thresholds = [
        Threshold(name=f"vLLM, {case.name}", measured=case.ratio, limit=case.min_ratio, unit=" ×") for case in measured
    ]
    thresholds.append(
        Threshold(
            name="vLLM, peak memory beyond lm-eval's, for the KV cache budget",
            measured=(peaks[OURS] - peaks[THEIRS]) / 2**30,
            limit=KV_CACHE_GIB[OURS],
            is_maximum=True,
            unit=" GiB",
        )
    )
    print_thresholds(thresholds)


if __name__ == "__main__":
    python = create("vllm-cpu")
    if Path(sys.executable) != python:
        checkout = str(Path(__file__).resolve().parents[1])
        variables = {**os.environ, **VARIABLES, "PYTHONPATH": checkout}
        sys.exit(subprocess.run([str(python), __file__, *sys.argv[1:]], env=variables, check=False).returncode)
    if sys.argv[1:2] in ([OURS], [SMALL], [THEIRS]):
        serve(sys.argv[1])
    else:
        main(sys.argv[1:])
