"""A run with results, plan and attempts as a cluster would leave them: two models, groups, marks, failures.

Log-likelihoods and texts are made from seeded random numbers, so that values of items, scores and responses agree.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcq.core.attempts import AttemptRecord
from hpcq.core.failures import Failure
from hpcq.core.outcomes import Action, Launcher, Outcome
from hpcq.core.work_records import PANEL_TASK
from hpcq.report.failed_variants import VariantFailure
from hpcq.report.make_report import MergedRun
from hpcq.store import (
    GroupShares,
    Index,
    ItemTables,
    MergeReport,
    RequestKey,
    Response,
    Score,
    TaskItems,
    TopLogprobs,
    VariantResults,
    digest_of_arguments,
    write_results,
)
from hpcq.store.response_columns import Table, columns_from_rows
from hpcq.verify.marks import Mark, MarkKind

CHOICES = 4
LLAMA, QWEN = "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct"
REVISION = "0e9e39f249a16976918f6564b8830bc894c89659"
SUBJECTS = tuple(
    f"mmlu_{name}"
    for name in ("anatomy", "astronomy", "college_physics", "econometrics", "virology", "world_religions")
)
METRICS = {
    "arc_challenge": ("acc_norm", "none"),
    "hellaswag": ("acc_norm", "none"),
    "winogrande": ("acc", "none"),
    "truthfulqa_mc2": ("acc", "none"),
    "mmlu": ("acc", "none"),
    "gsm8k": ("exact_match", "strict-match"),
}


@dataclass(frozen=True, kw_only=True)
class SampleVariant:
    """A variant of the sample.

    Attributes:
        model: Id of the model.
        scheme: Name of the scheme.
        noise: Standard deviation of what quantization adds to log-likelihoods, nats.
        damage: What it subtracts from the right choice, nats.
        gigabytes: Size of the weights.
        seconds: Time to evaluate.
        marks: Its marks.
        skipped: Tasks without responses.
        has_results: Whether it has any.
        method: Its method; empty: the name of the scheme.
        quantizer: The tool that makes its checkpoint, if it is quantized.
    """

    model: str
    scheme: str
    noise: float = 0.0
    damage: float = 0.0
    gigabytes: float = 16.1
    seconds: float = 5200.0
    marks: tuple[Mark, ...] = ()
    skipped: tuple[str, ...] = ()
    has_results: bool = True
    method: str = ""
    quantizer: str = "llmcompressor"

    @property
    def id(self) -> str:
        """Id of the variant."""
        return f"{self.model.split('/')[-1].lower()}--{self.scheme}--1a2b3c"

    @property
    def tool(self) -> str:
        """Its tool."""
        return "none" if self.scheme == "bf16" else self.quantizer


VARIANTS = (
    SampleVariant(model=LLAMA, scheme="bf16"),
    SampleVariant(model=LLAMA, scheme="fp8-dynamic", noise=0.02, gigabytes=9.1, seconds=3900),
    SampleVariant(
        model=LLAMA,
        scheme="gptq-w4a16-g128",
        noise=0.25,
        damage=0.05,
        gigabytes=5.7,
        seconds=4400,
        marks=(Mark(kind=MarkKind.FALLBACKS, detail="3 of 224 layers", affected=3, total=224),),
    ),
    SampleVariant(
        model=LLAMA,
        scheme="smoothquant-w8a8",
        noise=0.8,
        damage=0.5,
        gigabytes=9.1,
        seconds=3800,
        marks=(Mark(kind=MarkKind.PROMPTS_CUT, detail="12 of 600 prompts, by up to 40 tokens", task="gsm8k"),),
    ),
    SampleVariant(
        model=LLAMA,
        scheme="awq-w4a16-g128",
        noise=0.15,
        damage=0.02,
        gigabytes=5.7,
        seconds=4300,
        skipped=("gsm8k",),
        marks=(Mark(kind=MarkKind.NOT_FINITE, detail="7 of 600 responses", task="gsm8k", affected=7, total=600),),
    ),
    SampleVariant(model=LLAMA, scheme="gptq-w3a16-g128", has_results=False),
    SampleVariant(model=QWEN, scheme="bf16", gigabytes=15.2, seconds=5000),
    SampleVariant(model=QWEN, scheme="fp8-dynamic", noise=0.03, gigabytes=8.7, seconds=3700),
    SampleVariant(model=QWEN, scheme="gptq-w4a16-g128", noise=0.3, damage=0.1, gigabytes=5.6, seconds=4100),
)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Settings of a sample.

    Attributes:
        variants: Its variants.
        n: Items of each task.
        tasks: Names of the tasks.
        subjects: Members of 'mmlu'.
        texts: Generated texts that the variants cycle through, instead of made answers.
        notes: Notes of the plan.
        reason: Reason of a failed attempt.
        windows: Windows of a fidelity panel; 0: there is none.
        other_tokens: Schemes whose tokenizer makes other tokens of the panel's text.
    """

    variants: Sequence[SampleVariant] = VARIANTS
    n: int = 600
    tasks: Sequence[str] = tuple(METRICS)
    subjects: Sequence[str] = SUBJECTS
    texts: Sequence[bytes] = ()
    notes: Sequence[str] = ("gsm8k: 1219 of the 1319 test items; the others are held out as few-shot examples.",)
    reason: str = "CUDA out of memory. Tried to allocate 2.00 GiB."
    windows: int = 0
    other_tokens: Sequence[str] = ()


