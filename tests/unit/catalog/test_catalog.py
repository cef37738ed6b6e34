"""Consistency of the catalog's rows with each other, and with lm-eval's definitions if lm-eval is installed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from hpcq.catalog.gpus import find_gpu, gpu_names
from hpcq.catalog.hf_config import find_config_shape, parse_config, read_checkpoint_shape
from hpcq.catalog.model_config import UnsupportedConfigError
from hpcq.catalog.model_shape import ModelShape
from hpcq.catalog.models import find_model_shape, model_ids, published_parameters
from hpcq.catalog.schemes import (
    find_scheme,
    group_size_problem,
    make_scheme,
    scheme_names,
    with_fitting_group_size,
)
from hpcq.catalog.tasks import find_suite, find_task, suite_names, task_names
from hpcq.core import environments
from hpcq.core.work_records import Scheme
from tests.models.family_configs import CONFIGS

LM_EVAL_TASKS = next(
    environments.interpreter("transformers").parents[1].glob("lib/python3*/site-packages/lm_eval/tasks"), None
)


def shape(name: str) -> ModelShape:
    """Return the shape of a model in the catalog."""
    found = find_model_shape(name)
    assert found
    return found


def scheme(name: str) -> Scheme:
    """Return a scheme in the catalog."""
    found = find_scheme(name)
    assert found
    return found


@pytest.mark.parametrize("name", model_ids())
def test_the_stated_parameters_follow_from_the_configuration(name: str) -> None:
    """The parameters of a row add up to the number in the model's repository, so a mistyped size is detected."""
    assert shape(name).parameters == published_parameters(name)


def test_every_model_of_the_study_is_known() -> None:
    """The 13 base checkpoints of arXiv 2409.11055v6 are in the catalog, and that of the quickstart."""
    study = {
        "meta-llama/Llama-2-7b-chat-hf",
        "meta-llama/Llama-2-13b-chat-hf",
        "meta-llama/Llama-2-70b-chat-hf",
        "meta-llama/Llama-3.1-8B-Instruct",
        "meta-llama/Llama-3.1-70B-Instruct",
        "meta-llama/Llama-3.1-405B-Instruct",
        "meta-llama/Llama-3.2-1B-Instruct",
        "meta-llama/Llama-3.2-3B-Instruct",
        "meta-llama/Llama-3.3-70B-Instruct",
        "lmsys/vicuna-7b-v1.3",
        "lmsys/vicuna-13b-v1.3",
        "lmsys/vicuna-33b-v1.3",
        "google/gemma-2b-it",
        "google/gemma-7b-it",
        "Qwen/Qwen-7B-Chat",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    }
    assert study <= set(model_ids())


def test_model_ids_are_case_insensitive() -> None:
    """The catalog ignores the case of an id, as the hub does; an unknown id has no shape."""
    assert find_model_shape("huggingfacetb/smollm2-135m") == shape("HuggingFaceTB/SmolLM2-135M")
    assert find_model_shape("nobody/nothing") is None


def test_a_configuration_gives_the_same_shape_as_the_catalog() -> None:
    """config.json and the catalog give the same shape, so staging a model does not change the plan."""
    config = {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
    }
    assert find_config_shape(config) == shape("HuggingFaceTB/SmolLM2-135M")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"hidden_size": "x", "num_attention_heads": 0}', "\xff"])
def test_an_incomplete_configuration_gives_no_shape(text: str, tmp_path: Path) -> None:
    """An invalid, unsupported or missing config.json has no shape, and a reason."""
    with pytest.raises(UnsupportedConfigError):
        read_checkpoint_shape(tmp_path)
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UnsupportedConfigError):
        read_checkpoint_shape(tmp_path)


def test_weights_in_the_blocks_are_less_than_all() -> None:
    """Llama-3.1-8B: 6.98 of 8.03 billion weights are in the linear layers of its blocks."""
    assert shape("meta-llama/Llama-3.1-8B").linear_parameters == 6_979_321_856


