"""Schemes that each backend computes, and the compute capability that they require."""

from __future__ import annotations

import pytest

from hpcq.catalog.gpus import find_gpu, gpu_names
from hpcq.catalog.kernels import Kernel, find_kernel, find_kernels, has_kernels, kv_cache_problem
from hpcq.catalog.schemes import find_scheme, scheme_names

WITHOUT_VLLM = (
    *(f"bitsandbytes:{name}" for name in ("nf4", "fp4", "int8")),
    "autogptq:gptq-w2a16",
    "autogptq:gptq-w3a16",
    "study-autogptq-w4a16",  # desc_act
)
"""Schemes that vLLM 0.32 does not compute: the planner evaluates them with accelerate."""


def kernel(backend: str, scheme: str, capability: tuple[int, int]) -> Kernel | None:
    """Return the backend's kernel for a scheme of the catalog."""
    found = find_scheme(scheme)
    assert found
    return find_kernel(backend, found, capability)


@pytest.mark.parametrize("name", [name for name in scheme_names() if not name.startswith("synthetic")])
@pytest.mark.parametrize("backend", ["vllm", "accelerate"])
def test_every_scheme_has_a_kernel_that_matches_it(name: str, backend: str) -> None:
    """Each backend computes each scheme of the catalog exactly on some GPU, except where vLLM has no kernel."""
    found = find_scheme(name)
    assert found
    capabilities = [gpu.compute_capability for gpu_name in gpu_names() if (gpu := find_gpu(gpu_name))]
    matches = any(
        kernel.matches_scheme and any(map(kernel.runs_on, capabilities)) for kernel in find_kernels(backend, found)
    )
    assert matches == (backend != "vllm" or name not in WITHOUT_VLLM)


@pytest.mark.parametrize(
    ("capability", "matches_scheme"),
    [((7, 0), None), ((8, 0), False), ((8, 6), False), ((8, 9), True), ((10, 0), True)],
)
def test_fp8_is_multiplied_from_capability_8_9(capability: tuple[int, int], *, matches_scheme: bool | None) -> None:
    """Below 8.9 vLLM keeps the weights in FP8 and computes in 16 bits, which is another scheme; Volta has no kernel."""
    for scheme in ("fp8", "fp8-dynamic"):
        found = kernel("vllm", scheme, capability)
        assert (found and found.matches_scheme) == matches_scheme
        assert found is None or found.matches_scheme == (found.note is None)


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
    """Weight-only kernels require bfloat16; INT8 is not supported on Blackwell."""
    assert (kernel("vllm", scheme, capability) is not None) == runs


@pytest.mark.parametrize(
    ("scheme", "capability", "name", "matches"),
    [
        ("nvfp4", (9, 0), "Marlin, weight-only", False),
        ("nvfp4", (10, 0), "NVFP4 tensor cores", True),
        ("nvfp4", (12, 0), "NVFP4 tensor cores", True),
        ("nvfp4-w4a16", (9, 0), "Marlin, weight-only", True),
        ("mxfp4", (9, 0), "Marlin, weight-only", False),
        ("mxfp4", (10, 0), "MXFP4 tensor cores", True),
        ("mxfp8", (9, 0), "Marlin, weight-only", False),
        ("mxfp8", (10, 0), "MXFP8 tensor cores", True),
        ("fp8-block", (8, 0), "Marlin, weight-only", False),
        ("fp8-block", (9, 0), "FP8 tensor cores", True),
        ("w4a8-fp8", (8, 9), None, None),
        ("w4a8-fp8", (9, 0), "CUTLASS W4A8", True),
        ("w4a8-fp8-g64", (9, 0), None, None),
        ("w4a8-fp8", (10, 0), None, None),
    ],
)
def test_the_formats_of_today_are_computed_as_declared_only_on_some_gpus(
    scheme: str, capability: tuple[int, int], name: str | None, *, matches: bool | None
) -> None:
    """FP4 and MX formats need Blackwell: below it, vLLM does not round activations. W4A8 needs Hopper."""
    found = kernel("vllm", scheme, capability)
    assert (found and found.name, found and found.matches_scheme) == (name, matches)


def test_an_option_selects_kernels_only_for_the_schemes_that_need_it() -> None:
    """'emulation' computes NVFP4 as defined on Hopper, 'triton' INT8 on Blackwell; others keep their kernels."""
    for scheme, option, capability, name in (
        ("nvfp4", "emulation", (9, 0), "emulation of NVFP4"),
        ("smoothquant-w8a8", "triton", (10, 0), "Triton INT8"),
        ("gptq-w4a16", "emulation", (9, 0), "Marlin; Machete on Hopper"),
        ("mxfp8", "emulation", (9, 0), "Marlin, weight-only"),
    ):
        known = find_scheme(scheme)
        assert known
        found = find_kernel("vllm", known, capability, linear_backend=option)
        assert found
        assert found.name == name


@pytest.mark.parametrize(
    ("backend", "capability", "phrase"),
    [
        ("vllm", (8, 9), None),
        (
            "vllm",
            (8, 0),
            "on compute capability 8.0: it does so from compute capability 8.9",
        ),
        ("vllm", None, "has no KV cache in fp8_e4m3 on CPUs"),
        ("accelerate", (9, 0), "on compute capability 9.0: use evaluate.backend = 'vllm'"),
        ("synthetic", (8, 0), None),
    ],
)
def test_a_quantized_kv_cache_is_refused_where_it_is_not_computed(
    backend: str, capability: tuple[int, int] | None, phrase: str | None
) -> None:
    """FP8 in the KV cache: vLLM on GPUs that have FP8. transformers shares prefixes in unquantized caches."""
    cached, plain = find_scheme("fp8-dynamic-kv8"), find_scheme("fp8-dynamic")
    assert cached
    assert plain
    assert kv_cache_problem(backend, plain, capability) is None
    problem = kv_cache_problem(backend, cached, capability)
    assert problem is None if phrase is None else phrase in (problem or "")


def test_a_rehearsal_has_no_kernels() -> None:
    """The kernels of the synthetic backend are not known."""
    assert not has_kernels("synthetic")
