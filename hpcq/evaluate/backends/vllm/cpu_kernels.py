"""Choice of vLLM's (0.32) INT8 kernel on CPUs: that for AMX fails with float32 activations, but vLLM selects it.

Replaces a function that the kernel's module imports, so that the choice is vLLM's own except for float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from vllm.model_executor.kernels.linear.scaled_mm import cpu
from vllm.model_executor.layers.utils import check_cpu_sgl_kernel


def register() -> None:
    """Let models in float32 use the oneDNN kernel in this process."""
    cpu.check_cpu_sgl_kernel = _only_in_16_bits(check_cpu_sgl_kernel)


def _only_in_16_bits(check: Callable[..., bool]) -> Callable[..., bool]:
    @functools.wraps(check)
    def can_use_amx(n: int, k: int, dtype: torch.dtype) -> bool:
        # vLLM sets the default type to that of the model while it prepares the weights.
        return torch.get_default_dtype() != torch.float32 and check(n, k, dtype)

    return can_use_amx
