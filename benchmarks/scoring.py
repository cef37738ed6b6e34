"""Cost of scoring with the transformers backend, compared with lm-eval's own backend on the same documents.

SmolLM2-135M in float32 on one thread. Both backends use the same loaded model and take turns, one group of documents
after the other; the ratio of a task is the median of its groups. Times are processor seconds, which other work on the
machine affects least. lm-eval gets its best batch size here: 4 for short prompts, 1 for long ones and for generation.

In tasks with one block of examples before all questions, lm-eval answers only every n-th question of the group, and its
seconds are multiplied by n: it shares nothing between documents, so all of them cost the same.
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
from typing import TYPE_CHECKING, Any

from parts.layouts import LETTERS, TEXTS, WORKED, RequestGroup, group_by_document, lm_eval_requests, synthetic_layout
from parts.thresholds import Threshold, print_thresholds

from hpcq.catalog.packages import staged_model_path
from hpcq.core.environments import create
from hpcq.core.work_records import EvaluateWork, Model, Scheme, Variant
from hpcq.evaluate.prefix.token_counts import TokenCounts
from hpcq.evaluate.requests import GENERATE

if TYPE_CHECKING:
    from hpcq.evaluate.chat_templates import ChatTemplate

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
OURS, THEIRS = "hpcq", "lm-eval"
MEASURE_MEMORY = "--measure-memory"
SMALL_KV_TOKENS = 2_048
VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}


@dataclass(kw_only=True)
class Case:
    """A task to measure, and its measurements.

    Attributes:
        name: Name in the output.
        min_ratio: Ratio that it must reach; None: the ratio is only printed.
        groups: Groups of requests; each is answered in one call.
        every: lm-eval answers every n-th document of a group.
        batch_size: lm-eval's best batch size.
        seconds: Seconds per group, by backend.
        difference: Largest difference of log-likelihoods.
        is_equal: Both backends give the same answers (texts, greedy flags).
        counts: Token counts of hpcq.
    """

    name: str
    min_ratio: float | None
    groups: list[RequestGroup]
    every: int = 1
    batch_size: int = 1
    seconds: dict[str, list[float]] = field(default_factory=lambda: {OURS: [], THEIRS: []})
    difference: float = 0.0
    is_equal: bool = True
    counts: TokenCounts = field(default_factory=TokenCounts)

    @property
    def ratio(self) -> float:
        """lm-eval's seconds divided by hpcq's."""
        return statistics.median(
            theirs / ours for theirs, ours in zip(self.seconds[THEIRS], self.seconds[OURS], strict=True)
        )


def cases(chat: ChatTemplate) -> list[Case]:
    """Return the cases, with few documents each, so that the benchmark takes minutes.

    Args:
        chat: The model's chat template.
    """
    winogrande = [request for group in lm_eval_requests("winogrande", shots=5, documents=12) for request in group]
    return [
        Case(
            name="ARC-Challenge, 25 shots",
            min_ratio=3.5,
            groups=lm_eval_requests("arc_challenge", shots=25, documents=2),
        ),
        Case(
            name="ARC-Challenge, 25 turns of a chat",
            min_ratio=3.5,
            groups=lm_eval_requests("arc_challenge", shots=25, documents=2, chat=chat),
        ),
        Case(name="HellaSwag, 10 shots", min_ratio=3.5, groups=lm_eval_requests("hellaswag", shots=10, documents=2)),
        Case(name="WinoGrande, 5 shots", min_ratio=None, groups=[winogrande], batch_size=4),
        Case(
            name="MMLU's layout, 5 shots",
            min_ratio=5.0,
            groups=[synthetic_layout(LETTERS, choices=4, documents=60)],
            every=6,
        ),
        *(
            Case(
                name=f"ten choices, {kind}, 5 shots",
                min_ratio=8.0,
                groups=[synthetic_layout(kind, choices=10, documents=documents)],
                every=every,
            )
            for kind, documents, every in ((LETTERS, 60, 15), (WORKED, 60, 15), (TEXTS, 40, 40))
        ),
        Case(
            name="GSM8K, 5 shots, 32 tokens",
            min_ratio=0.98,
            groups=lm_eval_requests("gsm8k", shots=5, documents=3, tokens=32),
        ),
    ]


def evaluate_work() -> EvaluateWork:
    """Return an evaluation of the model, without tasks."""
    model = str(staged_model_path(MODEL_ID))
    scheme = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
    variant = Variant(model=Model(id=MODEL_ID, path=model), scheme=scheme)
    return EvaluateWork(
        variant=variant,
        tasks=(),
        backend="accelerate",
        dtype="float32",
        checkpoint_path=model,
        segments_path="",
        device="cpu",
    )


def backend() -> Any:
    """Return the loaded backend."""
    from hpcq.evaluate.backends.transformers.backend import AccelerateBackend

    made = AccelerateBackend(evaluate_work())
    made.load()
    return made


def theirs(made: Any, group: RequestGroup, batch_size: int) -> list[Any]:
    """Return the answers of lm-eval's own backend, with the same loaded model."""
    lm = made._lm  # noqa: SLF001
    lm.batch_size_per_gpu = batch_size
    return getattr(lm, group[0].kind)([request.instance for request in group], disable_tqdm=True)


def ours(made: Any, group: RequestGroup) -> list[Any]:
    """Return the answers of hpcq, in lm-eval's form."""
    found = dict(made.stream([group], answered=()))
    if group[0].kind == GENERATE:
        return [found[request].text for request in group]
    return [(found[request].loglikelihood, found[request].is_greedy) for request in group]


