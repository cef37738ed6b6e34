"""Evaluation of the quickstart's tasks with the real model: responses do not depend on shards and restarts."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import CompressedTensorsConfig

from hpcq.catalog.packages import staged_dataset_path, staged_model_path
from hpcq.core.attempts import Attempt, AttemptRecord, next_attempt_number, utc_now
from hpcq.core.errors import WorkerError
from hpcq.core.paths import segment_folders
from hpcq.core.work_records import EvaluateWork, MergeWork, Model, QuantizeWork, Scheme, Shard, Task, Variant
from hpcq.evaluate.backends.transformers.backend import AccelerateBackend, _load_model
from hpcq.evaluate.backends.transformers.quantized_loading import check_loaded
from hpcq.evaluate.merge import merge
from hpcq.evaluate.worker import evaluate
from hpcq.quantize.worker import quantize
from hpcq.store import RequestKey, Response, count_rows, read_responses, read_results
from tests.unit.quantize.conftest import FP8_DYNAMIC

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
BASE = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")

IN_A_PROCESS = """
import pickle, sys
from pathlib import Path
from hpcq.core.attempts import Attempt, AttemptRecord, utc_now
from hpcq.evaluate.worker import evaluate
record = AttemptRecord(unit="evaluate.x", attempt=1, job_id="1", node="here", pid=1, start=utc_now())
evaluate(pickle.loads(bytes.fromhex(sys.argv[1])), Attempt(Path(sys.argv[2]), record))
"""


def _task(name: str, **fields: int) -> Task:
    return Task(name=name, data_path=str(staged_dataset_path(name)), **fields)  # type: ignore[arg-type]


QUICKSTART = (
    _task("arc_challenge", limit=3, num_fewshot=1),
    _task("hellaswag", limit=2, num_fewshot=0),
    _task("winogrande", limit=3, num_fewshot=2),
    _task("truthfulqa_mc1", limit=1),
    _task("gsm8k", limit=2, num_fewshot=1, max_gen_toks=16),
)


def _work(run: Path, index: int = 0, count: int = 1, tasks: tuple[Task, ...] = QUICKSTART) -> EvaluateWork:
    model = str(staged_model_path(MODEL_ID))
    variant = Variant(model=Model(id=MODEL_ID, path=model), scheme=BASE)
    return EvaluateWork(
        variant=variant,
        tasks=tasks,
        backend="accelerate",
        dtype="float32",
        checkpoint_path=model,
        segments_path=str(run / "segments" / f"evaluate.{variant.id}.{index}of{count}"),
        shard=Shard(index=index, count=count),
        batch_size=2,
        flush_interval_s=0.0,
    )


def _attempt(run: Path, unit: str) -> Attempt:
    folder = run / "attempts"
    number = next_attempt_number(folder, unit)
    return Attempt(folder, AttemptRecord(unit=unit, attempt=number, job_id="1", node="here", pid=1, start=utc_now()))


def _merged(run: Path, work: EvaluateWork) -> tuple[dict[RequestKey, Response], object]:
    """Merge a run; return all responses and all scores."""
    results = run / "results.h5"
    merging = MergeWork(run="run", evaluations=(work,), segments_path=str(run / "segments"), results_path=str(results))
    merge(merging, _attempt(run, "merge"))
    (variant,) = read_results(results).variants
    return read_responses(results, work.variant.id), variant.scores


Evaluated = tuple[dict[RequestKey, Response], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """Return responses and scores of the quickstart's tasks, from one worker."""
    run = tmp_path_factory.mktemp("whole")
    evaluate(_work(run), _attempt(run, "evaluate"))
    return _merged(run, _work(run))


def test_every_task_has_a_score(whole: Evaluated) -> None:
    """One worker answers every request, and every task of the quickstart is scored."""
    responses, scores = whole

    assert len(responses) > 30
    assert {score.task for score in scores} == {task.name for task in QUICKSTART}  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", [2, 3, 7])
def test_shards_change_no_bit(whole: Evaluated, tmp_path: Path, count: int) -> None:
    """Two, three or seven shards give exactly the same responses and scores as one worker."""
    for index in range(count):
        evaluate(_work(tmp_path, index, count), _attempt(tmp_path, f"evaluate.{index}"))

    assert _merged(tmp_path, _work(tmp_path)) == whole


def test_activations_are_quantized_or_nothing_is_scored(tmp_path: Path) -> None:
    """An FP8 checkpoint is computed with FP8 activations; a model without them is refused."""
    base = _work(tmp_path)
    variant = replace(base.variant, scheme=FP8_DYNAMIC)
    work = replace(base, variant=variant, checkpoint_path=str(tmp_path / "fp8"))
    quantize(QuantizeWork(variant=variant, checkpoint_path=work.checkpoint_path), _attempt(tmp_path, "quantize"))
    backend = AccelerateBackend(work)
    backend.load()

    quantized = [module for module in backend._lm.model.modules() if hasattr(module, "quantization_scheme")]
    assert len(quantized) == 30 * 7
    assert all(module.quantization_scheme.input_activations.num_bits == 8 for module in quantized)
    with pytest.raises(WorkerError, match="loads it without quantizing activations, which fp8-dynamic does"):
        check_loaded(
            work,
            _load_model(base, "cpu", None)[0],
            {"missing_keys": [], "mismatched_keys": [], "unexpected_keys": []},
            CompressedTensorsConfig(dequantize=True),
            has_other_parts=False,
        )


def test_a_killed_worker_loses_no_committed_response(whole: Evaluated, tmp_path: Path) -> None:
    """After SIGKILL the next attempt computes only what was not committed, with the bits of an undisturbed run."""
    tasks = (QUICKSTART[0], QUICKSTART[4])
    work = _work(tmp_path, tasks=tasks)
    argument = pickle.dumps(work).hex()
    process = subprocess.Popen([sys.executable, "-c", IN_A_PROCESS, argument, str(tmp_path / "attempts")])
    deadline_s = time.monotonic() + 900
    while count_rows(Path(work.segments_path)) < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    process.kill()
    process.wait()
    committed = count_rows(Path(work.segments_path))
    attempt = _attempt(tmp_path, "evaluate.x")

    evaluate(work, attempt)

    total = attempt.record.total or 0
    rows = sum(count_rows(folder) for folder in segment_folders(tmp_path / "segments", work.variant))
    assert 4 <= committed < total == rows
    assert (attempt.record.restored, attempt.record.facts["answered"]) == (committed, total - committed)
    names = {task.name for task in tasks}
    assert _merged(tmp_path, work)[0] == {key: value for key, value in whole[0].items() if key.task in names}
