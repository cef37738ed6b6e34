"""Weights beyond the memory, on a real model: on the node's disk with the same answers, or a sentence and no answer."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from transformers import AutoConfig, AutoModelForCausalLM

from hpcq.attempts import Attempt, AttemptRecord, now
from hpcq.catalog.packages import staged_items, staged_model
from hpcq.errors import StorageFault, WorkFailed
from hpcq.evaluate import weights_on_disk
from hpcq.evaluate.accelerate import AccelerateBackend
from hpcq.evaluate.questions import questions_of
from hpcq.evaluate.requests import Request
from hpcq.evaluate.spread_layers import Memory, parts_of, spread
from hpcq.failures import Failure, failure_of
from hpcq.quantize.worker import quantize
from hpcq.store import Response
from hpcq.units import EvaluateWork, Model, Offload, QuantizeWork, Scheme, Task, Variant
from tests.tiny_llama import write_base

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
BASE = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
FP8 = Scheme(
    name="fp8-dynamic", tool="llmcompressor", method="rtn", weights="fp8_e4m3", activations="fp8_e4m3", dynamic=True
)
GIB = 2**30


def _work(offload: Offload, path: Path | None = None, tasks: tuple[Task, ...] = ()) -> EvaluateWork:
    folder = str(path or staged_model(MODEL_ID))
    return EvaluateWork(
        variant=Variant(model=Model(id=MODEL_ID, path=folder), scheme=BASE),
        tasks=tasks,
        backend="accelerate",
        dtype="float32",
        checkpoint_path=folder,
        segments_path="",
        batch_size=2,
        offload=offload,
    )


def _tasks() -> tuple[Task, ...]:
    items = {name: str(staged_items(name)) for name in ("arc_challenge", "gsm8k")}
    return (
        Task(name="arc_challenge", limit=2, num_fewshot=2, data_path=items["arc_challenge"]),
        Task(name="gsm8k", limit=1, num_fewshot=0, max_gen_toks=4, data_path=items["gsm8k"]),
    )


def _answers(backend: AccelerateBackend, tasks: tuple[Task, ...]) -> dict[str, Response]:
    requests = questions_of(tasks, is_rehearsal=False).requests
    kinds: dict[str, list[Request]] = {}
    for request in requests:
        kinds.setdefault(request.kind, []).append(request)
    return {str(request.key): response for request, response in backend.stream(list(kinds.values()), ())}


def _nameless_files() -> list[str]:
    """Files without a name that this process holds open under the prefix of offloaded weights."""
    links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return [target for link in links if link.is_symlink() and "hpcq-offload-" in (target := os.readlink(link))]


def test_weights_on_disk_change_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the model on disk: log-likelihoods from shared prefixes and text are those of memory, bit by bit."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tasks = _tasks()
    found, described = [], []
    for offload in (Offload(), Offload(to="disk", host_gib=0.2)):
        backend = AccelerateBackend(_work(offload, tasks=tasks))
        backend.load()
        described.append(backend.describe())
        assert list(tmp_path.iterdir()) == []
        found.append(_answers(backend, tasks))

    assert found[0] == found[1]
    assert len(found[0]) > 8
    assert [one["prefix_sharing"] for one in described] == ["exact", "exact"]
    assert [one["offloaded_gib"] for one in described] == [0.0, pytest.approx(0.3, abs=0.03)]
    assert _nameless_files()
    assert all(name.endswith("(deleted)") for name in _nameless_files())
    del backend
    import gc

    gc.collect()
    assert _nameless_files() == []
