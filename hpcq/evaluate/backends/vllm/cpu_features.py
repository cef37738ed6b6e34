"""Features of the CPU on which numbers of vLLM's (0.32) kernels depend."""

from __future__ import annotations

from pathlib import Path

INT8_KERNEL = "CPUInt8ScaledMMLinearKernel"
"""Name of vLLM's kernel for INT8 weights and activations on CPUs, which calls oneDNN."""

_CPU_INFO = Path("/proc/cpuinfo")
_EXACT = ("avx512_vnni", "avx_vnni", "amx_int8")


def int8_saturates(cpu_info: Path = _CPU_INFO) -> bool:
    """Return whether sums of INT8 products overflow in oneDNN on this CPU: on x86 without VNNI and AMX.

    Its instructions for such CPUs add pairs of products in 16 bits, with saturation (oneDNN's documentation, "Nuances
    of int8 computations"). Measured on an AMD EPYC of the Zen 3 generation: log-likelihoods 2 to 4 nats too low.

    Args:
        cpu_info: File with the features of the CPU.
    """
    try:
        lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), None)
    return flags is not None and not any(flag in flags for flag in _EXACT)
