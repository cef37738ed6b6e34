"""Offload of weights that exceed the memory, on a real model: the same responses, or a clear error."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from accelerate import dispatch_model
from compressed_tensors.offload import from_accelerate
from transformers import AutoConfig, AutoModelForCausalLM, CompressedTensorsConfig

from hpcq.catalog.gpus import find_gpu
from hpcq.catalog.models import find_model_config, find_model_shape
from hpcq.catalog.packages import staged_dataset_path, staged_model_path
from hpcq.core.attempts import Attempt, AttemptRecord, utc_now
from hpcq.core.error_classification import classify_error
from hpcq.core.errors import StorageError, WorkerError
from hpcq.core.failures import Failure
from hpcq.core.work_records import EvaluateWork, Model, Offload, QuantizeWork, Scheme, Task, Variant
from hpcq.evaluate.backends.transformers.backend import AccelerateBackend
from hpcq.evaluate.backends.transformers.device_map import NodeMemory, make_device_map, module_groups
from hpcq.evaluate.backends.transformers.disk_offload import offload_folder
from hpcq.evaluate.backends.transformers.quantized_loading import restore_dtypes
from hpcq.evaluate.request_set import build_request_set
from hpcq.evaluate.requests import Request
from hpcq.plan.memory.gpu_memory import MemoryDemand, Parallelism, gpu_memory
from hpcq.plan.memory.offload import plan_offload
from hpcq.quantize.worker import quantize
from hpcq.store import Response
from tests.tiny_llama import write_base
from tests.unit.quantize.conftest import FP8_DYNAMIC

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
BASE = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
GIB = 2**30


def _work(offload: Offload, path: Path | None = None, tasks: tuple[Task, ...] = ()) -> EvaluateWork:
    folder = str(path or staged_model_path(MODEL_ID))
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
    items = {name: str(staged_dataset_path(name)) for name in ("arc_challenge", "gsm8k")}
    return (
        Task(name="arc_challenge", limit=2, num_fewshot=2, data_path=items["arc_challenge"]),
        Task(name="gsm8k", limit=1, num_fewshot=0, max_gen_toks=4, data_path=items["gsm8k"]),
    )


def _answers(backend: AccelerateBackend, tasks: tuple[Task, ...]) -> dict[str, Response]:
    requests = build_request_set(tasks, is_synthetic=False).requests
    kinds: dict[str, list[Request]] = {}
    for request in requests:
        kinds.setdefault(request.kind, []).append(request)
    return {str(request.key): response for request, response in backend.stream(list(kinds.values()), ())}


def _unlinked_files() -> list[str]:
    """Return the open files of this process that have the prefix of offloaded weights."""
    links = list(Path("/proc/self/fd").iterdir())
    return [target for link in links if link.is_symlink() and "hpcq-offload-" in (target := str(link.readlink()))]


def test_weights_on_disk_change_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With most of the model on disk, log-likelihoods from shared prefixes and texts are the same bits."""
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
    assert _unlinked_files()
    assert all(name.endswith("(deleted)") for name in _unlinked_files())
    del backend
    gc.collect()
    assert _unlinked_files() == []


HERE = torch.device("cpu")
"""Stands for a GPU: accelerate offloads to the string 'cpu', but not to this device."""


def _offload_the_second_layer(model: Any) -> torch.nn.Module:
    """Offload a layer as transformers does with a device map of a GPU and host memory; return the layer."""
    devices = {"model.embed_tokens": HERE, "lm_head": HERE, "model.layers.0": HERE, "model.layers.1": "cpu"}
    devices |= {"model.norm": "cpu", "model.rotary_emb": "cpu"}
    dispatch_model(model, devices, main_device=HERE, skip_keys=model._skip_keys_device_placement)
    layer: torch.nn.Module = model.model.layers[1]
    assert all(parameter.is_meta for parameter in layer.parameters())
    return layer


def test_layers_offloaded_to_the_host_change_no_answer(tmp_path: Path) -> None:
    """With accelerate's hooks no bit differs; between two passes the weights of the layer are on `meta`."""
    base = write_base(tmp_path / "base", hidden_size=256)
    work = _work(Offload(), base, (replace(_tasks()[0], num_fewshot=0),))
    backend = AccelerateBackend(work)
    backend.load()
    expected = _answers(backend, work.tasks)
    layer = _offload_the_second_layer(backend._lm.model)

    assert _answers(backend, work.tasks) == expected
    assert all(parameter.is_meta for parameter in layer.parameters())
    assert backend.describe()["prefix_sharing"] == "exact"


