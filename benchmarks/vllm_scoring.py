"""What scoring costs with vLLM on the real model: hpcq's back end beside lm-eval's own, on the same items.

SmolLM2-135M in fp32 on one thread. A process can have one engine, so each back end has a process of its own, and they
take turns, one group of documents after the other; the ratio of a task is the median of its groups'. Seconds are the
processor's, which other work on the machine changes least. lm-eval hands vLLM all requests of a group at once (its
batch size "auto"), which is the fastest that it has. Where one block of examples stands before all questions of a
task, it answers some of them, and its seconds count for all, as in benchmarks/scoring.py.

A third process has a cache that is smaller than the work, to tell how often it still hits.
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

from parts.bars import Bar, tell
from parts.layouts import LETTERS, TEXTS, Group, by_document, laid_out, real

from hpcq.catalog.packages import staged_model
from hpcq.core.environments import create
from hpcq.core.work import EvaluateWork, Model, Scheme, Variant
from hpcq.evaluate.requests import GENERATE

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
OURS, SMALL, THEIRS = "--ours", "--small", "--theirs"
MAX_LENGTH = 2_048
KV_CACHE_GIB = {OURS: 1.0, SMALL: 0.1, THEIRS: 1.0}
"""Of the small one: little more than a prompt of MAX_LENGTH tokens needs, or vLLM does not start."""
SURROUNDINGS = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}

Answer = Callable[[Group], list[Any]]


@dataclass(kw_only=True)
class Case:
    """A task. bar: what its ratio is to reach. groups: requests asked at once. every: which documents lm-eval answers.

    Tokens are those of our prompts. is_tight: whether it is asked with the small cache, too.
    """

    name: str
    bar: float
    groups: list[Group]
    every: int = 1
    is_tight: bool = False
    ours_s: list[float] = field(default_factory=list)
    theirs_s: list[float] = field(default_factory=list)
    difference: float = 0.0
    is_equal: bool = True
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def ratio(self) -> float:
        """Of lm-eval's seconds over ours."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.ours_s, self.theirs_s, strict=True))

    @property
    def sample(self) -> list[Group]:
        """What lm-eval answers of each group."""
        return [list(itertools.chain(*by_document(group)[:: self.every])) for group in self.groups]


def cases() -> list[Case]:
    """All that is measured: few documents each, so that the whole takes minutes."""
    gsm8k = real("gsm8k", shots=5, documents=12, tokens=48)
    return [
        Case(name="ARC-Challenge, 25 shots", bar=4.0, groups=real("arc_challenge", shots=25, documents=2)),
        Case(name="HellaSwag, 10 shots", bar=4.0, groups=real("hellaswag", shots=10, documents=2)),
        Case(
            name="MMLU's layout, 5 shots",
            bar=10.0,
            groups=[laid_out(LETTERS, choices=4, documents=60)],
            every=20,
            is_tight=True,
        ),
        Case(
            name="ten choices, letters, 5 shots",
            bar=20.0,
            groups=[laid_out(LETTERS, choices=10, documents=60)],
            every=60,
        ),
        Case(
            name="ten choices, texts, 5 shots",
            bar=20.0,
            groups=[laid_out(TEXTS, choices=10, documents=40)],
            every=40,
            is_tight=True,
        ),
        Case(
            name="GSM8K, 5 shots, 48 tokens",
            bar=0.98,
            groups=[list(itertools.chain(*gsm8k[first : first + 3])) for first in range(0, 12, 3)],
        ),
    ]


def our_backend(kv_cache_gib: float) -> tuple[Answer, Callable[[], tuple[int, int]]]:
    """The back end as a work makes it, loaded: how it answers, and tokens of its prompts: all, and from the cache."""
    from hpcq.evaluate.backends.vllm.backend import VllmBackend

    model = str(staged_model(MODEL_ID))
    scheme = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
    work = EvaluateWork(
        variant=Variant(model=Model(id=MODEL_ID, path=model), scheme=scheme),
        tasks=(),
        backend="vllm",
        dtype="float32",
        options=(("max_length", MAX_LENGTH),),
        engine=(("kv_cache_gib", kv_cache_gib),),
        checkpoint_path=model,
        segments_path="",
    )
    made = VllmBackend(work)
    made.load()
    flow = made._flow  # noqa: SLF001

    def answer(group: Group) -> list[Any]:
        found = dict(made.stream([group], known=()))
        answers = (found[request] for request in group)
        return [one.text if group[0].kind == GENERATE else (one.loglikelihood, one.is_greedy) for one in answers]

    return answer, lambda: (flow.prompt_tokens, flow.cached_tokens)


def their_backend(kv_cache_gib: float) -> tuple[Answer, Callable[[], tuple[int, int]]]:
    """lm-eval's own, which asks for the distribution vllm; vLLM knows its build for CPUs by its version's end."""
    found = importlib.metadata.version
    importlib.metadata.version = lambda name: f"{found('vllm-cpu')}+cpu" if name == "vllm" else found(name)
    from lm_eval.models.vllm_causallms import VLLM

    made = VLLM(
        pretrained=str(staged_model(MODEL_ID)),
        dtype="float32",
        max_model_len=MAX_LENGTH,
        kv_cache_memory_bytes=int(kv_cache_gib * 2**30),
        enforce_eager=True,
        distributed_executor_backend="uni",
    )

    def answer(group: Group) -> list[Any]:
        return getattr(made, group[0].kind)([request.instance for request in group], disable_tqdm=True)

    return answer, lambda: (0, 0)


