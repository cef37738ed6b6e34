"""Fixtures of the evaluation tests: documents, work records, attempts; no model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcq.core.attempts import Attempt, AttemptRecord, next_attempt_number, utc_now
from hpcq.core.work_records import EvaluateWork, MergeWork, Model, Scheme, Shard, Task, Variant

BASE = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")


@pytest.fixture
def arc_items(tmp_path: Path) -> Path:
    """Return a folder of generated documents in the schema that the definition of arc_challenge expects."""
    folder = tmp_path / "items"
    folder.mkdir()
    for split, count in (("train", 6), ("test", 9)):
        rows = [
            {
                "id": f"{split}-{number}",
                "question": f"What is {number} times {number + 1} in the {split} book?",
                "choices": {
                    "text": [str(number * (number + 1) + step * 7) * (1 + step) for step in range(3 + number % 2)],
                    "label": ["A", "B", "C", "D"][: 3 + number % 2],
                },
                "answerKey": "ABC"[number % 3],
            }
            for number in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def make_work(tmp_path: Path) -> Callable[..., EvaluateWork]:
    """Make a synthetic evaluation of a few tasks in the run folder `tmp_path/run`; keyword arguments replace fields."""

    def make(index: int = 0, count: int = 1, *, model: str = "org/Tiny", **fields: object) -> EvaluateWork:
        variant = Variant(model=Model(id=model), scheme=BASE)
        unit = f"evaluate.{variant.id}" + (f".{index}of{count}" if count > 1 else "")
        defaults = {
            "variant": variant,
            "tasks": (Task(name="arc_challenge", limit=5), Task(name="gsm8k", limit=4)),
            "backend": "synthetic",
            "dtype": "float32",
            "checkpoint_path": str(tmp_path / "nowhere"),
            "segments_path": str(tmp_path / "run" / "segments" / unit),
            "shard": Shard(index=index, count=count),
            "batch_size": 3,
            "flush_interval_s": 0.0,
        }
        return EvaluateWork(**{**defaults, **fields})  # type: ignore[arg-type]

    return make


@pytest.fixture
def make_merge(tmp_path: Path) -> Callable[..., MergeWork]:
    """Make the merge of evaluations in the run folder `tmp_path/run`."""

    def make(*evaluations: EvaluateWork) -> MergeWork:
        return MergeWork(
            run="run",
            evaluations=evaluations,
            segments_path=str(tmp_path / "run" / "segments"),
            results_path=str(tmp_path / "run" / "results.h5"),
        )

    return make


@pytest.fixture
def make_attempt(tmp_path: Path) -> Callable[[str], Attempt]:
    """Make the next attempt of a unit."""

    def make(unit: str) -> Attempt:
        folder = tmp_path / "run" / "attempts"
        number = next_attempt_number(folder, unit)
        record = AttemptRecord(unit=unit, attempt=number, job_id="1", node="here", pid=1, start=utc_now())
        return Attempt(folder, record)

    return make
