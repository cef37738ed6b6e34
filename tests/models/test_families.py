"""Shapes of all model families, compared with the models that transformers makes of the same configurations."""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import cache
from typing import Any

import pytest

from hpcq.catalog.families import FAMILIES
from hpcq.catalog.hf_config import parse_config
from hpcq.catalog.model_config import DEFAULTS_FILE
from hpcq.catalog.model_shape import ModelShape
from hpcq.catalog.models import find_model_config, find_model_shape
from hpcq.catalog.schemes import find_scheme
from hpcq.catalog.unquantized_modules import quantization_problem
from hpcq.plan.memory.weights import weight_bytes
from hpcq.quantize.experts import checkpoint_names
from tests.models.config_defaults import CATALOG, defaults_text
from tests.models.family_configs import CONFIGS

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

REAL = (
    "deepseek-ai/DeepSeek-V3",
    "Qwen/Qwen3-235B-A22B",
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
    "openai/gpt-oss-120b",
    "mistralai/Mixtral-8x22B-Instruct-v0.1",
    "google/gemma-3-27b-it",
    "zai-org/GLM-4.5-Air",
    "nvidia/Nemotron-H-8B-Base-8K",
    "meta-llama/Llama-3.1-70B-Instruct",
)
"""Models of the catalog that are compared in their real sizes."""
IN_32_BITS = r"(e_score_correction_bias|expert_bias)$"
"""Buffers that transformers keeps in 32 bits."""
PADDING = {"pad_token_id": 0}  # defaults of some families are outside a small vocabulary

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def config_of(name: str) -> Any:
    """Return the configuration of transformers: a small one of a family, or a real one of the catalog."""
    if name in CONFIGS:
        model_type, settings = CONFIGS[name]
        return transformers.AutoConfig.for_model(model_type, **PADDING, **settings)
    found = find_model_config(name) or {}
    settings = dict(found.get("text_config", found))
    return transformers.AutoConfig.for_model(settings.pop("model_type"), **PADDING, **settings)


@cache
def model_of(name: str) -> Any:
    """Return the model on the meta device, which takes no memory."""
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config_of(name), dtype=torch.bfloat16)


def shape_of(name: str) -> ModelShape:
    """Return the shape of the same configuration, without any default of transformers."""
    if name in CONFIGS:
        model_type, settings = CONFIGS[name]
        return parse_config({"model_type": model_type} | settings)
    found = find_model_shape(name)
    assert found
    return found


def without_numbers(name: str) -> str:
    """Return a name with * in place of numbers."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def layers_of(model: Any) -> Counter[tuple[str, int, int, bool]]:
    """Return name, inputs, outputs and bias of each linear layer, without a tied head. GPT-2's are transposed."""
    embeddings = model.get_input_embeddings().weight
    found: Counter[tuple[str, int, int, bool]] = Counter()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module.weight is not embeddings:
            sizes = module.in_features, module.out_features
        elif type(module).__name__ == "Conv1D":
            sizes = module.nx, module.nf
        else:
            continue
        found[without_numbers(name), *sizes, module.bias is not None] += 1
    return found


@pytest.mark.parametrize("name", [*CONFIGS, *REAL])
def test_parameters_and_bytes_are_those_of_transformers(name: str) -> None:
    """The number of parameters is exact, and so are the bytes of a checkpoint with tied weights once."""
    model, shape, scheme = model_of(name), shape_of(name), find_scheme("bf16")
    assert scheme
    names = dict(model.named_parameters(remove_duplicate=False))
    buffers = sum(
        math.prod(tensor.shape) * (4 if re.search(IN_32_BITS, key) else 2)
        for key, tensor in model.state_dict().items()
        if key not in names
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert shape.parameters == parameters
    assert weight_bytes(shape, scheme) == 2 * parameters + buffers
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert shape.tied_embeddings == is_tied


@pytest.mark.parametrize("name", [*CONFIGS, *REAL])
def test_linear_layers_are_those_of_transformers(name: str) -> None:
    """Each linear layer has its name, inputs, outputs and bias, and is there in as many blocks.

    Routers of some families are modules of another type; experts are tensors of all experts of a block together.
    """
    expected, shape = layers_of(model_of(name)), shape_of(name)
    found: Counter[tuple[str, int, int, bool]] = Counter()
    for block, count in shape.counts:
        for one in block.linears:
            key = (f"{shape.prefix}.*.{one.name}", one.in_features, one.out_features, one.has_bias)
            if one.is_quantizable or key in expected:
                found[key] += count
    for one in shape.linears:
        found[one.name, one.in_features, one.out_features, one.has_bias] += 1
    assert found == expected


@pytest.mark.parametrize("name", [*CONFIGS, *REAL])
def test_experts_are_those_of_transformers(name: str) -> None:
    """The tensors of all experts of a block have the parameters of the experts in the shape."""
    expected = [
        sum(tensor.numel() for tensor in module.parameters())
        for path, module in model_of(name).named_modules()
        if path.endswith(".experts")
    ]
    assert [block.experts.parameters for block in shape_of(name).blocks if block.experts] == expected


@pytest.mark.parametrize("name", [*CONFIGS, *REAL])
def test_defaults_and_older_keys_give_the_same_shape(name: str) -> None:
    """A configuration as transformers saves it, with all its keys, has the same shape as the short one."""
    assert parse_config(config_of(name).to_dict()) == shape_of(name)


@pytest.mark.parametrize("name", [name for name, (_, settings) in CONFIGS.items() if "layer_types" not in settings])
def test_windows_are_those_of_transformers(name: str) -> None:
    """The blocks that transformers lists with a window or a chunk have it in the shape, and no others."""
    config = config_of(name)
    kinds, sizes = (
        getattr(config, "layer_types", None),
        {
            "sliding_attention": getattr(config, "sliding_window", None),
            "chunked_attention": getattr(config, "attention_chunk_size", None),
        },
    )
    if not kinds or not set(kinds) & set(sizes):
        return
    attentions = [block.attention for block in shape_of(name).blocks]
    assert [one and one.window for one in attentions] == [sizes.get(kind) for kind in kinds]


@pytest.mark.parametrize("name", CONFIGS)
def test_routers_are_not_quantized(name: str) -> None:
    """No router or gate of a shared expert is quantized, but every layer of attention and of experts is."""
    for block in shape_of(name).kinds:
        small = {one.name for one in block.linears if not one.is_quantizable}
        routers = {
            one.name for one in block.linears if re.search(r"(router|\.gate|\.wg|shared_expert_gate)$", one.name)
        }
        assert routers <= small
        assert not any(re.search(r"(self_attn|experts?)\.(\*\.)?\w+_proj$", one) for one in small)


def test_every_family_is_compared() -> None:
    """Every row of the table that transformers has is in these tests."""
    assert {model_type for model_type, _ in CONFIGS.values()} == set(FAMILIES) - {"qwen"}


def test_the_defaults_are_those_of_transformers() -> None:
    """The file of defaults is what `python -m tests.models.config_defaults` writes."""
    assert (CATALOG / DEFAULTS_FILE).read_text(encoding="utf-8") == defaults_text()


@pytest.mark.parametrize("name", list(CONFIGS))
def test_experts_without_a_quantized_format_are_refused_at_plan_time(name: str) -> None:
    """transformers loads quantized experts of a family only if it knows a format with one tensor per expert."""
    scheme = find_scheme("fp8-dynamic")
    assert scheme
    if shape_of(name).experts and not checkpoint_names(model_of(name).config.model_type):
        assert quantization_problem(shape_of(name).config, scheme)