def serve(name: str) -> None:
    """Answer the groups whose numbers come in, on what was standard output; libraries may print what they like."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    make = their_backend if name == THEIRS else our_backend
    answer, tokens = make(KV_CACHE_GIB[name])
    groups = [group for case in cases() for group in (case.sample if name == THEIRS else case.groups)]
    channel.write("{}\n")
    channel.flush()
    for line in sys.stdin:
        before, began = tokens(), time.process_time()
        answers = answer(groups[int(line)])
        seconds = time.process_time() - began
        prompt, cached = (after - earlier for after, earlier in zip(tokens(), before, strict=True))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        told = {"seconds": seconds, "answers": answers, "prompt": prompt, "cached": cached, "peak": peak}
        channel.write(json.dumps(told) + "\n")
        channel.flush()


def started(name: str) -> subprocess.Popen[str]:
    """A process of one back end, ready."""
    quiet = subprocess.DEVNULL if not os.environ.get("HPCQ_BENCHMARK_DEBUG") else None
    process = subprocess.Popen(
        [sys.executable, __file__, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, text=True
    )
    if not process.stdout or process.stdout.readline() != "{}\n":
        sys.exit(f"{name} did not start; HPCQ_BENCHMARK_DEBUG=1 shows why.")
    return process


def ask(process: subprocess.Popen[str], number: int) -> dict[str, Any]:
    """What it says to one group."""
    if not process.stdin or not process.stdout:
        sys.exit("A process without pipes.")
    process.stdin.write(f"{number}\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def measure(case: Case, first: int, ours: subprocess.Popen[str], theirs: subprocess.Popen[str]) -> dict[str, int]:
    """Let the two take turns; their peaks of memory in bytes."""
    peaks = {OURS: 0, THEIRS: 0}
    for number, (group, sample) in enumerate(zip(case.groups, case.sample, strict=True), start=first):
        mine, other = ask(ours, number), ask(theirs, number)
        case.ours_s.append(mine["seconds"])
        case.theirs_s.append(other["seconds"] * len(by_document(group)) / len(by_document(sample)))
        case.prompt_tokens += mine["prompt"]
        case.cached_tokens += mine["cached"]
        peaks = {OURS: mine["peak"], THEIRS: other["peak"]}
        told = dict(zip(group, mine["answers"], strict=True))
        for request, answer in zip(sample, other["answers"], strict=True):
            if request.kind == GENERATE:
                case.is_equal &= told[request] == answer
                continue
            case.difference = max(case.difference, abs(told[request][0] - answer[0]))
            case.is_equal &= told[request][1] == answer[1]
    return peaks


def main(names: Sequence[str]) -> None:
    """Measure and print the table. names: beginnings of the cases to measure; all, if none is given."""
    ours, theirs = started(OURS), started(THEIRS)
    print("prompts: tokens of the prompts that hpcq makes of the requests; hits: those that came from vLLM's cache")
    print(f"{'task':31}{'prompts':>8}{'hits':>7}{'hpcq s':>8}{'lm-eval s':>10}{'ratio':>7}  equal")
    measured, tight = [], []
    peaks: dict[str, int] = {}
    first = 0
    for case in cases():
        if not names or case.name.startswith(tuple(names)):
            peaks = measure(case, first, ours, theirs)
            measured.append(case)
            tight += [(case, number) for number in range(first, first + len(case.groups)) if case.is_tight]
            tokens = f"{case.prompt_tokens:8}{case.cached_tokens / max(1, case.prompt_tokens):7.1%}"
            seconds = f"{sum(case.ours_s):8.1f}{sum(case.theirs_s):10.1f}"
            agreement = f"{case.is_equal}, |Δ| {case.difference:.1e}"
            print(f"{case.name:31}{tokens}{seconds}{case.ratio:7.2f}  {agreement}", flush=True)
        first += len(case.groups)
    for process in (ours, theirs):
        process.communicate(timeout=60)
    if not measured:
        sys.exit("No case's name begins so.")
    for name, peak in peaks.items():
        print(f"peak memory of {name.strip('-')}, {KV_CACHE_GIB[name]:g} GiB of it for KV: {peak / 2**30:.2f} GiB")
    if tight:
        small = started(SMALL)
        for case, number in tight:
            told = ask(small, number)
            print(
                f"with {KV_CACHE_GIB[SMALL]:g} GiB for KV: {case.name}: {told['prompt']} tokens of prompts,"
                f" {told['cached'] / told['prompt']:.1%} hits, {told['seconds']:.1f} s",
                flush=True,
            )
        small.communicate(timeout=60)
    bars = [Bar(name=f"vLLM, {case.name}", measured=case.ratio, bar=case.bar, unit=" ×") for case in measured]
    bars.append(
        Bar(
            name="vLLM, peak memory beyond lm-eval's, for the budget for KV",
            measured=(peaks[OURS] - peaks[THEIRS]) / 2**30,
            bar=KV_CACHE_GIB[OURS],
            is_most=True,
            unit=" GiB",
        )
    )
    tell(bars)


if __name__ == "__main__":
    python = create("vllm-cpu")
    if Path(sys.executable) != python:
        checkout = str(Path(__file__).resolve().parents[1])
        surroundings = {**os.environ, **SURROUNDINGS, "PYTHONPATH": checkout}
        sys.exit(subprocess.run([str(python), __file__, *sys.argv[1:]], env=surroundings, check=False).returncode)
    if sys.argv[1:2] in ([OURS], [SMALL], [THEIRS]):
        serve(sys.argv[1])
    else:
        main(sys.argv[1:])
