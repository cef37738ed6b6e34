"""CPUs on which sums of INT8 products saturate.

Observed: on a CPU without VNNI, vLLM's log-likelihoods of a W8A8 checkpoint were 2 to 4 nats below those of the
accelerate backend, without a mark.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq.evaluate.backends.vllm.cpu_features import int8_saturates


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags : fpu avx avx2 fma\n", True),
        ("flags : avx2 avx512f avx512bw\n", True),
        ("flags : avx2 avx_vnni\n", False),
        ("flags : avx2 avx512f avx512_vnni amx_int8\n", False),
        ("Features : fp asimd asimddp\n", False),
    ],
)
def test_vnni_decides_on_x86(text: str, expected: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """Arm's INT8 instructions do not saturate, and an unreadable file is not held against the CPU."""
    (tmp_path / "cpuinfo").write_text(text)
    assert int8_saturates(tmp_path / "cpuinfo") is expected
    assert int8_saturates(tmp_path / "absent") is False
