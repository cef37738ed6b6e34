"""Invalid requests are refused before anything is submitted or written: exit code 2 and a helpful message."""
# ruff: noqa: E501 (each message is on one line, as the user reads it)

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpcq.cli import main

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
LLAMA_70B = "meta-llama/Llama-3.1-70B-Instruct"
LLAMA_405B = "meta-llama/Llama-3.1-405B-Instruct"
VICUNA_7B = "lmsys/vicuna-7b-v1.3"
VICUNA_33B = "lmsys/vicuna-33b-v1.3"
SHORT = "max_length = 8192\n"
ALONE = "fallback = false\n"
TP = "[evaluate.engine]\ntensor_parallel_size = {}\n"
MINE = '[[schemes.define]]\nname = "mine"\nbase = "{}"\n{}\n'


def node(gpu: str, gpus: float = 8, nodes: int = 1, memory_gib: float = 2000, more: str = "") -> str:
    """Return the TOML of a class 'gpu' of such nodes."""
    return (
        f'[gpu_classes.gpu]\ngpu = "{gpu}"\ngpus_per_node = {gpus}\nnodes = {nodes}\ncpus_per_node = 64\n'
        f"memory_gib = {memory_gib}\n{more}\n"
    )


CPUS = "[gpu_classes.cpu]\ncpus_per_node = 64\nmemory_gib = 64\n"
QUANTIZER = '[gpu_classes.big]\ngpu = "H100-80"\ngpus_per_node = 8\ncpus_per_node = 64\nmemory_gib = 2000\nroles = ["quantize"]\n'


@dataclass(frozen=True, kw_only=True)
class Invalid:
    """A request that is valid except for the given parts; `messages` are phrases of its refusal."""

    messages: tuple[str, ...]
    model: str = f'id = "{LLAMA_8B}"'
    schemes: str = "bf16"
    tasks: str = 'use = ["arc_challenge"]'
    evaluate: str = ""
    backend: str = "vllm"
    classes: str = node("H100-80")
    head: str = 'scheduler = "slurm"'
    more: str = ""


def model(name: str) -> str:
    """Return the key that names a model of the hub."""
    return f'id = "{name}"'


