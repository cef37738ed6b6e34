"""Lists of layers that a scheme ignores: invalid patterns, and lists that do not fit a model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpcq.catalog.hf_config import parse_config
from hpcq.catalog.ignored_layers import entry_problem, head_name, ignore_problem, linear_names
from hpcq.catalog.schemes import find_scheme

CONFIG = {
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
EXPERTS = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}


def problem(*ignore: str, **config: object) -> str | None:
    """Return why a list is invalid for a small model."""
    scheme, shape = find_scheme("fp8-dynamic"), parse_config({**CONFIG, **config})
    assert scheme
    return ignore_problem(replace(scheme, ignore=ignore), linear_names(shape), head=head_name(shape))


@pytest.mark.parametrize("pattern", ["re:(", "re:*.mlp", "re:[a-", "re:a{99999999999999999999}", "re:(?P<x>a)(?P<x>b)"])
def test_an_invalid_regular_expression_is_named(pattern: str) -> None:
    """The message has the pattern and the parser's reason. Observed: the planner ended with a traceback."""
    found = entry_problem(pattern)
    assert found
    assert found.startswith(f"'{pattern}' is not a regular expression: ")


@pytest.mark.parametrize("pattern", ["lm_head", "(", "re:.*down_proj", "re:"])
def test_names_and_valid_expressions_pass(pattern: str) -> None:
    """A name without 're:' is no expression."""
    assert entry_problem(pattern) is None


@pytest.mark.parametrize(
    ("ignore", "fix"),
    [
        (("lm_head", "re:mlp"), " Did you mean 're:.*mlp.*'?"),
        (("lm_head", "down_proj"), " Did you mean 're:.*down_proj.*'?"),
        (("lm_head", "model.layers.0"), r" Did you mean 're:.*model\.layers\.0.*'?"),
        (("lm_head", "*down_proj*"), " Did you mean 're:.*down_proj.*'?"),
        (("lm_head", "re:.*no_such_layer"), ""),
        (("lm_head", "Linear"), ""),
    ],
)
def test_an_entry_that_matches_nothing_is_refused(ignore: tuple[str, ...], fix: str) -> None:
    """A layer that the user wanted unquantized would be quantized. Observed: such a pattern was accepted."""
    found = problem(*ignore)
    assert found
    assert found.startswith(f"'{ignore[-1]}' matches no linear layer; the layers are model.layers.*.self_attn.q_proj, ")
    assert found.endswith(f"lm_head.{fix}")


def test_a_list_without_the_head_is_refused() -> None:
    """It replaces the default. Observed: it took the place of lm_head, which was quantized without a message."""
    found = problem("re:.*down_proj")
    assert found
    assert "so the head would be quantized. Add 'lm_head' to the list" in found
    assert problem("re:.*down_proj", tie_word_embeddings=True) == found


@pytest.mark.parametrize("ignore", [("re:.*",), ("lm_head", "re:model"), ("re:.*_proj", "lm_head")])
def test_a_list_that_matches_everything_is_refused(ignore: tuple[str, ...]) -> None:
    """The checkpoint would be the base model, shown as a quantized one. Observed: such a list was accepted."""
    found = problem(*ignore)
    assert found
    assert found.startswith("it matches every linear layer")


@pytest.mark.parametrize(
    ("ignore", "config"),
    [
        ((), {}),
        (("lm_head",), {}),
        (("lm_head",), {"tie_word_embeddings": True}),
        (("re:.*head",), {}),
        (("lm_head", "re:.*down_proj"), {}),
        (("lm_head", "model.layers.2.self_attn.o_proj"), {}),
        (("lm_head", r"re:.*\.experts\.3\."), EXPERTS),
        (("lm_head",), {"model_type": "gpt_neox"}),
        (("output_projection",), {"model_type": "biogpt"}),
    ],
)
def test_lists_that_fit_pass(ignore: tuple[str, ...], config: dict[str, object]) -> None:
    """The default, names, patterns, single experts, and the head by its usual or its own name."""
    assert problem(*ignore, **config) is None
