"""What scoring costs on the real model: hpcq's transformers back end beside lm-eval's own, on the same items.

SmolLM2-135M in fp32 on one thread. Both back ends hold the same loaded model and take turns, one group of documents
after the other; the ratio of a task is the median of its groups'. Seconds are the processor's, which other work on the
machine changes least. lm-eval is given the batches that suit it best here: of 4 for short prompts, of 1 for long ones
and for text.

Where one block of examples stands before all questions of a task, as it does before hundreds of them, lm-eval answers
every so many-th of the group's questions alone, and its seconds count so many times: it shares nothing between
documents, so each costs it the same.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from parts.bars import Bar, tell
from parts.layouts import LETTERS, TEXTS, WORKED, Group, by_document, laid_out, real

from hpcq.catalog.packages import staged_model
from hpcq.core.environments import create
from hpcq.core.work import EvaluateWork, Model, Scheme, Variant
from hpcq.evaluate.prefix.token_counts import Counts
from hpcq.evaluate.requests import GENERATE

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
OURS, THEIRS = "hpcq", "lm-eval"
MEMORY_OF = "--memory-of"
SMALL_KV_TOKENS = 2_048
SURROUNDINGS = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}


@dataclass(kw_only=True)
class Case:
    """A task. bar: what its ratio is to reach; None: no more than told. groups: requests that are asked at once.

    every: which of a group's documents lm-eval answers. batch_size: lm-eval's best. counts: tokens, after measuring.
    """

    name: str
    bar: float | None
    groups: list[Group]
    every: int = 1
    batch_size: int = 1
    seconds: dict[str, list[float]] = field(default_factory=lambda: {OURS: [], THEIRS: []})
    difference: float = 0.0
    is_equal: bool = True
    counts: Counts = field(default_factory=Counts)

    @property
    def ratio(self) -> float:
        """Of lm-eval's seconds over ours."""
        return statistics.median(
            theirs / ours for theirs, ours in zip(self.seconds[THEIRS], self.seconds[OURS], strict=True)
        )


def cases() -> list[Case]:
    """All that is measured: few documents each, so that the whole takes minutes."""
    winogrande = [request for group in real("winogrande", shots=5, documents=12) for request in group]
    return [
        Case(name="ARC-Challenge, 25 shots", bar=3.5, groups=real("arc_challenge", shots=25, documents=2)),
        Case(name="HellaSwag, 10 shots", bar=3.5, groups=real("hellaswag", shots=10, documents=2)),
        Case(name="WinoGrande, 5 shots", bar=None, groups=[winogrande], batch_size=4),
        Case(
            name="MMLU's layout, 5 shots",
            bar=5.0,
            groups=[laid_out(LETTERS, choices=4, documents=60)],
            every=6,
        ),
        *(
            Case(
                name=f"ten choices, {kind}, 5 shots",
                bar=8.0,
                groups=[laid_out(kind, choices=10, documents=documents)],
                every=every,
            )
            for kind, documents, every in ((LETTERS, 60, 15), (WORKED, 60, 15), (TEXTS, 40, 40))
        ),
        Case(name="GSM8K, 5 shots, 32 tokens", bar=0.98, groups=real("gsm8k", shots=5, documents=3, tokens=32)),
    ]


def backend() -> Any:
    """The back end as a work makes it, loaded."""
    from hpcq.evaluate.backends.transformers.backend import AccelerateBackend

    model = str(staged_model(MODEL_ID))
    scheme = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
    variant = Variant(model=Model(id=MODEL_ID, path=model), scheme=scheme)
    made = AccelerateBackend(
        EvaluateWork(
            variant=variant,
            tasks=(),
            backend="accelerate",
            dtype="float32",
            checkpoint_path=model,
            segments_path="",
            device="cpu",
        )
    )
    made.load()
    return made


def theirs(made: Any, group: Group, batch_size: int) -> list[Any]:
    """What lm-eval's own back end answers, with the same loaded model."""
    lm = made._lm  # noqa: SLF001
    lm.batch_size_per_gpu = batch_size
    return getattr(lm, group[0].kind)([request.instance for request in group], disable_tqdm=True)


def ours(made: Any, group: Group) -> list[Any]:
    """What hpcq answers, in lm-eval's form."""
    found = dict(made.stream([group], known=()))
    if group[0].kind == GENERATE:
        return [found[request].text for request in group]
    return [(found[request].loglikelihood, found[request].is_greedy) for request in group]