def write_sample(folder: Path, sample: Sample | None = None) -> MergedRun:
    """Write results, plan and attempts of the sample to a folder, and return it as input of a report."""
    sample = sample or Sample()
    folder.mkdir(parents=True)
    merged = [one for one in sample.variants if one.has_results]
    rows = sum(len(sample.tasks) * sample.n for _ in merged)
    write_results(
        folder / "results.h5",
        run=folder.name,
        provenance={"hpcq": "0.3.0", "git_commit": "0a1b2c3d"},
        variants=[_variant(sample, one) for one in merged],
        merge=MergeReport(expected=rows + 600, found=rows, missing=600, duplicates=2, conflicts=(), set_aside=()),
    )
    plan = {
        "units": [unit for one in sample.variants for unit in _units(sample, one)],
        "refused": [{"variant": "llama--fp4", "reason": "needs compute capability 10.0.", "suggestion": "Try fp8."}],
        "notes": list(sample.notes),
        "totals": {"gpu_hours": {"h100": 11.8}, "wall_seconds": 9400.0},
        "address": "20da38c7e62ca6d0",
    }
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    _write_attempts(folder / "attempts", sample)
    failures = {
        one.id: VariantFailure(
            unit=f"quantize.{one.id}", state="failed", failure="out of memory", reason=sample.reason, log="logs/q.out"
        )
        for one in sample.variants
        if not one.has_results
    }
    return MergedRun(
        name=folder.name,
        results=folder / "results.h5",
        plan_document=plan,
        failures=failures,
        attempts=folder / "attempts",
    )


