"""The catalog's rows: their numbers agree with each other, and with lm-eval's definitions where those lie at hand."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hpcq.catalog.configs import shape_of_checkpoint, shape_of_config
from hpcq.catalog.gpus import find_gpu, gpu_names
from hpcq.catalog.models import ModelShape, count_parameters, find_shape, model_ids
from hpcq.catalog.schemes import find_scheme, fitting_group_size, make_scheme, misfit, scheme_names
from hpcq.catalog.tasks import find_suite, find_task, suite_names, task_names
from hpcq.core import environments
from hpcq.core.work import Scheme

LM_EVAL_TASKS = next(
    environments.interpreter("transformers").parents[1].glob("lib/python3*/site-packages/lm_eval/tasks"), None
)


def shape(name: str) -> ModelShape:
    """The shape of a model that the catalog has."""
    found = find_shape(name)
    assert found
    return found


def scheme(name: str) -> Scheme:
    """A scheme that the catalog has."""
    found = find_scheme(name)
    assert found
    return found


@pytest.mark.parametrize("name", model_ids())
def test_the_stated_parameters_follow_from_the_sizes(name: str) -> None:
    """A mistyped size would show: the weights of these sizes add up to the number that the repository states."""
    sizes = asdict(shape(name))
    stated = sizes.pop("parameters")
    del sizes["context"], sizes["architecture"]
    assert count_parameters(**sizes) == stated


def test_every_model_of_the_study_is_known() -> None:
    """The 13 base checkpoints of arXiv 2409.11055v6 are in the catalog, and the quickstart's."""
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


def test_ids_are_found_whatever_their_capitals() -> None:
    """The hub does not tell capital letters apart, and neither does the catalog; an unknown id has no shape."""
    assert find_shape("huggingfacetb/smollm2-135m") == shape("HuggingFaceTB/SmolLM2-135M")
    assert find_shape("nobody/nothing") is None


def test_a_configuration_gives_the_same_shape_as_the_catalog() -> None:
    """Reading config.json and looking up the id come to the same, so that staging a model changes no plan."""
    config = {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
    }
    assert shape_of_config(config) == shape("HuggingFaceTB/SmolLM2-135M")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"hidden_size": "x", "num_attention_heads": 0}', "\xff"])
def test_a_configuration_that_says_too_little_gives_no_shape(text: str, tmp_path: Path) -> None:
    """A config.json that is broken, of another kind or missing is no reason to fail: the shape is not known."""
    assert shape_of_checkpoint(tmp_path) is None
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    assert shape_of_checkpoint(tmp_path) is None


def test_weights_in_the_blocks_are_less_than_all() -> None:
    """Llama-3.1-8B has 6.98 of its 8.03 billion weights in the linear layers of its blocks."""
    assert shape("meta-llama/Llama-3.1-8B").linear_parameters == 6_979_321_856


def test_generations_with_fp8_are_told_apart() -> None:
    """Hopper and Ada multiply FP8, Ampere does not."""
    gpus = {name: gpu for name in gpu_names() if (gpu := find_gpu(name))}
    computing = {name for name, gpu in gpus.items() if gpu.computes_fp8}
    assert computing == {"B200-180", "H100-80", "H200-141", "RTX6000Ada-48", "L40S-48", "RTX4090-24", "L4-24"}
    assert computing == {name for name, gpu in gpus.items() if "fp8_e4m3" in gpu.dense_tflops}


def test_memory_is_never_more_than_the_name_says() -> None:
    """A GPU's name carries its nominal memory, and the driver reports that or less."""
    for name in gpu_names():
        gpu = find_gpu(name)
        assert gpu
        nominal = int(name.rsplit("-", 1)[1])
        assert 0.9 * nominal < gpu.memory_gib <= nominal


@pytest.mark.parametrize("name", scheme_names())
def test_schemes_need_calibration_as_their_methods_do(name: str) -> None:
    """GPTQ, AWQ, SmoothQuant and static activation scales look at a calibration set; the others do not."""
    calibrated = {"fp8", "gptq-w4a16", "gptq-w8a16", "smoothquant-w8a8", "awq-w4a16"}
    assert scheme(name).needs_calibration == (name in calibrated)