def test_a_quantized_checkpoint_is_decompressed_in_offload_memory(tmp_path: Path) -> None:
    """compressed-tensors replaces the hooks, decompresses the weights and quantizes activations: no bit differs."""
    made = _fp8(tmp_path).checkpoint_path
    whole, offloaded_model = (
        AutoModelForCausalLM.from_pretrained(
            made, dtype=torch.bfloat16, quantization_config=CompressedTensorsConfig(dequantize=dequantize)
        )
        for dequantize in (True, False)
    )
    layer = _offload_the_second_layer(offloaded_model)
    offloaded_model.hf_quantizer.compressor.decompress_model(model=offloaded_model)
    tokens = torch.arange(64)[None]
    with torch.inference_mode():
        assert torch.equal(offloaded_model(tokens).logits, whole(tokens).logits)
    assert type(layer.mlp.up_proj._parameters).__name__ == "CPUCache"  # type: ignore[union-attr]
    assert layer.mlp.up_proj.weight.dtype == torch.bfloat16  # type: ignore[union-attr]


@pytest.mark.parametrize("is_converted", [False, True], ids=["accelerate", "compressed-tensors"])
def test_offloaded_tensors_get_the_asked_type(tmp_path: Path, *, is_converted: bool) -> None:
    """Tensors that a quantized load left in bfloat16 are computed in float32, with both kinds of hooks."""
    base = write_base(tmp_path / "base")
    expected = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for parameter in (model.model.layers[1].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight):
        parameter.data = parameter.data.to(torch.bfloat16)  # as in the file
    _offload_the_second_layer(model)
    if is_converted:
        from_accelerate(model)
    restore_dtypes(model, expected, torch.float32)
    tokens = torch.arange(64)[None]
    with torch.inference_mode():
        assert torch.equal(model(tokens).logits, expected(tokens).logits)


def _fp8(folder: Path) -> EvaluateWork:
    """Return the evaluation of a small model with FP8_DYNAMIC weights and activations."""
    variant = Variant(model=Model(id="tiny", path=str(write_base(folder / "base"))), scheme=FP8_DYNAMIC)
    made = str(folder / "fp8")
    record = AttemptRecord(unit="quantize", attempt=1, job_id="1", node="here", pid=1, start=utc_now())
    quantize(QuantizeWork(variant=variant, checkpoint_path=made), Attempt(folder / "attempts", record))
    return replace(_work(Offload()), variant=variant, checkpoint_path=made)


@pytest.mark.parametrize(
    ("offload", "text"),
    [
        (Offload(host_gib=0.2), "which do not fit into 0.2 GiB of host memory"),
        (Offload(to="cpu", host_gib=0.2), "Try evaluate.offload = 'disk' or a node with more memory."),
        (Offload(to="disk", host_gib=0.05), "Try a node with more memory"),
    ],
    ids=["none", "cpu", "disk"],
)
def test_a_model_that_does_not_fit_is_out_of_memory(offload: Offload, text: str) -> None:
    """The error names the manifest key, before a weight is read; with `disk`, if not even the embeddings fit."""
    with pytest.raises(WorkerError, match=r"its weights take 0\.50 GiB") as caught:
        AccelerateBackend(_work(offload)).load()
    assert classify_error(caught.value) is Failure.OUT_OF_MEMORY
    assert text in str(caught.value)


def test_a_full_disk_is_detected_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names TMPDIR, and the failure class is a full disk."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with (
        pytest.raises(StorageError, match=r"1073741824\.0 GiB of offloaded weights need: .* TMPDIR") as caught,
        offload_folder(2**60),
    ):
        pass
    assert classify_error(caught.value) is Failure.FULL_DISK
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_checkpoint_is_not_offloaded_to_disk(tmp_path: Path) -> None:
    """A quantized checkpoint is decompressed in memory; if that is too small, it is refused."""
    work = replace(_fp8(tmp_path), offload=Offload(to="disk", host_gib=0.0005))
    with pytest.raises(WorkerError, match=r"do not fit into .* Try a node with more memory\.$"):
        AccelerateBackend(work).load()