def test_gpu_generations_with_fp8_are_distinguished() -> None:
    """Hopper and Ada multiply FP8, Ampere does not."""
    gpus = {name: gpu for name in gpu_names() if (gpu := find_gpu(name))}
    computing = {name for name, gpu in gpus.items() if gpu.supports_fp8}
    assert computing == {"B200-180", "H100-80", "H200-141", "RTX6000Ada-48", "L40S-48", "RTX4090-24", "L4-24"}
    assert computing == {name for name, gpu in gpus.items() if "fp8_e4m3" in gpu.dense_tflops}


def test_memory_is_never_more_than_the_name_says() -> None:
    """A GPU's name contains its nominal memory; the driver reports at most that."""
    for name in gpu_names():
        gpu = find_gpu(name)
        assert gpu
        nominal = int(name.rsplit("-", 1)[1])
        assert 0.9 * nominal < gpu.memory_gib <= nominal


@pytest.mark.parametrize("name", scheme_names())
def test_schemes_need_calibration_as_their_methods_do(name: str) -> None:
    """GPTQ, AWQ, SmoothQuant and static scales (of activations, KV cache) need a calibration set; others do not."""
    calibrated = {"fp8", "nvfp4", "fp8-dynamic-kv8"}
    tools = ("gptq-", "awq-", "smoothquant-", "auto", "gptqmodel:", "study-")
    assert scheme(name).needs_calibration == (name in calibrated or name.startswith(tools))


def test_a_name_may_contain_a_group_size() -> None:
    """'gptq-w4a16-g64' is gptq-w4a16 with groups of 64; a scheme without groups has no such name."""
    assert scheme("gptq-w4a16-g64") == replace(scheme("gptq-w4a16"), name="gptq-w4a16-g64", group_size=64)
    assert find_scheme("fp8-dynamic-g64") is None
    assert find_scheme("nvfp4-g64") is None  # the format fixes 16
    assert find_scheme("fp8-block-g64") is None
    assert find_scheme("gptq-w4a16-g0") is None
    assert find_scheme("gptq-w4a16-g64x") is None


def test_a_custom_scheme_overrides_the_catalog() -> None:
    """Schemes of a manifest have priority, with and without a group size."""
    own = replace(scheme("gptq-w4a16"), damping=0.5)
    assert find_scheme("gptq-w4a16", {"gptq-w4a16": own}) == own
    assert find_scheme("gptq-w4a16-g32", {"gptq-w4a16": own}) == replace(own, name="gptq-w4a16-g32", group_size=32)


def test_a_scheme_does_not_quantize_the_head_by_default() -> None:
    """The head is ignored unless the scheme defines `ignore`."""
    made = make_scheme(name="x", tool="llmcompressor", method="rtn", weights="int8", activations="bf16")
    assert made.ignore == ("lm_head",)
    assert not made.needs_calibration


@pytest.mark.parametrize(
    ("name", "model", "width", "fitting"),
    [
        ("gptq-w4a16", "HuggingFaceTB/SmolLM2-135M", 576, 64),
        ("gptq-w4a16-g64", "HuggingFaceTB/SmolLM2-135M", None, 64),
        ("gptq-w4a16", "HuggingFaceTB/SmolLM2-360M", 960, 64),
        ("gptq-w4a16", "meta-llama/Llama-3.1-405B", None, 128),
        ("gptq-w8a16", "HuggingFaceTB/SmolLM2-135M", None, None),
        ("fp8", "HuggingFaceTB/SmolLM2-135M", None, None),
        ("synthetic-w4a16", "HuggingFaceTB/SmolLM2-135M", None, None),
    ],
)
def test_the_group_size_must_divide_every_width(name: str, model: str, width: int | None, fitting: int | None) -> None:
    """A group size fits if it divides the input width of every quantized layer; other granularities always fit."""
    problem = group_size_problem(scheme(name), shape(model))
    assert (problem and problem.linear.in_features) == width
    if fitting:
        chosen = with_fitting_group_size(scheme(name), shape(model))
        assert chosen.group_size == fitting
        assert find_scheme(chosen.name) == chosen