INVALID = {
    # Time limits
    "jobs that end before a model is loaded": Invalid(
        model=model(LLAMA_405B),
        evaluate=SHORT,
        classes=node("H100-80", nodes=2),
        head='scheduler = "slurm"\nslurm.time_limit_minutes = 20',
        messages=(
            "loading takes about 38 min on gpu, where jobs are limited to 20 min",
            "a larger slurm.time_limit_minutes, 125",
        ),
    ),
    "a class whose jobs end too early": Invalid(
        model=model(LLAMA_405B),
        schemes="fp8",
        evaluate=SHORT,
        classes=node("H100-80", more="max_minutes = 15"),
        messages=("where jobs are limited to 15 min", "a larger gpu_classes.gpu.max_minutes"),
    ),
    "jobs that end before the model to quantize is loaded": Invalid(
        model=model(LLAMA_405B),
        schemes="gptq-w4a16",
        evaluate=SHORT,
        classes=node("H100-80", more='roles = ["evaluate", "merge"]\n') + QUANTIZER + "max_minutes = 20\n",
        head='scheduler = "slurm"\nslurm.time_limit_minutes = 1440',
        messages=(
            "loading to quantize takes about 37 min on big, where jobs are limited to 20 min",
            "gpu_classes.big.max_minutes",
        ),
    ),
    "more work than the maximum number of jobs can do": Invalid(
        model=model(LLAMA_405B),
        backend="accelerate",
        classes="[gpu_classes.cpu]\ncpus_per_node = 1\nmemory_gib = 2000\n",
        tasks='suites = ["openllm-v1"]',
        evaluate="",
        head='scheduler = "slurm"\nslurm.time_limit_minutes = 120',
        messages=("answering takes about", "hours on cpu, more than 10,000 jobs of 120 min", "a faster GPU class"),
    ),
    "shards that load for longer than they answer": Invalid(
        model=model(LLAMA_405B),
        schemes="fp8",
        tasks='use = ["arc_challenge"]',
        evaluate="shards = 8\n" + SHORT,
        messages=("each of 8 shards would load for 18 min and answer for", "evaluate.shards = 1, or remove it"),
    ),
    # Memory
    "405b in bf16 on one node": Invalid(
        model=model(LLAMA_405B),
        evaluate=SHORT,
        messages=("needs 103.4 GiB per GPU at TP8 on gpu, which has 73.3", "fp8 or 1 more node of gpu (nodes = 2)"),
    ),
    "405b in 4 bits on four GPUs of 48 GB": Invalid(
        model=model(LLAMA_405B),
        schemes="gptq-w4a16",
        evaluate=SHORT,
        classes=node("A6000-48", 4) + QUANTIZER,
        messages=("needs 59.9 GiB per GPU at TP4", "1 more node of gpu"),
    ),
    "70b on one GPU": Invalid(
        model=model(LLAMA_70B),
        evaluate=SHORT,
        classes=node("H100-80", 1),
        messages=("needs 147.3 GiB per GPU at TP1", "gptq-w4a16 or 2 more nodes"),
    ),
    "a context whose KV cache does not fit": Invalid(
        model=model(LLAMA_70B),
        classes=node("A6000-48", 4),
        messages=("needs 48.6 GiB per GPU at TP4", "evaluate.max_length = 32768"),
    ),
    "more weights than the memory of a CPU node": Invalid(
        model=model(LLAMA_70B), classes=CPUS, messages=("needs 131.4 GiB of a node's memory on cpu, which has 64.0",)
    ),
    "a KV cache larger than the GPU": Invalid(
        evaluate="[evaluate.engine]\nkv_cache_gib = 100\n",
        messages=("GiB per GPU", "remove evaluate.engine.kv_cache_gib"),
    ),
    "a tenth of the GPU": Invalid(
        evaluate="[evaluate.engine]\ngpu_memory_utilization = 0.1\n",
        messages=("which has 8.0", "remove evaluate.engine.gpu_memory_utilization"),
    ),
    "quantizing with less memory than needed on a node": Invalid(
        model=model(LLAMA_405B),
        schemes="gptq-w4a16",
        evaluate=SHORT,
        classes=node("H100-80", memory_gib=500),
        messages=("quantizing needs 811.6 GiB of a node's memory on gpu, which has 500.0",),
    ),
    "quantizing with less memory than needed per unit": Invalid(
        model=model(LLAMA_70B),
        schemes="fp8",
        evaluate=SHORT,
        classes=node("H100-80", more="memory_gib_per_unit = 20\nmemory_option = 'none'"),
        messages=("of a node's memory on gpu, which has 20.0", "remove gpu_classes.gpu.memory_gib_per_unit"),
    ),
    "a calibration set larger than the GPU": Invalid(
        model=model(LLAMA_70B),
        schemes="awq-w4a16",
        evaluate=SHORT,
        more="[calibration]\nsamples = 512\n",
        messages=("quantizing needs 123.5 GiB on one GPU", "calibration.samples = 256"),
    ),
    # Divisibility
    "5 GPUs for 32 heads": Invalid(
        evaluate=TP.format(5),
        messages=("5 GPUs do not divide its attention heads (32)", "remove evaluate.engine.tensor_parallel_size"),
    ),
    "3 GPUs for 52 heads": Invalid(
        model=model(VICUNA_33B), evaluate=TP.format(3), messages=("3 GPUs do not divide its attention heads (52)",)
    ),
    "more GPUs per weight matrix than a node has": Invalid(
        classes=node("H100-80", 4),
        evaluate=TP.format(8),
        messages=("8 GPUs do not fit on one node", "remove evaluate.engine.tensor_parallel_size"),
    ),
    "nodes of three GPUs": Invalid(
        model=model(VICUNA_33B), classes=node("A6000-48", 3), messages=("needs 47.2 GiB per GPU at TP2", "gptq-w8a16")
    ),
    "groups of 128 in layers of 576": Invalid(
        model=model("HuggingFaceTB/SmolLM2-135M"),
        schemes="gptq-w4a16",
        messages=("576 is not a multiple of 128. Try 'gptq-w4a16-g64'",),
    ),
    "groups of 128 in a quarter of a layer": Invalid(
        model=model("meta-llama/Llama-2-7b-hf"),
        schemes="gptq-w4a16",
        evaluate=TP.format(4),
        messages=("groups of 128 do not divide 2752, the input width of mlp.down_proj on each of 4 GPUs",),
    ),
    # Kernels and GPUs
    "fp8 on V100": Invalid(
        schemes="fp8",
        evaluate=ALONE,
        classes=node("V100-32"),
        messages=("does not compute fp8_e4m3 weights with fp8_e4m3 activations on gpu (7.0)", "8.9"),
    ),
    "4 bits on V100": Invalid(
        schemes="gptq-w4a16", evaluate=ALONE, classes=node("V100-32"), messages=("from compute capability 8.0",)
    ),
    "bf16 on V100": Invalid(evaluate=ALONE, classes=node("V100-32"), messages=("does not compute bf16 weights", "8.0")),
    "int8 on Blackwell": Invalid(
        schemes="smoothquant-w8a8",
        evaluate=ALONE,
        classes=node("B200-180"),
        messages=(
            "int8 weights with int8 activations on gpu (10.0)",
            "to below 10.0",
            "Try this: evaluate.engine.linear_backend = 'triton' or fp8",
        ),
    ),
    "a quantized KV cache on A100": Invalid(
        schemes="fp8-dynamic-kv8",
        classes=node("A100-80"),
        messages=(
            "vLLM 0.32 has no KV cache in fp8_e4m3 on compute capability 8.0: it does so from compute capability 8.9",
        ),
    ),
    "4-bit weights with FP8 activations on A100": Invalid(
        schemes="mine",
        evaluate=ALONE,
        classes=node("A100-80"),
        more=MINE.format("gptq-w4a16", 'activations = "fp8_e4m3"'),
        messages=("from compute capability 9.0 to below 10.0", "Try this: gptq-w4a16"),
    ),
    "4-bit weights with INT8 activations": Invalid(
        schemes="mine",
        evaluate=ALONE,
        more=MINE.format("gptq-w4a16", 'activations = "int8"'),
        messages=("no GPU helps", "gptq-w4a16"),
    ),
    "emulation of an unsupported scheme": Invalid(
        schemes="fp8",
        backend="synthetic",
        classes=node("V100-32"),
        evaluate=ALONE + 'synthetic = { emulate = "vllm" }',
        messages=("vLLM 0.32 does not compute fp8_e4m3 weights",),
    ),
    "an unknown GPU": Invalid(classes=node("H100"), messages=("unknown GPU 'H100'", "Did you mean 'H100-80'?")),
    "a slice of a GPU": Invalid(classes=node("H100-1g.10gb"), messages=("unknown GPU 'H100-1g.10gb'",)),
    "half a GPU": Invalid(classes=node("H100-80", 2.5), messages=("gpus_per_node: must be an integer, not 2.5",)),
    "a negative number of GPUs": Invalid(
        classes=node("H100-80", -1), messages=("gpus_per_node: must be 0 or more, not -1",)
    ),
    "GPUs without a name": Invalid(
        classes="[gpu_classes.x]\ngpus_per_node = 4\ncpus_per_node = 4\nmemory_gib = 4\n",
        messages=("gpu: is missing: name the GPU of this class, one of B200-180",),
    ),
    "a GPU without a number per node": Invalid(
        classes='[gpu_classes.x]\ngpu = "H100-80"\ncpus_per_node = 4\nmemory_gib = 4\n',
        messages=("gpus_per_node: is missing",),
    ),
    # The cluster
    "no class to quantize on": Invalid(
        classes=node("H100-80", more='roles = ["evaluate", "merge"]'),
        messages=("no class has the role 'quantize'; add it to one of them",),
    ),
    "more CPUs per unit than a node has": Invalid(
        classes=node("H100-80", more="cpus_per_unit = 100"), messages=("must not exceed cpus_per_node (64)",)
    ),
    "more memory per unit than a node has": Invalid(
        classes=node("H100-80", more="memory_gib_per_unit = 3000"), messages=("must not exceed memory_gib (2000)",)
    ),
    "a time limit among the extra options": Invalid(
        head='scheduler = "slurm"\n[slurm.extra]\ntime = 5',
        messages=("is set by hpcq; use slurm.time_limit_minutes",),
    ),
    "Slurm's settings without Slurm": Invalid(
        head='scheduler = "local"\n[slurm]\naccount = "x"', messages=("slurm: is not allowed with scheduler = 'local'",)
    ),
    "a device that no node has": Invalid(
        backend="accelerate",
        evaluate='device = "cuda"',
        classes=CPUS,
        messages=("no node class of profile 'c' with the role 'evaluate' has GPUs. Use 'auto'",),
    ),
    # Lengths
    "a length beyond the model's context": Invalid(
        model=model(VICUNA_7B),
        evaluate=SHORT,
        messages=("8192 exceeds the context length of every model; the longest is 2048 of lmsys/vicuna-7b-v1.3",),
    ),
    "answers as long as the context": Invalid(
        model=model(VICUNA_7B),
        tasks='use = ["gsm8k"]',
        evaluate="max_length = 256",
        messages=("'gsm8k' generates up to 256 tokens, but lmsys/vicuna-7b-v1.3 is limited to 256 with the prompt",),
    ),
    "calibration sequences beyond the model's context": Invalid(
        model=model(VICUNA_7B),
        schemes="gptq-w4a16",
        more="[calibration]\nsequence_length = 4096\n",
        messages=("4096 exceeds the context length of lmsys/vicuna-7b-v1.3, 2048 tokens. Use 2048 or less",),
    ),
    # Names
    "a model that no package contains": Invalid(
        model=model("meta-llama/Llama-3.1-8B-Instuct") + '\nsource = "packages"',
        messages=(
            "no package contains the model 'meta-llama/Llama-3.1-8B-Instuct'",
            "Did you mean 'meta-llama/Llama-3.1-8B-Instruct'?",
        ),
    ),
    "a model without its code": Invalid(
        model=model("Qwen/Qwen-7B-Chat"),
        evaluate=ALONE,
        messages=("vLLM 0.32 does not support QWenLMHeadModel", "evaluate.backend = 'accelerate'"),
    ),
    "a folder without a checkpoint": Invalid(
        model='path = "."', messages=("'.' is not a checkpoint: ", "config.json is missing. Copy or download it")
    ),
    "an unknown scheme": Invalid(
        schemes="gptq-w4a61", messages=("unknown scheme 'gptq-w4a61'", "Did you mean 'gptq-w4a16'?")
    ),
    "a group size of zero": Invalid(
        schemes="gptq-w4a16-g0", messages=("'gptq-w4a16-g0' does not exist: the group size must be 1 or more.",)
    ),
    "a group size for a scheme without groups": Invalid(
        schemes="fp8-g64", messages=("'fp8' has no groups. Use 'fp8'",)
    ),
    "an unknown tool": Invalid(
        schemes="mine",
        more=MINE.format("gptq-w4a16", 'tool = "autogpt"'),
        messages=("must be one of none, llmcompressor, synthetic, auto", "not 'autogpt'. Did you mean 'autogptq'?"),
    ),
    "an unknown task": Invalid(tasks='use = ["arc_chalenge"]', messages=("Did you mean 'arc_challenge'?",)),
    "only benchmarks that cannot run yet": Invalid(
        tasks='suites = ["mt-bench"]', messages=("mt-bench: hpcq", "cannot run it yet. Try this: other tasks")
    ),
    "an unknown backend": Invalid(
        backend="sglang", messages=("must be one of accelerate, vllm, synthetic, not 'sglang'",)
    ),
    # Contradictions
    "vLLM's engine without vLLM": Invalid(
        backend="accelerate",
        evaluate=TP.format(2),
        messages=("evaluate.engine: is not allowed with backend 'accelerate'",),
    ),
    "synthetic options for a real backend": Invalid(
        evaluate="synthetic = { request_seconds = 1.0 }",
        messages=("evaluate.synthetic: is not allowed with backend 'vllm'",),
    ),
    "a synthetic checkpoint for vLLM": Invalid(
        schemes="synthetic-w4a16", messages=("'synthetic-w4a16' is for rehearsals: 'vllm' cannot load it",)
    ),
    "groups without a size": Invalid(
        schemes="mine",
        more=MINE.format("gptq-w8a16", 'granularity = "group"'),
        messages=("'group' requires a group_size",),
    ),
    "damping without GPTQ": Invalid(
        schemes="mine",
        more=MINE.format("fp8", "damping = 0.1"),
        messages=("damping: is not allowed with method 'rtn'",),
    ),
    "fewer tokens than sequences": Invalid(
        evaluate="[evaluate.engine]\nmax_num_seqs = 400\nmax_num_batched_tokens = 100\n",
        messages=("max_num_batched_tokens: must be max_num_seqs (400) or more, not 100",),
    ),
}


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """Restore the umask, which the command line sets for the whole process."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize("invalid", INVALID.values(), ids=INVALID)
def test_an_invalid_request_is_refused_with_a_helpful_message(
    invalid: Invalid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`submit` exits with code 2 before any Slurm call, prints the message, and writes nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    Path("c.toml").write_text(f'name = "c"\n{invalid.head}\n{invalid.classes}')
    Path("m.toml").write_text(
        f'[run]\nname = "x"\n[cluster]\nprofile = "c.toml"\n[[models]]\n{invalid.model}\n[schemes]\n'
        f'use = ["{invalid.schemes}"]\n[tasks]\n{invalid.tasks}\n[evaluate]\nbackend = "{invalid.backend}"\n{invalid.evaluate}\n{invalid.more}'
    )
    assert main(["submit", "m.toml"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    for phrase in invalid.messages:
        assert phrase in output.err
    assert {path.name for path in tmp_path.iterdir()} == {"c.toml", "m.toml"}