def _spread(gpus: tuple[float, ...], host: float, offload: Offload) -> dict[str, list[str]]:
    """Return the modules of SmolLM2-135M in float32 (0.50 GiB) by device."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(staged_model_path(MODEL_ID)), dtype=torch.float32
        )
    memory = NodeMemory(gpu_bytes=tuple(int(one * GIB) for one in gpus), host_bytes=int(host * GIB))
    found: dict[str, list[str]] = {}
    for name, device in make_device_map(model, memory, offload, model_name="x").devices.items():
        found.setdefault(str(device), []).append(name)
    return found


def test_without_offloading_layers_never_leave_the_gpus() -> None:
    """Two GPUs are balanced; two that are too small are an error, with any amount of host memory."""
    found = _spread((1, 1), 100, Offload())
    assert set(found) == {"0", "1"}
    assert {"model.embed_tokens", "lm_head"} <= set(found["0"])  # they share their weights
    assert 17 <= len(found["1"]) <= 21
    with pytest.raises(WorkerError, match=r"do not fit into 2 GPUs of 0.2 GiB .* evaluate.offload = 'cpu'"):
        _spread((0.25, 0.25), 100, Offload())


def test_with_offloading_gpus_are_filled_first_then_the_host_then_the_disk() -> None:
    """The limits of the plan are kept; without limits, a model that fits on the GPUs stays there."""
    planned = Offload(to="disk", gpu_gib=(0.3, 0.1), host_gib=0.05)
    found = _spread((1, 1), 100, planned)
    assert set(found) == {"0", "1", "cpu", "disk"}
    sizes = {len(names) for names in found.values()}
    assert sum(map(len, found.values())) == 30 + 4
    assert min(sizes) >= 3
    assert "model.layers.0" in found["0"]
    assert "model.layers.29" in found["disk"]
    assert set(_spread((1, 1), 100, Offload(to="cpu"))) == {"0", "1"}
    assert set(_spread((0.3,), 100, Offload(to="cpu"))) == {"0", "cpu"}


def test_module_groups_have_every_weight_once(tmp_path: Path) -> None:
    """Embeddings are first, blocks are whole, a tied head is in one group with the embeddings."""
    model = AutoModelForCausalLM.from_pretrained(write_base(tmp_path / "base"))
    groups = module_groups(model)
    assert groups[0].names == ("model.embed_tokens", "lm_head")
    assert sum(group.bytes for group in groups) == sum(one.nbytes for one in (*model.parameters(), *model.buffers()))


def _model_of(name: str) -> Any:
    """Return the model of this name in the catalog, without weights."""
    settings = dict(find_model_config(name) or {})
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-70B-Instruct", "google/gemma-7b-it", MODEL_ID])
@pytest.mark.parametrize("gpus", [2, 3, 7])
def test_the_worker_splits_the_layers_as_planned(name: str, gpus: int) -> None:
    """Without offload, the fullest GPU of the worker has the planned weights, apart from its buffers."""
    shape, memory = find_model_shape(name), NodeMemory(gpu_bytes=(100 * GIB,) * gpus, host_bytes=100 * GIB)
    assert shape
    model = _model_of(name)
    found = make_device_map(model, memory, Offload(), model_name=name)
    held: Counter[Any] = Counter()
    for group in module_groups(model):
        held[found.devices[group.names[0]]] += group.bytes
    # With no KV cache, the fullest GPU is the one with the most weights.
    demand = MemoryDemand(kv_cache_bytes=0)
    planned = gpu_memory(shape, BASE, Parallelism(pipeline=gpus, is_by_bytes=True), demand)
    assert max(held.values()) == pytest.approx(planned.weights, rel=1e-4)


@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize("to", ["cpu", "disk"])
def test_the_worker_does_what_was_planned(gpus: int, to: Literal["cpu", "disk"]) -> None:
    """Llama-3.1-70B on A100s of 40 GB: the worker fills each device as planned, apart from its buffers."""
    shape, gpu = find_model_shape("meta-llama/Llama-3.1-70B-Instruct"), find_gpu("A100-40")
    assert shape
    demand = MemoryDemand(sequences=4)
    planned = plan_offload(shape, BASE, demand, to, gpu=gpu, gpus=gpus, host_gib=200 if to == "cpu" else 40)
    assert planned
    model = _model_of("meta-llama/Llama-3.1-70B-Instruct")
    memory = NodeMemory(gpu_bytes=(int(gpu.memory_gib * GIB),) * gpus, host_bytes=40 * GIB)
    gpu_gib = tuple(capacity / GIB for capacity in planned.gpu_capacity_bytes)
    found = make_device_map(
        model,
        memory,
        Offload(to=to, gpu_gib=gpu_gib, host_gib=planned.host_capacity_bytes / GIB),
        model_name="Llama-3.1-70B",
    )
    block = planned.total_bytes / shape.layers
    assert found.host_bytes + found.disk_bytes == pytest.approx(
        planned.host_bytes + planned.disk_bytes, abs=1.1 * block
    )
    assert (found.disk_bytes > 0) is (to == "disk")
    assert sum(group.bytes for group in module_groups(model)) == pytest.approx(planned.total_bytes, rel=1e-5)