@pytest.mark.parametrize(
    ("family", "group_size", "layer", "width"),
    [
        ("deepseek-v3", 32, "self_attn.kv_b_proj", 48),
        ("minicpm3", 32, "self_attn.kv_b_proj", 48),
        ("qwen2-moe", 64, "mlp.shared_expert.down_proj", 96),
        ("qwen3-moe", 128, "mlp.experts.*.down_proj", 64),
        ("granitemoe-shared", 64, "shared_mlp.output_linear", 96),
        ("gptj", 256, "attn.q_proj", 128),
        ("gpt-bigcode", 256, "attn.c_attn", 128),
    ],
)
def test_the_group_size_must_divide_ranks_and_expert_widths(
    family: str, group_size: int, layer: str, width: int
) -> None:
    """The group size must divide the ranks of latent attention, the widths of experts, and GPT-2's n_embd.

    Observed: the plan did not know these widths, and accepted any group size.
    """
    model_type, sizes = CONFIGS[family]
    grouped = replace(scheme("gptq-w4a16"), group_size=group_size)
    problem = group_size_problem(grouped, parse_config({"model_type": model_type, **sizes}))
    assert problem
    assert (problem.linear.name, problem.linear.in_features) == (layer, width)


OF_LM_EVAL = ("qwen", "reasoning", "long-context")
"""Suites with tasks that only the index of lm-eval has."""
SUITE_SIZES = {
    "openllm-v1": 6, "openllm-v2": 6, "mt-bench": 1, "study": 13, "qwen": 4, "reasoning": 4, "long-context": 1
}  # fmt: skip


def test_suites_are_made_of_known_tasks() -> None:
    """Every task of the studies' suites has a row, and each leaderboard has six tasks."""
    for name in suite_names():
        suite = find_suite(name)
        assert suite
        assert all(find_task(task) for task, _ in suite.tasks) or name in OF_LM_EVAL
        assert len(suite.tasks) == SUITE_SIZES[name]
    assert (find_task("nothing"), find_suite("nothing")) == (None, None)


@pytest.mark.skipif(LM_EVAL_TASKS is None, reason="the environment 'transformers' does not exist yet")
@pytest.mark.parametrize("name", [name for name in task_names() if name != "mt-bench"])
def test_rows_agree_with_the_definitions_of_lm_eval(name: str) -> None:
    """The folder contains the task's definition, with the row's metric, filter, output type and length."""
    info = find_task(name)
    assert info
    assert LM_EVAL_TASKS
    folder = LM_EVAL_TASKS / info.folder
    texts = [path.read_text() for path in sorted(folder.glob("*")) if path.is_file() and path.suffix != ".py"]
    kind = "group" if info.is_group else "task"
    assert any(re.search(rf"^{kind}: {name}$", text, re.MULTILINE) for text in texts)
    text = "\n".join(texts)
    assert f"metric: {info.metric}\n" in text
    assert info.filter == "none" or f'name: "{info.filter}"' in text
    assert ("output_type: generate_until" in text) or info.output_type == "loglikelihood"
    assert ("output_type: multiple_choice" in text) or info.output_type == "generate_until"
    assert info.max_gen_toks in (0, 256) or f"max_gen_toks: {info.max_gen_toks}\n" in text
    assert info.num_fewshot == 0 or f"num_fewshot: {info.num_fewshot}\n" in text


@pytest.mark.skipif(LM_EVAL_TASKS is None, reason="the environment 'transformers' does not exist yet")
@pytest.mark.parametrize("name", [name for name in task_names() if name != "mt-bench"])
def test_rows_have_the_number_of_subtasks_and_how_examples_are_chosen(name: str) -> None:
    """The folder defines `num_subtasks` subtasks, and examples are sampled unless they are the first ones."""
    info = find_task(name)
    assert info
    assert LM_EVAL_TASKS
    texts = {path.name: path.read_text() for path in sorted((LM_EVAL_TASKS / info.folder).glob("*yaml"))}
    leaf = r"^\"?task\"?: +\"?(leaderboard_|mmlu_)\w+\"?$"
    leaves = [text for text in texts.values() if re.search(leaf, text, re.MULTILINE)]
    assert info.num_subtasks == (len(leaves) if info.is_group else 1)
    if info.tokens and info.tokens.example:
        are_first = any("sampler: first_n" in text for text in texts.values())
        assert info.tokens.are_examples_sampled == (not are_first)
