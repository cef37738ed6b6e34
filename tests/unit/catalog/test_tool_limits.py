"""What the quantization tools do not support is refused at plan time, with what works instead."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpcq.catalog.hf_config import find_config_shape
from hpcq.catalog.schemes import find_scheme, scheme_names
from hpcq.catalog.tool_limits import LIMITS, scheme_problems, width_problem
from hpcq.catalog.tools import quantizers
from hpcq.catalog.unquantized_modules import quantization_problem
from hpcq.core.errors import ManifestError
from hpcq.core.work_records import Model, Scheme, Variant
from hpcq.manifest import check_manifest, load

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 260,
}


def scheme_of(name: str, **changes: Any) -> Scheme:
    """Return a scheme of the catalog."""
    found = find_scheme(name)
    assert found, name
    return replace(found, **changes)


@pytest.mark.parametrize("name", [name for name in scheme_names() if name.partition(":")[0] in LIMITS])
def test_every_scheme_of_the_catalog_is_supported_by_its_tool(name: str) -> None:
    """The limits are those of the schemes that hpcq offers, which quantize a Llama."""
    assert not list(scheme_problems(scheme_of(name)))
    assert quantization_problem(LLAMA, scheme_of(name)) is None


@pytest.mark.parametrize(
    ("name", "changes", "field", "message"),
    [
        (
            "autoawq:awq-w4a16",
            {"weights": "int8"},
            "weights",
            "AutoAWQ writes only int4 with 'awq': choose autoawq:awq",
        ),
        ("autoawq:awq-w4a16", {"symmetric": True}, "symmetric", "GEMM needs zero points: set symmetric = false"),
        (
            "autoawq:awq-w4a16",
            {"granularity": "channel", "group_size": None},
            "granularity",
            "needs scales per 'group'",
        ),
        ("autogptq:gptq-w4a16", {"weights": "fp8_e4m3"}, "weights", "AutoGPTQ writes only int2, int3, int4, int8"),
        ("autogptq:gptq-w4a16", {"activations": "int8"}, "activations", "does not quantize activations as 'int8'"),
        ("autogptq:gptq-w4a16", {"damping": 1.0}, "damping", "must be greater than 0 and less than 1"),
        (
            "autogptq:gptq-w4a16",
            {"ignore": ("lm_head", "re:.*o_proj")},
            "ignore",
            "every linear layer outside the head",
        ),
        ("gptqmodel:awq-w4a16", {"weights": "int8"}, "weights", "gptqmodel writes only int4 with 'awq'"),
        ("autoround:w4a16", {"symmetric": False}, "symmetric", "set symmetric = true, or choose gptqmodel:awq-w4a16"),
        ("bitsandbytes:nf4-g32", {}, "group_size", "bitsandbytes has blocks of 64 weights: remove the group size"),
        ("bitsandbytes:nf4", {"weights": "int4"}, "weights", "bitsandbytes writes only nf4, fp4 with 'rtn'"),
        ("gptq-w4a16", {"weights": "int3"}, "weights", "llmcompressor does not write 'int3'"),
    ],
)
def test_what_a_tool_does_not_write_is_refused(name: str, changes: dict[str, Any], field: str, message: str) -> None:
    """The sentence has the tool, the field of the scheme, and the fix."""
    found = dict(scheme_problems(scheme_of(name, **changes)))
    assert message in found[field]


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        (
            "autogptq:gptq-w4a16",
            {"model_type": "qwen3"},
            "no class for 'qwen3': choose gptqmodel:gptq-w4a16 or gptq-w4a16",
        ),
        ("autoawq:awq-w4a16", {"model_type": "olmo2"}, "no class for 'olmo2': choose gptqmodel:awq-w4a16 or awq-w4a16"),
        ("gptqmodel:gptq-w4a16", {"model_type": "nemotron"}, "choose gptq-w4a16 or autoround:w4a16"),
        (
            "autoround:w4a16",
            {"model_type": "mixtral", "num_local_experts": 4},
            "AutoRound does not quantize experts: choose gptq-w4a16",
        ),
        ("bitsandbytes:nf4", {"model_type": "mixtral", "num_local_experts": 4}, "does not quantize experts"),
        (
            "gptqmodel:gptq-w4a16",
            {"model_type": "mixtral", "num_local_experts": 4},
            "gptqmodel quantizes only the experts of olmoe, qwen2_moe, qwen3_moe: choose gptq-w4a16 or fp8-dynamic",
        ),
    ],
)
def test_families_without_support_are_refused(name: str, config: dict[str, Any], message: str) -> None:
    """The clause names the family, and the nearest scheme that works."""
    assert message in str(quantization_problem({**LLAMA, **config}, scheme_of(name)))


def test_narrow_layers_are_refused() -> None:
    """AutoGPTQ packs 32 inputs and outputs at a time."""
    shape = find_config_shape({**LLAMA, "intermediate_size": 272})
    assert shape
    problem = width_problem(scheme_of("autogptq:gptq-w4a16-g16"), shape)
    assert "packs inputs and outputs in multiples of 32, and" in str(problem)
    assert width_problem(scheme_of("autoawq:awq-w4a16-g16"), shape) is None


def test_a_name_with_the_default_tool_is_the_same_scheme() -> None:
    """A checkpoint that exists is found under both names, with and without a group size."""

    def address(name: str) -> str:
        return Variant(model=Model(id="m"), scheme=scheme_of(name)).address

    for name in ("gptq-w4a16", "gptq-w4a16-g64", "fp8-dynamic"):
        assert address(f"llmcompressor:{name}") == address(name)
    assert address("autogptq:gptq-w4a16") != address("gptq-w4a16")
    assert find_scheme("autogptq:fp8-dynamic") is None
    assert address("study-gptq-w4a16") == address("gptq-w4a16")


def test_names_with_a_tool_are_safe_in_paths() -> None:
    """Ids and folders have no colon, and are taken apart again."""
    variant = Variant(model=Model(id="org/Tiny"), scheme=scheme_of("autogptq:gptq-w4a16-g64"))
    assert variant.id.rpartition("--")[0] == "tiny--autogptq-gptq-w4a16-g64"


def test_tools_without_resume_say_so() -> None:
    """A plan has a note for them; bitsandbytes has nothing to resume."""
    assert [name for name, info in quantizers().items() if not info.resumes] == [
        "autoround",
        "gptqmodel",
        "autogptq",
        "autoawq",
    ]


def test_a_definition_is_refused_with_its_line(tmp_path: Path) -> None:
    """The message has the file, the line and the key of the manifest."""
    path = tmp_path / "m.toml"
    path.write_text(
        '[run]\nname = "x"\n[[models]]\nid = "meta-llama/Llama-3.1-8B"\n[schemes]\nuse = ["mine"]\n'
        '[[schemes.define]]\nname = "mine"\nbase = "autoawq:awq-w4a16"\nweights = "int8"\n'
        '[tasks]\nuse = ["arc_challenge"]\n[cluster]\nprofile = "local"\n',
        encoding="utf-8",
    )
    with pytest.raises(ManifestError) as raised:
        check_manifest(load(path))
    expected = (
        "schemes.define.0.weights: AutoAWQ writes only int4 with 'awq': choose autoawq:awq-w4a16, or gptq-w8a16 for"
    )
    assert any(f":10: {expected}" in problem for problem in raised.value.problems)
