"""What scoring costs with vLLM on the real model: hpcq's back end beside lm-eval's own, on the same items.

SmolLM2-135M in fp32 on one thread. A process can have one engine, so each back end has a process of its own, and they
take turns, one group of documents after the other; the ratio of a task is the median of its groups'. Seconds are the
processor's, which other work on the machine changes least. lm-eval hands vLLM all requests of a group at once (its
batch size "auto"), which is the fastest that it has.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scoring import laid_out, real

from hpcq.catalog.packages import staged_model
from hpcq.environments import create
from hpcq.evaluate.requests import GENERATE, Request
from hpcq.units import EvaluateWork, Model, Scheme, Variant

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
OURS, THEIRS = "--ours", "--theirs"
MAX_LENGTH, KV_CACHE_BYTES = 4096, 2**30
SURROUNDINGS = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}

Group = list[Request]
Answer = Callable[[Group], list[Any]]


@dataclass(kw_only=True)
class Case:
    """A task. bar: what its ratio is to reach. groups: requests asked at once. Tokens are those of our prompts."""

    name: str
    bar: float
    groups: list[Group]
    ours_s: list[float] = field(default_factory=list)
    theirs_s: list[float] = field(default_factory=list)
    difference: float = 0.0
    is_equal: bool = True
    prompt_tokens: int = 0
    computed_tokens: int = 0

    @property
    def ratio(self) -> float:
        """Of lm-eval's seconds over ours."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.ours_s, self.theirs_s, strict=True))


def cases() -> list[Case]:
    """All that is measured: few documents each, so that the whole takes minutes."""
    return [
        Case(name="ARC-Challenge, 25 shots", bar=4.0, groups=real("arc_challenge", shots=25, documents=2)),
        Case(name="HellaSwag, 10 shots", bar=4.0, groups=real("hellaswag", shots=10, documents=3)),
        Case(name="MMLU's layout, 5 shots", bar=10.0, groups=laid_out("letters", choices=4, documents=10)),
        Case(name="ten choices, letters, 5 shots", bar=20.0, groups=laid_out("letters", choices=10, documents=6)),
        Case(
            name="GSM8K, 5 shots, 48 tokens",
            bar=0.98,
            groups=[list(itertools.chain(*real("gsm8k", shots=5, documents=3, tokens=48)))],
        ),
    ]


def our_backend() -> tuple[Answer, Callable[[], dict[str, int]]]:
    """The back end as a work makes it, loaded: how it answers, and its counts of tokens."""
    from hpcq.evaluate.vllm import VllmBackend

    model = str(staged_model(MODEL_ID))
    scheme = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
    work = EvaluateWork(
        variant=Variant(model=Model(id=MODEL_ID, path=model), scheme=scheme),
        tasks=(),
        backend="vllm",
        dtype="float32",
        options=(("max_length", MAX_LENGTH), ("kv_cache_memory_bytes", KV_CACHE_BYTES)),
        checkpoint_path=model,
        segments_path="",
    )
    made = VllmBackend(work)
    made.load()

    def answer(group: Group) -> list[Any]:
        return [
            one.text if group[0].kind == GENERATE else (one.loglikelihood, one.is_greedy) for one in made.answer(group)
        ]

    return answer, made.counts


def their_backend() -> tuple[Answer, Callable[[], dict[str, int]]]:
    """lm-eval's own, which asks for the distribution vllm; vLLM knows its build for CPUs by its version's end."""
    found = importlib.metadata.version
    importlib.metadata.version = lambda name: f"{found('vllm-cpu')}+cpu" if name == "vllm" else found(name)
    from lm_eval.models.vllm_causallms import VLLM

    made = VLLM(
        pretrained=str(staged_model(MODEL_ID)),
        dtype="float32",
        max_model_len=MAX_LENGTH,
        kv_cache_memory_bytes=KV_CACHE_BYTES,
        enforce_eager=True,
        distributed_executor_backend="uni",
    )

    def answer(group: Group) -> list[Any]:
        return getattr(made, group[0].kind)([request.instance for request in group], disable_tqdm=True)

    return answer, dict


def serve(name: str) -> None:
    """Answer the groups whose numbers come in, on what was standard output; libraries may print what they like."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answer, counts = our_backend() if name == OURS else their_backend()
    groups = [group for case in cases() for group in case.groups]
    channel.write("{}\n")
    channel.flush()
    for line in sys.stdin:
        before, began = counts(), time.process_time()
        answers = answer(groups[int(line)])
        seconds = time.process_time() - began
        tokens = {key: value - before[key] for key, value in counts().items()}
        channel.write(json.dumps({"seconds": seconds, "answers": answers, **tokens}) + "\n")
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


def measure(case: Case, first: int, ours: subprocess.Popen[str], theirs: subprocess.Popen[str]) -> None:
    """Let the two take turns."""
    for number, group in enumerate(case.groups, start=first):
        mine, other = ask(ours, number), ask(theirs, number)
        case.ours_s.append(mine["seconds"])
        case.theirs_s.append(other["seconds"])
        case.prompt_tokens += mine["prompt_tokens"]
        case.computed_tokens += mine["prompt_tokens"] - mine["cached_tokens"]
        if group[0].kind == GENERATE:
            case.is_equal &= mine["answers"] == other["answers"]
            continue
        for one, two in zip(mine["answers"], other["answers"], strict=True):
            case.difference = max(case.difference, abs(one[0] - two[0]))
            case.is_equal &= one[1] == two[1]


def main(names: Sequence[str]) -> None:
    """Measure and print the table. names: beginnings of the cases to measure; all, if none is given."""
    ours, theirs = started(OURS), started(THEIRS)
    print(f"{'task':31}{'prompts':>8}{'computed':>9}{'hpcq s':>8}{'theirs s':>9}{'ratio':>7}{'bar':>6}  equal")
    first = 0
    for case in cases():
        if not names or case.name.startswith(tuple(names)):
            measure(case, first, ours, theirs)
            seconds = f"{sum(case.ours_s):8.1f}{sum(case.theirs_s):9.1f}"
            tokens = f"{case.prompt_tokens:8}{case.computed_tokens:9}"
            agreement = f"{case.is_equal}, |Δ| {case.difference:.1e}"
            print(f"{case.name:31}{tokens}{seconds}{case.ratio:7.2f}{case.bar:6.2f}  {agreement}", flush=True)
        first += len(case.groups)
    for process in (ours, theirs):
        process.communicate(timeout=60)


if __name__ == "__main__":
    python = create("vllm-cpu")
    if Path(sys.executable) != python:
        checkout = str(Path(__file__).resolve().parents[1])
        surroundings = {**os.environ, **SURROUNDINGS, "PYTHONPATH": checkout}
        sys.exit(subprocess.run([str(python), __file__, *sys.argv[1:]], env=surroundings, check=False).returncode)
    if sys.argv[1:2] in ([OURS], [THEIRS]):
        serve(sys.argv[1])
    else:
        main(sys.argv[1:])