def test_a_group_size_may_stand_in_the_name() -> None:
    """'gptq-w4a16-g64' is gptq-w4a16 with groups of 64; where a scheme has no groups there is no such name."""
    assert scheme("gptq-w4a16-g64") == replace(scheme("gptq-w4a16"), name="gptq-w4a16-g64", group_size=64)
    assert find_scheme("fp8-dynamic-g64") is None
    assert find_scheme("gptq-w4a16-g0") is None
    assert find_scheme("gptq-w4a16-g64x") is None


def test_a_definition_wins_over_the_catalog() -> None:
    """Names that a manifest defines come first, alone and with a group size."""
    own = replace(scheme("gptq-w4a16"), damping=0.5)
    assert find_scheme("gptq-w4a16", {"gptq-w4a16": own}) == own
    assert find_scheme("gptq-w4a16-g32", {"gptq-w4a16": own}) == replace(own, name="gptq-w4a16-g32", group_size=32)


def test_a_made_scheme_leaves_the_head_alone() -> None:
    """Unless it says otherwise a scheme does not quantize the head."""
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
def test_groups_must_divide_every_width(name: str, model: str, width: int | None, fitting: int | None) -> None:
    """A group size fits if it divides the inputs of every quantized layer; scales a channel or tensor always fit."""
    assert misfit(scheme(name), shape(model)) == width
    if fitting:
        assert fitting_group_size(scheme(name), shape(model)) == fitting


def test_suites_are_made_of_known_tasks() -> None:
    """Every task of every suite has a row, and the leaderboards have their six each."""
    for name in suite_names():
        suite = find_suite(name)
        assert suite
        assert all(find_task(task) for task, _ in suite.tasks)
        assert len(suite.tasks) == (1 if name == "mt-bench" else 6)
    assert (find_task("nothing"), find_suite("nothing")) == (None, None)


@pytest.mark.skipif(LM_EVAL_TASKS is None, reason="the environment 'transformers' is not made yet")
@pytest.mark.parametrize("name", [name for name in task_names() if name != "mt-bench"])
def test_rows_of_tasks_say_what_lm_evals_definitions_say(name: str) -> None:
    """The folder holds the definition of that name, and a leaf's metric, filter, kind and length are in it."""
    facts = find_task(name)
    assert facts
    assert LM_EVAL_TASKS
    folder = LM_EVAL_TASKS / facts.folder
    texts = [path.read_text() for path in sorted(folder.glob("*")) if path.is_file() and path.suffix != ".py"]
    kind = "group" if facts.is_group else "task"
    assert any(re.search(rf"^{kind}: {name}$", text, re.MULTILINE) for text in texts)
    together = "\n".join(texts)
    assert f"metric: {facts.metric}\n" in together
    assert facts.filter == "none" or f'name: "{facts.filter}"' in together
    assert ("output_type: generate_until" in together) or facts.output == "loglikelihood"
    assert ("output_type: multiple_choice" in together) or facts.output == "generate_until"
    assert facts.max_gen_toks in (0, 256) or f"max_gen_toks: {facts.max_gen_toks}\n" in together
    assert facts.num_fewshot == 0 or f"num_fewshot: {facts.num_fewshot}\n" in together


@pytest.mark.skipif(LM_EVAL_TASKS is None, reason="the environment 'transformers' is not made yet")
@pytest.mark.parametrize("name", [name for name in task_names() if name != "mt-bench"])
def test_rows_of_tasks_count_the_data_sets_and_say_how_examples_are_chosen(name: str) -> None:
    """As many definitions name a data set as the row says, and examples are drawn unless they are the first ones."""
    facts = find_task(name)
    assert facts
    assert LM_EVAL_TASKS
    texts = {path.name: path.read_text() for path in sorted((LM_EVAL_TASKS / facts.folder).glob("*yaml"))}
    leaf = r"^\"?task\"?: +\"?(leaderboard_|mmlu_)\w+\"?$"
    leaves = [text for text in texts.values() if re.search(leaf, text, re.MULTILINE)]
    assert facts.data_sets == (len(leaves) if facts.is_group else 1)
    if facts.tokens and facts.tokens.example:
        are_first = any("sampler: first_n" in text for text in texts.values())
        assert facts.tokens.are_examples_drawn == (not are_first)
