"""Wrong requests, each refused before anything is submitted or written: exit code 2, and the sentence that helps."""
# ruff: noqa: E501 (each sentence stands on one line, as its user reads it)

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
    """A class 'gpu' of such nodes."""
    return (
        f'[gpu_classes.gpu]\ngpu = "{gpu}"\ngpus_per_node = {gpus}\nnodes = {nodes}\ncpus_per_node = 64\n'
        f"memory_gib = {memory_gib}\n{more}\n"
    )


CPUS = "[gpu_classes.cpu]\ncpus_per_node = 64\nmemory_gib = 64\n"
QUANTIZER = '[gpu_classes.big]\ngpu = "H100-80"\ngpus_per_node = 8\ncpus_per_node = 64\nmemory_gib = 2000\nroles = ["quantize"]\n'


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """A request, right but for what is given; `says` are phrases of its refusal."""

    says: tuple[str, ...]
    model: str = f'id = "{LLAMA_8B}"'
    schemes: str = "bf16"
    tasks: str = 'use = ["arc_challenge"]'
    evaluate: str = ""
    backend: str = "vllm"
    classes: str = node("H100-80")
    head: str = 'scheduler = "slurm"'
    more: str = ""


def model(name: str) -> str:
    """The key that names a model of the hub."""
    return f'id = "{name}"'