def measure(made: Any, case: Case) -> None:
    """Let the two take turns."""
    scorer = made._scorer  # noqa: SLF001
    scorer.counts = Counts()
    for group in case.groups:
        sample = [request for part in by_document(group)[:: case.every] for request in part]
        began = time.process_time()
        mine = dict(zip(group, ours(made, group), strict=True))
        turned = time.process_time()
        other = theirs(made, sample, case.batch_size)
        ended = time.process_time()
        case.seconds[OURS].append(turned - began)
        case.seconds[THEIRS].append((ended - turned) * len(by_document(group)) / len(by_document(sample)))
        if group[0].kind == GENERATE:
            case.is_equal &= [mine[request] for request in sample] == other
            continue
        for request, (loglikelihood, is_greedy) in zip(sample, other, strict=True):
            case.difference = max(case.difference, abs(mine[request][0] - loglikelihood))
            case.is_equal &= mine[request][1] == is_greedy
    case.counts = scorer.counts


def peak_memory_bytes(name: str, kv_tokens: int = 0) -> int:
    """Of a fresh process that answers as `name` does. kv_tokens: of hpcq's budget, if not the usual."""
    command = [sys.executable, __file__, MEMORY_OF, name, str(kv_tokens)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def memory_of(name: str, kv_tokens: int) -> None:
    """Print the peak in this process once the model is loaded: of a long document, and of questions that share much."""
    made = backend()
    if kv_tokens:
        scorer = made._scorer  # noqa: SLF001
        scorer._limits = replace(scorer._limits, kv_tokens=kv_tokens)  # noqa: SLF001
    [long] = real("arc_challenge", shots=25, documents=1)
    shared = laid_out(TEXTS, choices=10, documents=12 if name == OURS else 1)
    # Loading takes more for a moment than answering does: Linux forgets that peak (proc(5)).
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    for group in (long, shared):
        _ = ours(made, group) if name == OURS else theirs(made, group, 1)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    [kib] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    print(int(kib) * 1024)


def memory_bars(made: Any) -> list[Bar]:
    """Peaks of fresh processes: lm-eval's, and ours with the usual budget for KV and with a small one."""
    scorer = made._scorer  # noqa: SLF001
    token_bytes = scorer._engine.kv_bytes_per_token  # noqa: SLF001
    least = peak_memory_bytes(THEIRS)
    print(f"peak memory of {THEIRS}: {least / 2**30:.3f} GiB")
    bars = []
    for kv_tokens in (scorer._limits.kv_tokens, SMALL_KV_TOKENS):  # noqa: SLF001
        peak, budget = peak_memory_bytes(OURS, kv_tokens), kv_tokens * token_bytes
        print(f"peak memory of {OURS} with {kv_tokens} tokens of KV, {budget / 2**30:.2f} GiB: {peak / 2**30:.3f} GiB")
        bars.append(
            Bar(
                name=f"peak memory beyond lm-eval's, for a budget of {budget / 2**30:.2f} GiB",
                measured=(peak - least) / 2**30,
                bar=round(budget / 2**30, 3),
                is_most=True,
                unit=" GiB",
            )
        )
    return bars


def main(names: Sequence[str]) -> None:
    """Measure and print. names: beginnings of the cases to measure; all, and memory, if none is given."""
    made = backend()
    print(made.describe())
    print("tokens: asked for; computed by lm-eval, which shares choices of one token; computed by hpcq")
    print(f"{'task':32}{'asked':>8}{'lm-eval':>8}{'hpcq':>7}{'lm-eval s':>11}{'hpcq s':>8}{'ratio':>7}  equal")
    bars = []
    for case in cases():
        if names and not case.name.startswith(tuple(names)):
            continue
        measure(made, case)
        counts = case.counts
        tokens = f"{counts.asked:8}{counts.lm_eval:8}{counts.computed:7}" if counts.asked else f"{'':23}"
        seconds = f"{sum(case.seconds[THEIRS]):11.1f}{sum(case.seconds[OURS]):8.1f}"
        agreement = f"{case.is_equal}, |Δ| {case.difference:.1e}"
        print(f"{case.name:32}{tokens}{seconds}{case.ratio:7.2f}  {agreement}", flush=True)
        if case.bar is not None:
            bars.append(Bar(name=f"transformers, {case.name}", measured=case.ratio, bar=case.bar, unit=" ×"))
    if not names:
        bars += memory_bars(made)
    tell(bars)


if __name__ == "__main__":
    python = create("transformers")
    if Path(sys.executable) != python:
        checkout = str(Path(__file__).resolve().parents[1])
        surroundings = {**os.environ, **SURROUNDINGS, "PYTHONPATH": checkout}
        sys.exit(subprocess.run([str(python), __file__, *sys.argv[1:]], env=surroundings, check=False).returncode)
    if sys.argv[1:2] == [MEMORY_OF]:
        memory_of(sys.argv[2], int(sys.argv[3]))
    else:
        main(sys.argv[1:])