def measure(made: Any, case: Case) -> None:
    """Measure both backends in turns."""
    scorer = made._scorer  # noqa: SLF001
    scorer.counts = TokenCounts()
    for group in case.groups:
        sample = [request for part in group_by_document(group)[:: case.every] for request in part]
        start = time.process_time()
        mine = dict(zip(group, ours(made, group), strict=True))
        middle = time.process_time()
        other = theirs(made, sample, case.batch_size)
        end = time.process_time()
        case.seconds[OURS].append(middle - start)
        case.seconds[THEIRS].append((end - middle) * len(group_by_document(group)) / len(group_by_document(sample)))
        if group[0].kind == GENERATE:
            case.is_equal &= [mine[request] for request in sample] == other
            continue
        for request, (loglikelihood, is_greedy) in zip(sample, other, strict=True):
            case.difference = max(case.difference, abs(mine[request][0] - loglikelihood))
            case.is_equal &= mine[request][1] == is_greedy
    case.counts = scorer.counts


def peak_memory_bytes(name: str, kv_tokens: int = 0) -> int:
    """Return the peak memory of a new process that answers with `name`.

    Args:
        name: The backend.
        kv_tokens: KV cache budget of hpcq; 0: the default.
    """
    command = [sys.executable, __file__, MEASURE_MEMORY, name, str(kv_tokens)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def measure_memory(name: str, kv_tokens: int) -> None:
    """Print the peak of this process after loading, for a long document and for questions with a long shared prefix."""
    made = backend()
    if kv_tokens:
        scorer = made._scorer  # noqa: SLF001
        scorer._budget = replace(scorer._budget, max_kv_tokens=kv_tokens)  # noqa: SLF001
    [long] = lm_eval_requests("arc_challenge", shots=25, documents=1)
    shared = synthetic_layout(TEXTS, choices=10, documents=12 if name == OURS else 1)
    # Loading has a higher peak than answering; this resets the peak (proc(5)).
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    for group in (long, shared):
        _ = ours(made, group) if name == OURS else theirs(made, group, 1)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    [kib] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    print(int(kib) * 1024)


def memory_thresholds(made: Any) -> list[Threshold]:
    """Measure the peaks of new processes: lm-eval, and hpcq with the default and with a small KV cache budget."""
    scorer = made._scorer  # noqa: SLF001
    token_bytes = scorer._engine.kv_bytes_per_token  # noqa: SLF001
    baseline = peak_memory_bytes(THEIRS)
    print(f"peak memory of {THEIRS}: {baseline / 2**30:.3f} GiB")
    thresholds = []
    for kv_tokens in (scorer._budget.max_kv_tokens, SMALL_KV_TOKENS):  # noqa: SLF001
        peak, budget = peak_memory_bytes(OURS, kv_tokens), kv_tokens * token_bytes
        print(
            f"peak memory of {OURS} with {kv_tokens} tokens of KV cache ({budget / 2**30:.2f} GiB):"
            f" {peak / 2**30:.3f} GiB"
        )
        thresholds.append(
            Threshold(
                name=f"peak memory beyond lm-eval's, for a budget of {budget / 2**30:.2f} GiB",
                measured=(peak - baseline) / 2**30,
                limit=round(budget / 2**30, 3),
                is_maximum=True,
                unit=" GiB",
            )
        )
    return thresholds


def main(names: Sequence[str]) -> None:
    """Measure and print the cases whose names start with one of `names`; all, and memory, if there are none."""
    from hpcq.evaluate.chat_templates import read_chat_template

    made = backend()
    print(made.describe())
    print("tokens: requested; computed by lm-eval, which shares choices of one token; computed by hpcq")
    print(f"{'task':32}{'req.':>8}{'lm-eval':>8}{'hpcq':>7}{'lm-eval s':>11}{'hpcq s':>8}{'ratio':>7}  equal")
    thresholds = []
    for case in cases(read_chat_template(evaluate_work())):
        if names and not case.name.startswith(tuple(names)):
            continue
        measure(made, case)
        counts = case.counts
        tokens = f"{counts.requested:8}{counts.lm_eval:8}{counts.computed:7}" if counts.requested else f"{'':23}"
        seconds = f"{sum(case.seconds[THEIRS]):11.1f}{sum(case.seconds[OURS]):8.1f}"
        agreement = f"{case.is_equal}, |Δ| {case.difference:.1e}"
        print(f"{case.name:32}{tokens}{seconds}{case.ratio:7.2f}  {agreement}", flush=True)
        if case.min_ratio is not None:
            thresholds.append(
                Threshold(name=f"transformers, {case.name}", measured=case.ratio, limit=case.min_ratio, unit=" ×")
            )
    if not names:
        thresholds += memory_thresholds(made)
    print_thresholds(thresholds)


if __name__ == "__main__":
    python = create("transformers")
    if Path(sys.executable) != python:
        checkout = str(Path(__file__).resolve().parents[1])
        variables = {**os.environ, **VARIABLES, "PYTHONPATH": checkout}
        sys.exit(subprocess.run([str(python), __file__, *sys.argv[1:]], env=variables, check=False).returncode)
    if sys.argv[1:2] == [MEASURE_MEMORY]:
        measure_memory(sys.argv[2], int(sys.argv[3]))
    else:
        main(sys.argv[1:])
