"""A run with two backends: vLLM's CPU build has no kernel for static FP8, so accelerate evaluates that variant."""

from __future__ import annotations

from pathlib import Path

from hpcq.store import read_results
from tests.command_line import Hpcq
from tests.staged import staged_dataset
from tests.tiny_llama import write_base, write_calibration

MANIFEST = """
[run]
name = "both"
[[models]]
id = "tiny"
path = "base"
[schemes]
use = ["bf16", "fp8"]
[calibration]
dataset = "text.jsonl"
samples = 8
sequence_length = 64
[tasks]
use = ["winogrande"]
limit = 2
data = "packages"
[tasks.options.winogrande]
num_fewshot = 0
[evaluate]
backend = "vllm"
[evaluate.engine]
kv_cache_gib = 0.25
max_num_seqs = 4
"""


def test_accelerate_evaluates_variants_without_a_vllm_kernel(core_python: Path, tmp_path: Path) -> None:
    """The plan has the reason, each variant's results have their backend, and the report marks the difference."""
    staged_dataset("winogrande")
    write_base(tmp_path / "base")
    write_calibration(tmp_path / "text.jsonl")
    hpcq = Hpcq(python=core_python, folder=tmp_path)
    manifest = hpcq.write(MANIFEST)
    done = hpcq("submit", manifest, timeout_s=1800)
    assert done.code == 0, done.err + done.out
    [note] = [note for note in hpcq("plan", manifest, "--json").document["notes"] if "evaluated by" in note]
    assert "does not compute fp8_e4m3 weights with fp8_e4m3 activations on the CPUs of cpu" in note
    variants = {
        str(one.provenance["scheme"]): one for one in read_results(tmp_path / "runs" / "both" / "results.h5").variants
    }
    assert {name: one.provenance["backend"] for name, one in variants.items()} == {"bf16": "vllm", "fp8": "accelerate"}
    assert all(one.scores for one in variants.values())
    report = hpcq("report", "both")
    assert "†" in report.out
    assert note in " ".join(report.out.split())
