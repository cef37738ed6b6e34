"""Checkpoints that others quantized, in a run with vLLM: kernels, fallback, and the numbers of transformers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from hpcq.evaluate.backends.vllm.cpu_features import int8_saturates
from hpcq.store import read_responses, read_results
from tests.command_line import Hpcq
from tests.staged import staged_dataset
from tests.tiny_llama import write_base

MANIFEST = """
[run]
name = "{name}"
[[models]]
id = "org/tiny"
path = "base"
schemes = ["bf16"]
checkpoints = {checkpoints}
[tasks]
use = ["winogrande"]
limit = 2
data = "packages"
[tasks.options.winogrande]
num_fewshot = 0
[evaluate]
dtype = "float32"
"""
ENGINE = """
backend = "vllm"
[evaluate.engine]
kv_cache_gib = 0.25
max_num_seqs = 4
"""
CHECKPOINTS = ["./ct-fp8", "./nf4", "./gptq"]
W8A8 = "./ct-w8a8"
ON_VLLM = {
    "w8a8 (ct-w8a8)": "CompressedTensorsLinearMethod CompressedTensorsW8A8Int8 CPUInt8ScaledMMLinearKernel",
    "fp8-dynamic (ct-fp8)": "CompressedTensorsLinearMethod CompressedTensorsW8A8Fp8",
}
TOLERANCE = 5e-3
"""Relative: activations next to the middle of two rounded numbers differ where the last bits of float32 do."""
MAKE = "import sys; from pathlib import Path; from tests.quantized_by_others import make_checkpoint; "
MAKE += "[make_checkpoint(name, Path(sys.argv[1]), Path(name)) for name in sys.argv[2:]]"


def test_checkpoints_of_others_on_both_backends(core_python: Path, transformers_python: Path, tmp_path: Path) -> None:
    """vLLM evaluates the formats that it has kernels for, accelerate the others; the numbers of both agree."""
    staged_dataset("winogrande")
    write_base(tmp_path / "base")
    checkout = Path(__file__).parents[2]
    subprocess.run(
        [transformers_python, "-c", MAKE, tmp_path / "base", "ct-w8a8", "ct-fp8", "nf4", "gptq"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)},
        check=True,
    )
    hpcq = Hpcq(python=core_python, folder=tmp_path)
    checkpoints = CHECKPOINTS if int8_saturates() else [W8A8, *CHECKPOINTS]
    if int8_saturates():
        done = hpcq("submit", hpcq.write(MANIFEST.format(name="w8a8", checkpoints=[W8A8]) + ENGINE), timeout_s=1800)
        assert done.code == 1
        assert "INT8 kernel computes wrong numbers on this CPU" in done.err + done.out
    for name, engine in (("vllm", ENGINE), ("accelerate", "")):
        manifest = hpcq.write(MANIFEST.format(name=name, checkpoints=checkpoints) + engine)
        done = hpcq("submit", manifest, timeout_s=1800)
        assert done.code == 0, done.err + done.out
    on_vllm, on_accelerate = (
        {str(one.provenance["scheme"]): (one, read_responses(path, one.variant)) for one in read_results(path).variants}
        for path in (tmp_path / "runs" / name / "results.h5" for name in ("vllm", "accelerate"))
    )
    assert on_vllm.keys() == on_accelerate.keys()
    for scheme, (variant, responses) in on_vllm.items():
        is_here = scheme == "bf16" or scheme in ON_VLLM
        assert variant.provenance["backend"] == ("vllm" if is_here else "accelerate")
        assert str(variant.provenance["quantization_kernels"]).startswith(ON_VLLM.get(scheme, ""))
        tolerance = TOLERANCE if scheme in ON_VLLM else 1e-6
        for key, expected in on_accelerate[scheme][1].items():
            assert responses[key].loglikelihood == pytest.approx(expected.loglikelihood, rel=tolerance)
    if W8A8 in checkpoints:
        assert on_vllm["w8a8 (ct-w8a8)"][0].provenance["quantization"] == "compressed-tensors"
    rows = json.loads(hpcq("report", "vllm", "--format", "json").out)["rows"]
    schemes = {row["scheme"]: row for row in rows}
    assert all(row["baseline_value"] is not None for scheme, row in schemes.items() if scheme != "bf16")
    assert schemes["nf4 (nf4)"]["checkpoint_bytes"] == (tmp_path / "nf4" / "model.safetensors").stat().st_size