WRONG = {
    # Too long
    "jobs that end before a model is loaded": Wrong(
        model=model(LLAMA_405B),
        evaluate=SHORT,
        classes=node("H100-80", nodes=2),
        head='scheduler = "slurm"\nslurm.time_limit_minutes = 20',
        says=(
            "loading takes about 38 min on gpu, whose jobs end after 20 min",
            "a larger slurm.time_limit_minutes, 125",
        ),
    ),
    "a class whose jobs end too early": Wrong(
        model=model(LLAMA_405B),
        schemes="fp8",
        evaluate=SHORT,
        classes=node("H100-80", more="max_minutes = 15"),
        says=("whose jobs end after 15 min", "a larger gpu_classes.gpu.max_minutes"),
    ),
    "jobs that end before there is something to quantize": Wrong(
        model=model(LLAMA_405B),
        schemes="gptq-w4a16",
        evaluate=SHORT,
        classes=node("H100-80", more='roles = ["evaluate", "merge"]\n') + QUANTIZER + "max_minutes = 20\n",
        head='scheduler = "slurm"\nslurm.time_limit_minutes = 1440',
        says=(
            "loading to quantize takes about 37 min on big, whose jobs end after 20 min",
            "gpu_classes.big.max_minutes",
        ),
    ),
    "more work than any number of jobs does": Wrong(
        model=model(LLAMA_405B),
        backend="accelerate",
        classes="[gpu_classes.cpu]\ncpus_per_node = 1\nmemory_gib = 2000\n",
        tasks='suites = ["openllm-v1"]',
        evaluate="",
        head='scheduler = "slurm"\nslurm.time_limit_minutes = 120',
        says=("answering takes about", "hours on cpu, more than 10,000 jobs of 120 min", "a faster GPU class"),
    ),
    "shards that load for longer than they answer": Wrong(
        model=model(LLAMA_405B),
        schemes="fp8",
        tasks='use = ["arc_challenge"]',
        evaluate="shards = 8\n" + SHORT,
        says=("each of 8 shards would load for 18 min to answer for", "evaluate.shards = 1, or leave it out"),
    ),
    # Too big
    "405b in bf16 on one node": Wrong(
        model=model(LLAMA_405B),
        evaluate=SHORT,
        says=("needs 103.4 GiB a GPU at TP8 on gpu, which has 73.3", "fp8 or 1 more node of gpu (nodes = 2)"),
    ),
    "405b in 4 bits on four cards of 48 GB": Wrong(
        model=model(LLAMA_405B),
        schemes="gptq-w4a16",
        evaluate=SHORT,
        classes=node("A6000-48", 4) + QUANTIZER,
        says=("needs 59.9 GiB a GPU at TP4", "1 more node of gpu"),
    ),
    "70b on one GPU": Wrong(
        model=model(LLAMA_70B),
        evaluate=SHORT,
        classes=node("H100-80", 1),
        says=("needs 147.3 GiB a GPU at TP1", "gptq-w4a16 or 2 more nodes"),
    ),
    "a context that leaves no room": Wrong(
        model=model(LLAMA_70B),
        classes=node("A6000-48", 4),
        says=("needs 48.6 GiB a GPU at TP4", "evaluate.max_length = 32768"),
    ),
    "more weights than a node of CPUs holds": Wrong(
        model=model(LLAMA_70B), classes=CPUS, says=("needs 131.4 GiB of a node's memory on cpu, which has 64.0",)
    ),
    "a KV cache beyond the GPU": Wrong(
        evaluate="[evaluate.engine]\nkv_cache_gib = 100\n", says=("GiB a GPU", "leave evaluate.engine.kv_cache_gib out")
    ),
    "a tenth of the GPU": Wrong(
        evaluate="[evaluate.engine]\ngpu_memory_utilization = 0.1\n",
        says=("which has 8.0", "leave evaluate.engine.gpu_memory_utilization out"),
    ),
    "quantizing beyond a node's memory": Wrong(
        model=model(LLAMA_405B),
        schemes="gptq-w4a16",
        evaluate=SHORT,
        classes=node("H100-80", memory_gib=500),
        says=("quantizing needs 811.6 GiB of a node's memory on gpu, which has 500.0",),
    ),
    "quantizing beyond a unit's memory": Wrong(
        model=model(LLAMA_70B),
        schemes="fp8",
        evaluate=SHORT,
        classes=node("H100-80", more="memory_gib_per_unit = 20"),
        says=("of a node's memory on gpu, which has 20.0", "leave gpu_classes.gpu.memory_gib_per_unit out"),
    ),
    "a calibration set beyond the GPU": Wrong(
        model=model(LLAMA_70B),
        schemes="awq-w4a16",
        evaluate=SHORT,
        more="[calibration]\nsamples = 512\n",
        says=("quantizing needs 123.5 GiB of one GPU", "calibration.samples = 256"),
    ),
    # Undividable
    "5 GPUs for 32 heads": Wrong(
        evaluate=TP.format(5),
        says=("5 GPUs do not divide its attention heads (32)", "leave evaluate.engine.tensor_parallel_size out"),
    ),
    "3 GPUs for 52 heads": Wrong(
        model=model(VICUNA_33B), evaluate=TP.format(3), says=("3 GPUs do not divide its attention heads (52)",)
    ),
    "more GPUs for a matrix than a node has": Wrong(
        classes=node("H100-80", 4),
        evaluate=TP.format(8),
        says=("it has no 8 GPUs in a node", "leave evaluate.engine.tensor_parallel_size out"),
    ),
    "nodes of three GPUs": Wrong(
        model=model(VICUNA_33B), classes=node("A6000-48", 3), says=("needs 47.2 GiB a GPU at TP2", "gptq-w8a16")
    ),
    "groups of 128 in layers of 576": Wrong(
        model=model("HuggingFaceTB/SmolLM2-135M"),
        schemes="gptq-w4a16",
        says=("576 is not a multiple of 128. Try 'gptq-w4a16-g64'",),
    ),
    "groups of 128 in a quarter of a layer": Wrong(
        model=model("meta-llama/Llama-2-7b-hf"),
        schemes="gptq-w4a16",
        evaluate=TP.format(4),
        says=("groups of 128 do not divide 2752, what 4 GPUs have of mlp.down_proj",),
    ),
    # Kernels and GPUs
    "fp8 on V100": Wrong(
        schemes="fp8",
        evaluate=ALONE,
        classes=node("V100-32"),
        says=("does not compute fp8_e4m3 weights with fp8_e4m3 activations on gpu (7.0)", "8.9"),
    ),
    "4 bits on V100": Wrong(
        schemes="gptq-w4a16", evaluate=ALONE, classes=node("V100-32"), says=("from compute capability 8.0",)
    ),
    "bf16 on V100": Wrong(evaluate=ALONE, classes=node("V100-32"), says=("does not compute bf16 weights", "8.0")),
    "int8 on Blackwell": Wrong(
        schemes="smoothquant-w8a8",
        evaluate=ALONE,
        classes=node("B200-180"),
        says=("int8 weights with int8 activations on gpu (10.0)", "to below 10.0", "Try this: fp8"),
    ),
    "4-bit weights with FP8 activations on A100": Wrong(
        schemes="mine",
        evaluate=ALONE,
        classes=node("A100-80"),
        more=MINE.format("gptq-w4a16", 'activations = "fp8_e4m3"'),
        says=("from compute capability 9.0 to below 10.0", "Try this: gptq-w4a16"),
    ),
    "4-bit weights with INT8 activations": Wrong(
        schemes="mine",
        evaluate=ALONE,
        more=MINE.format("gptq-w4a16", 'activations = "int8"'),
        says=("no GPU helps", "gptq-w4a16"),
    ),
    "a rehearsal of what cannot be": Wrong(
        schemes="fp8",
        backend="synthetic",
        classes=node("V100-32"),
        evaluate=ALONE + 'rehearsal = { stands_for = "vllm" }',
        says=("vLLM 0.32 does not compute fp8_e4m3 weights",),
    ),
    "an unknown GPU": Wrong(classes=node("H100"), says=("unknown GPU 'H100'", "Did you mean 'H100-80'?")),
    "a slice of a GPU": Wrong(classes=node("H100-1g.10gb"), says=("unknown GPU 'H100-1g.10gb'",)),
    "half a GPU": Wrong(classes=node("H100-80", 2.5), says=("gpus_per_node: must be a whole number, not 2.5",)),
    "fewer GPUs than none": Wrong(classes=node("H100-80", -1), says=("gpus_per_node: must be 0 or more, not -1",)),
    "GPUs of no kind": Wrong(
        classes="[gpu_classes.x]\ngpus_per_node = 4\ncpus_per_node = 4\nmemory_gib = 4\n",
        says=("gpu: is missing: say which GPU the class has, one of B200-180",),
    ),
    "a GPU of no number": Wrong(
        classes='[gpu_classes.x]\ngpu = "H100-80"\ncpus_per_node = 4\nmemory_gib = 4\n',
        says=("gpus_per_node: is missing",),
    ),
    # The cluster
    "nowhere to quantize": Wrong(
        classes=node("H100-80", more='roles = ["evaluate", "merge"]'),
        says=("no class has the role 'quantize'; add it to the roles of one",),
    ),
    "more cores a unit than a node has": Wrong(
        classes=node("H100-80", more="cpus_per_unit = 100"), says=("must not be above cpus_per_node (64)",)
    ),
    "more memory a unit than a node has": Wrong(
        classes=node("H100-80", more="memory_gib_per_unit = 3000"), says=("must not be above memory_gib (2000)",)
    ),
    "a time limit behind our back": Wrong(
        head='scheduler = "slurm"\n[slurm.extra]\ntime = 5',
        says=("is an option that hpcq sets itself; use slurm.time_limit_minutes",),
    ),
    "Slurm's settings without Slurm": Wrong(
        head='scheduler = "local"\n[slurm]\naccount = "x"', says=("slurm: has no meaning where scheduler = 'local'",)
    ),
    "a device that no node has": Wrong(
        backend="accelerate",
        evaluate='device = "cuda"',
        classes=CPUS,
        says=("no class of profile 'c' with the role 'evaluate' has GPUs. Use 'auto'",),
    ),
    # Lengths
    "a length beyond the model": Wrong(
        model=model(VICUNA_7B),
        evaluate=SHORT,
        says=("8192 is more than any of the models takes: lmsys/vicuna-7b-v1.3 has 2048",),
    ),
    "answers that leave no room for the question": Wrong(
        model=model(VICUNA_7B),
        tasks='use = ["gsm8k"]',
        evaluate="max_length = 256",
        says=("an answer of 'gsm8k' may have 256 tokens, and lmsys/vicuna-7b-v1.3 takes 256 with the prompt",),
    ),
    "calibration texts beyond the model": Wrong(
        model=model(VICUNA_7B),
        schemes="gptq-w4a16",
        more="[calibration]\nsequence_length = 4096\n",
        says=("4096 is more than lmsys/vicuna-7b-v1.3 takes, 2048 tokens. Use 2048 or less",),
    ),
    # Names
    "an unknown model": Wrong(
        model=model("acme/Foo-7B"), says=("unknown model 'acme/Foo-7B'; add the folder of its checkpoint as path",)
    ),
    "a misspelt model": Wrong(
        model=model("meta-llama/Llama-3.1-8B-Instuct"), says=("Did you mean 'meta-llama/Llama-3.1-8B-Instruct'?",)
    ),
    "a model without its code": Wrong(
        model=model("Qwen/Qwen-7B-Chat"),
        evaluate=ALONE,
        says=("vLLM 0.32 has no QWenLMHeadModel", "evaluate.backend = 'accelerate'"),
    ),
    "a folder that is no checkpoint": Wrong(model='path = "."', says=("'.' is no checkpoint: it has no config.json",)),
    "an unknown scheme": Wrong(
        schemes="gptq-w4a61", says=("unknown scheme 'gptq-w4a61'", "Did you mean 'gptq-w4a16'?")
    ),
    "groups in a scheme without": Wrong(schemes="fp8-g64", says=("'fp8' has no groups. Use 'fp8'",)),
    "an unknown tool": Wrong(
        schemes="mine",
        more=MINE.format("gptq-w4a16", 'tool = "autogptq"'),
        says=("must be one of none, llmcompressor, synthetic, not 'autogptq'",),
    ),
    "an unknown task": Wrong(tasks='use = ["arc_chalenge"]', says=("Did you mean 'arc_challenge'?",)),
    "nothing but what cannot run yet": Wrong(
        tasks='suites = ["mt-bench"]', says=("mt-bench: hpcq", "cannot run it yet. Try this: other tasks")
    ),
    "an unknown back end": Wrong(backend="sglang", says=("must be one of accelerate, vllm, synthetic, not 'sglang'",)),
    # Contradictions
    "vLLM's engine without vLLM": Wrong(
        backend="accelerate", evaluate=TP.format(2), says=("evaluate.engine: has no meaning with backend 'accelerate'",)
    ),
    "a pace without a rehearsal": Wrong(
        evaluate="rehearsal = { request_seconds = 1.0 }",
        says=("evaluate.rehearsal: has no meaning with backend 'vllm'",),
    ),
    "a stand-in for vLLM to load": Wrong(
        schemes="synthetic-w4a16", says=("'synthetic-w4a16' is for rehearsals: 'vllm' cannot load it",)
    ),
    "groups of no size": Wrong(
        schemes="mine", more=MINE.format("gptq-w8a16", 'granularity = "group"'), says=("'group' needs a group_size",)
    ),
    "damping without GPTQ": Wrong(
        schemes="mine", more=MINE.format("fp8", "damping = 0.1"), says=("damping: has no meaning with method 'rtn'",)
    ),
    "fewer tokens than sequences": Wrong(
        evaluate="[evaluate.engine]\nmax_num_seqs = 400\nmax_num_batched_tokens = 100\n",
        says=("max_num_batched_tokens: must be max_num_seqs (400) or more, not 100",),
    ),
}


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """The command line sets it for the whole process, which is this one."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_request_is_refused_with_the_sentence_that_helps(
    wrong: Wrong, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`submit` ends with exit code 2 before Slurm is asked for anything, says what helps, and writes nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    Path("c.toml").write_text(f'name = "c"\n{wrong.head}\n{wrong.classes}')
    Path("m.toml").write_text(
        f'[run]\nname = "x"\n[cluster]\nprofile = "c.toml"\n[[models]]\n{wrong.model}\n[schemes]\n'
        f'use = ["{wrong.schemes}"]\n[tasks]\n{wrong.tasks}\n[evaluate]\nbackend = "{wrong.backend}"\n{wrong.evaluate}\n{wrong.more}'
    )
    assert main(["submit", "m.toml"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    for phrase in wrong.says:
        assert phrase in said.err
    assert {path.name for path in tmp_path.iterdir()} == {"c.toml", "m.toml"}