def write_sample_run(folder: Path, sample: Sample | None = None) -> MergedRun:
    """Write the sample as a run that the command line finds by its folder."""
    run = write_sample(folder, sample)
    paths = {"runs": folder.parent, "checkpoints": folder.parent / "checkpoints", "logs": folder.parent / "logs"}
    lines = ["[run]", f"name = {json.dumps(folder.name)}", "[paths]"]
    lines += [f"{name} = {json.dumps(str(path))}" for name, path in paths.items()]
    (folder / "manifest.lock.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return run


def _variant(sample: Sample, one: SampleVariant) -> VariantResults:
    tables, items, scores = [], [], []
    for task in sample.tasks:
        if task in one.skipped:
            continue
        members = sample.subjects if task == "mmlu" else (task,)
        made = [_task(sample, one, task, member) for member in members]
        tables += [table for table, _ in made]
        items += [found for _, found in made]
        metric = METRICS[task]
        values = np.concatenate([found.values[metric][:, 0] for _, found in made])
        scores.append(_score(task, metric, values))
        if task == "mmlu":
            scores += [_score(found.task, metric, found.values[metric][:, 0]) for _, found in made]
        if task == "arc_challenge":
            scores.append(_score(task, ("acc", "none"), 1 - values))
    if sample.windows:
        tables.append(_panel(sample, one))
    shares = dict.fromkeys(sample.subjects, 1 / len(sample.subjects))
    groups = [GroupShares(group="mmlu", metric="acc", filter="none", shares=shares)] if "mmlu" in sample.tasks else []
    index = Index(tables=tuple(tables), conflicts=(), set_aside=(), segments=(), duplicates=0, ignored=0, inputs=one.id)
    return VariantResults(
        variant=one.id,
        index=index,
        scores=scores,
        provenance=_provenance(sample, one),
        marks=[mark.as_json() for mark in one.marks],
        items=ItemTables(tasks=items, groups=groups),
    )


def _score(task: str, metric: tuple[str, str], values: NDArray[np.float64]) -> Score:
    error = float(values.std() / np.sqrt(len(values)))
    return Score(task=task, metric=metric[0], filter=metric[1], value=float(values.mean()), stderr=error, n=len(values))


def _task(sample: Sample, one: SampleVariant, task: str, name: str) -> tuple[Table, TaskItems]:
    n = sample.n // len(sample.subjects) if task == "mmlu" else sample.n
    loglikelihoods, target = _loglikelihoods(one, name, n)
    right = loglikelihoods.argmax(axis=1) == target
    is_text = task == "gsm8k"
    values = right.astype(np.float64)
    if task == "truthfulqa_mc2":
        shifted = np.exp(loglikelihoods - loglikelihoods.max(axis=1, keepdims=True))
        values = shifted[np.arange(n), target] / shifted.sum(axis=1)
    rows = []
    for number in range(n):
        for choice in range(1 if is_text else CHOICES):
            key = RequestKey(name, "1", number, choice, 0, _digest(name, number, choice))
            response = Response(float(loglikelihoods[number, choice]), is_greedy=False, cut_tokens=0)
            if is_text:
                response = Response(text="", cut_tokens=0)
            rows.append((key, response))
    columns = columns_from_rows(rows)
    if is_text:
        columns = _with_texts(columns, [_text(sample, number, bool(right[number])) for number in range(n)])
    found = TaskItems(
        task=name,
        doc_id=np.arange(n),
        target=np.full(n, -1) if is_text else target,
        digest=np.array([_digest(name, number, 0) for number in range(n)], dtype="S32"),
        values={METRICS[task]: np.column_stack([values, np.ones(n)])},
    )
    return Table(task=name, task_version="1", address="e", columns=columns), found


def _panel(sample: Sample, one: SampleVariant) -> Table:
    """Return windows of 21 tokens with the top 8 of 50; the baseline reads each twice, with a little noise."""
    rows = []
    for number in range(sample.windows):
        generator = np.random.default_rng(sum(map(ord, one.model)) + number)
        tokens = generator.integers(0, 50, 21).astype(np.int32)
        logits = generator.normal(0.0, 3.0, (20, 50))
        for repeat in range(1 if one.tool != "none" else 2):
            own = np.random.default_rng(number + 100 * repeat)
            changed = logits + own.normal(0.0, 1.0, logits.shape) * (one.noise + 1e-4 * repeat)
            logprobs = (changed - np.log(np.exp(changed).sum(axis=1, keepdims=True))).astype(np.float32)
            ids = np.argsort(-logprobs, axis=1)[:, :8].astype(np.int32)
            window = TopLogprobs(
                tokens=tokens + (one.scheme in sample.other_tokens),
                next_logprobs=logprobs[np.arange(20), tokens[1:]],
                top_ids=ids,
                top_logprobs=np.take_along_axis(logprobs, ids, axis=1),
            )
            key = RequestKey(PANEL_TASK, "1", number, 0, repeat, _digest(PANEL_TASK, number, 0))
            rows.append((key, Response(loglikelihood=window.loglikelihood, cut_tokens=0, logprobs=window.packed())))
    return Table(task=PANEL_TASK, task_version="1", address="e", columns=columns_from_rows(rows))


def _digest(task: str, number: int, choice: int) -> str:
    return digest_of_arguments(task, [number, choice])


def _with_texts(columns: Any, texts: Sequence[bytes]) -> Any:
    """Return the columns with these bytes as texts, which need not be UTF-8."""
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    return replace(columns, text=np.frombuffer(b"".join(texts), dtype=np.uint8), text_offsets=offsets)


def _loglikelihoods(one: SampleVariant, task: str, n: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the log-likelihoods of the choices of a variant: those of its baseline, changed by quantization."""
    seed = sum(map(ord, f"{one.model} {task}"))
    generator = np.random.default_rng(seed)
    target = generator.integers(0, CHOICES, n)
    baseline = generator.normal(-20.0, 1.5, (n, CHOICES))
    baseline[np.arange(n), target] += 1.8
    own = np.random.default_rng(seed + sum(map(ord, one.scheme)))
    changed = baseline + own.normal(0.0, 1.0, (n, CHOICES)) * one.noise
    changed[np.arange(n), target] -= one.damage
    return changed, target


def _text(sample: Sample, number: int, is_right: bool) -> bytes:  # noqa: FBT001 (a private function)
    if sample.texts:
        return sample.texts[number % len(sample.texts)]
    price, count = 3 + number % 7, 4 + number % 5
    answer = price * count if is_right else price * count + 2
    steps = f"Each ticket costs ${price}. She buys {count} tickets.\n{price} * {count} = {answer}\n"
    return f"{steps * 3}#### {answer}".encode()


def _provenance(sample: Sample, one: SampleVariant) -> dict[str, Any]:
    is_baseline = one.tool == "none"
    return {
        "model": one.model,
        "model_revision": REVISION,
        "scheme": one.scheme,
        "tool": one.tool,
        "backend": "vllm",
        "backend_versions": json.dumps({"lm-eval": "0.4.13", "vllm": "0.32.0", "torch": "2.13.0"}),
        "quantizer_versions": json.dumps({} if is_baseline else {one.tool: "0.14.0.1"}),
        "recipe": json.dumps({"weights": "bf16", "method": one.method or one.scheme, "ignore": ["lm_head"]}),
        "dtype": "bfloat16",
        "seed": 1234,
        "gpu_class": "h100",
        "device": "NVIDIA H100 80GB HBM3",
        "quantization_kernels": "" if is_baseline else "MarlinLinearKernel",
        "prefix_sharing": "exact" if is_baseline else "within rounding",
        "prefix_sharing_difference": 5.7e-06,
        "batch_difference": 0.0019,
        "tasks": json.dumps([{"name": task, "num_fewshot": 5} for task in sample.tasks if task not in one.skipped]),
        "evaluate_seconds": one.seconds,
        "checkpoint_bytes": int(one.gigabytes * 1e9),
        **({} if is_baseline else {"quantize_seconds": 1900.0, "quantize_peak_bytes": 31_200_000_000}),
    }


def _units(sample: Sample, one: SampleVariant) -> list[Mapping[str, Any]]:
    common = {
        "variant": one.id, "model": one.model, "model_revision": REVISION, "scheme": one.scheme, "tool": one.tool,
        "backend": "vllm", "gpu_class": "h100", "nodes": 1, "gpus_per_node": 1,
        "tensor_parallel": 1, "pipeline_parallel": 1, "memory_gib_per_gpu": 31.5, "depends_on": [],
        "address": None, "checkpoint": None,
    }  # fmt: skip
    evaluate = {
        **common,
        "id": f"evaluate.{one.id}",
        "kind": "evaluate",
        "tasks": [*sample.tasks, *([PANEL_TASK] if sample.windows else [])],
        "seconds": 4000.0,
    }
    if one.tool == "none":
        return [evaluate]
    quantize = {**common, "id": f"quantize.{one.id}", "kind": "quantize", "tasks": [], "seconds": 1800.0}
    return [quantize, {**evaluate, "depends_on": [quantize["id"]]}]


def _write_attempts(folder: Path, sample: Sample) -> None:
    folder.mkdir()
    start = datetime.datetime(2026, 11, 29, 8, tzinfo=datetime.UTC)
    for number, one in enumerate(sample.variants):
        begin = start + datetime.timedelta(minutes=7 * number)
        if not one.has_results:
            for attempt in (1, 2, 3):
                failed = {"outcome": Outcome.FAILED, "failure": Failure.OUT_OF_MEMORY, "reason": sample.reason}
                decision = Action.FAIL if attempt == 3 else Action.RETRY_SMALLER
                _attempt(folder, f"quantize.{one.id}", attempt, begin, 9, decision=decision, **failed)
                begin += datetime.timedelta(minutes=12)
            continue
        if one.tool != "none":
            _attempt(folder, f"quantize.{one.id}", 1, begin, 32, outcome=Outcome.DONE)
            begin += datetime.timedelta(minutes=35)
        minutes = one.seconds / 60
        if number % 3 == 2:
            _attempt(
                folder, f"evaluate.{one.id}", 1, begin, minutes / 3, outcome=Outcome.INTERRUPTED,
                failure=Failure.PREEMPTED, decision=Action.RETRY, reason="preempted by Slurm: the job was requeued",
            )  # fmt: skip
            begin += datetime.timedelta(minutes=minutes / 3 + 11)
            _attempt(folder, f"evaluate.{one.id}", 2, begin, minutes, outcome=Outcome.DONE)
        else:
            _attempt(folder, f"evaluate.{one.id}", 1, begin, minutes, outcome=Outcome.DONE)


def _attempt(folder: Path, unit: str, number: int, start: datetime.datetime, minutes: float, **fields: Any) -> None:
    end = start + datetime.timedelta(minutes=minutes)
    record = AttemptRecord(
        unit=unit, attempt=number, job_id=f"41{number}7_3", node=f"gpu{number:02d}", pid=4242, gpus=1, committed=3600,
        start=start.isoformat(), end=end.isoformat(), launcher=Launcher.SLURM, **fields,
    )  # fmt: skip
    name = f"{unit.replace('/', '_')[:100]}.{number}.json"
    (folder / name).write_text(json.dumps(vars(record)), encoding="utf-8")
