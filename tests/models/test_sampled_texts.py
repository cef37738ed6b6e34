"""Sampled texts depend on their request and seed alone, and stop where the task says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hpcq.core.attempts import Attempt, AttemptRecord, utc_now
from hpcq.core.prompt_settings import Sampling
from hpcq.core.work_records import EvaluateWork, Model, Scheme, Shard, Task, Variant
from hpcq.evaluate import worker
from hpcq.evaluate.backends.transformers.backend import AccelerateBackend
from hpcq.evaluate.requests import Request
from hpcq.store import RequestKey, Response, load_index
from tests.tiny_llama import write_base

BASE = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
SAMPLED = Sampling(arguments=(("do_sample", True), ("temperature", 1.5), ("top_p", 0.95)), repeats=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model."""
    return write_base(tmp_path_factory.mktemp("model") / "tiny", layers=1)


def _work(run: Path, model: Path, items: Path, sampling: Sampling = SAMPLED, batch_size: int = 4) -> EvaluateWork:
    items.mkdir(exist_ok=True)
    for split in ("train", "test"):
        rows = ({"question": f"What is {split} {'x' * number}?", "answer": f"#### {number}"} for number in range(5))
        (items / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    variant = Variant(model=Model(id="tiny", path=str(model)), scheme=BASE)
    task = Task(name="gsm8k", data_path=str(items), num_fewshot=1, max_gen_toks=8, sampling=sampling)
    return EvaluateWork(
        variant=variant,
        tasks=(task,),
        backend="accelerate",
        dtype="float32",
        checkpoint_path=str(model),
        segments_path=str(run / "segments" / f"evaluate.{variant.id}"),
        batch_size=batch_size,
        flush_interval_s=0.0,
        device="cpu",
    )


def _evaluate(work: EvaluateWork, run: Path, shards: int = 1) -> dict[RequestKey, Response]:
    for index in range(shards):
        unit = f"evaluate.{work.variant.id}" + (f".{index}of{shards}" if shards > 1 else "")
        part = replace(work, shard=Shard(index=index, count=shards), segments_path=str(run / "segments" / unit))
        record = AttemptRecord(unit=unit, attempt=1, job_id="1", node="here", pid=1, start=utc_now())
        worker.evaluate(part, Attempt(run / "attempts", record))
    return dict(
        load_index(sorted((run / "segments").iterdir()), expect={"gsm8k": work.task_address(work.tasks[0])}).responses
    )


def test_sampled_texts_do_not_depend_on_shards_batches_or_interruptions(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One shard, three shards with another batch size, and an interrupted run that was resumed give the same bytes."""
    items = tmp_path / "items"
    whole = _evaluate(_work(tmp_path / "one", model, items), tmp_path / "one")
    sharded = _evaluate(_work(tmp_path / "three", model, items, batch_size=1), tmp_path / "three", shards=3)
    stream = AccelerateBackend.stream

    def interrupted(self: AccelerateBackend, *arguments: object) -> Iterator[tuple[Request, Response]]:
        for number, row in enumerate(stream(self, *arguments)):  # type: ignore[arg-type]
            if number == 7:
                raise KeyboardInterrupt
            yield row

    resumed = _work(tmp_path / "resumed", model, items)
    with monkeypatch.context() as patch:
        patch.setattr(AccelerateBackend, "stream", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _evaluate(resumed, tmp_path / "resumed")

    assert len(whole) == 15
    assert len({response.text for response in whole.values()}) > 10
    assert whole == sharded == _evaluate(resumed, tmp_path / "resumed")
