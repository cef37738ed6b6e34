"""Which scheme runs in which back end, and from which compute capability."""

from __future__ import annotations

import pytest

from hpcq.catalog.gpus import find_gpu, gpu_names
from hpcq.catalog.kernels import Kernel, find_kernel, find_kernels, has_architecture, has_kernels
from hpcq.catalog.models import find_shape
from hpcq.catalog.schemes import find_scheme, scheme_names


def kernel(backend: str, scheme: str, capability: tuple[int, int]) -> Kernel | None:
    """What the back end computes the catalog's scheme with."""
    found = find_scheme(scheme)
    assert found
    return find_kernel(backend, found, capability)


@pytest.mark.parametrize("name", [name for name in scheme_names() if not name.startswith("synthetic")])
@pytest.mark.parametrize("backend", ["vllm", "accelerate"])
def test_every_scheme_runs_somewhere_as_it_says(name: str, backend: str) -> None:
    """Each of the catalog's schemes has a faithful kernel in each back end, on a GPU that the catalog has."""
    found = find_scheme(name)
    assert found
    capabilities = [gpu.compute_capability for gpu_name in gpu_names() if (gpu := find_gpu(gpu_name))]
    assert any(kernel.faithful and any(map(kernel.runs_on, capabilities)) for kernel in find_kernels(backend, found))


@pytest.mark.parametrize(
    ("capability", "faithful"), [((7, 0), None), ((8, 0), False), ((8, 6), False), ((8, 9), True), ((10, 0), True)]
)
def test_fp8_is_multiplied_from_8_9(capability: tuple[int, int], *, faithful: bool | None) -> None:
    """Below, vLLM keeps the weights in FP8 and computes in 16 bits, which is another scheme; Volta has nothing."""
    for scheme in ("fp8", "fp8-dynamic"):
        found = kernel("vllm", scheme, capability)
        assert (found and found.faithful) == faithful
        assert found is None or found.faithful == (found.note is None)


@pytest.mark.parametrize(
    ("scheme", "capability", "runs"),
    [
        ("gptq-w4a16", (7, 0), False),
        ("gptq-w4a16", (8, 0), True),
        ("awq-w4a16", (10, 0), True),
        ("gptq-w8a16", (8, 6), True),
        ("smoothquant-w8a8", (9, 0), True),
        ("smoothquant-w8a8", (10, 0), False),
        ("bf16", (7, 0), False),
    ],
)
def test_vllm_has_kernels_where_its_sources_say(scheme: str, capability: tuple[int, int], *, runs: bool) -> None:
    """Weight-only kernels begin where bfloat16 does; INT8 ends before Blackwell."""
    assert (kernel("vllm", scheme, capability) is not None) == runs


def test_a_back_end_may_lack_a_models_code() -> None:
    """vLLM 0.32 has the first Qwen no more; transformers takes it, and nobody lacks what is not named."""
    qwen = find_shape("Qwen/Qwen-7B-Chat")
    assert qwen
    assert not has_architecture("vllm", qwen.architecture)
    assert has_architecture("accelerate", qwen.architecture)
    assert has_architecture("vllm", None)
    assert not has_kernels("synthetic")
