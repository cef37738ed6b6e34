"""Scoring from shared prefixes on small random models with every kind of attention, compared with unshared scoring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from lm_eval.models.huggingface import HFLM

from hpcq.evaluate.backends.transformers.prefix_scoring.attention_probe import unsupported_attention
from hpcq.evaluate.backends.transformers.prefix_scoring.engine import Engine
from hpcq.evaluate.backends.transformers.prefix_scoring.forward import Forward
from hpcq.evaluate.backends.transformers.prefix_scoring.masks import CHUNKED, FULL, SLIDING, AttentionKinds
from hpcq.evaluate.backends.transformers.prefix_scoring.model_support import unsupported_reason
from hpcq.evaluate.backends.transformers.prefix_scoring.quantized_activations import (
    BatchWideScales,
    unquantized_activations,
)
from hpcq.evaluate.backends.transformers.prefix_scoring.scorer import Scorer
from hpcq.evaluate.prefix.batching import Budget
from hpcq.evaluate.prefix.planner import PassPlan, plan_passes
from hpcq.evaluate.prefix.radix_tree import TokenRequest
from tests.tiny_llama import write_base

VOCABULARY = 260
WINDOW = 8
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
OLD_SHAPE: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256}
SHARING = {
    "full attention": ("LlamaConfig", SHAPE),
    "a window in every layer": ("MistralConfig", {**SHAPE, "sliding_window": WINDOW}),
    "windows in some layers": (
        "Qwen2Config",
        {**SHAPE, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    ),
    "windows, and capped logits": ("Gemma2Config", {**SHAPE, "sliding_window": WINDOW}),
    "windows, and two rotary embeddings": (
        "Gemma3TextConfig",
        {**SHAPE, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "chunks": (
        "Llama4TextConfig",
        {**SHAPE, "attention_chunk_size": WINDOW, "num_local_experts": 2, "intermediate_size_mlp": 96},
    ),
    "windows and sinks": (
        "GptOssConfig",
        {**SHAPE, "sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "absolute positions": ("GPT2Config", {**OLD_SHAPE, "bos_token_id": 0, "eos_token_id": 1}),
    "experts": ("MixtralConfig", {**SHAPE, "num_local_experts": 4, "sliding_window": None}),
    "many experts": ("Qwen3MoeConfig", {**SHAPE, "num_experts": 4, **EXPERTS}),
    "scaled logits": ("GraniteConfig", {**SHAPE, "logits_scaling": 3.0}),
}
OWN_ATTENTION = "do not use the attention functions of transformers"
REFUSED = {
    "MambaConfig": ({"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2}, "keep a state"),
    "JambaConfig": (
        {**SHAPE, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
        "keep a state",
    ),
    "LlamaConfig": (
        {**SHAPE, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "length of the whole text",
    ),
    "MptConfig": (
        {"vocab_size": VOCABULARY, "d_model": 64, "n_layers": 3, "n_heads": 4, "max_seq_len": 256},
        OWN_ATTENTION,
    ),
    "BloomConfig": (
        {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 3, "n_head": 4},
        OWN_ATTENTION,
    ),
    # The name of its window setting is used by no other model, and it stores its masks as buffers.
    "GPTNeoConfig": (
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 512,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 256,
        },
        OWN_ATTENTION,
    ),
}


def model_of(kind: str, settings: dict[str, Any]) -> Any:
    """Return a random model with fixed seed; its weights are large enough for every layer to matter."""
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**settings, initializer_range=0.2)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def token_requests() -> list[TokenRequest]:
    """Return three questions after shared examples longer than a window, with choices of one to six tokens.

    One request occurs twice. Some choices have a common prefix, and some differ only in their last token.
    """
    numbers = np.random.default_rng(1)

    def some(count: int) -> np.ndarray:
        return numbers.integers(3, VOCABULARY, count)

    examples, alike = some(3 * WINDOW + 1), some(3)
    found = []
    for question in (some(5), some(2 * WINDOW), some(9)):
        choices = [some(1), some(1), some(6), np.append(alike, 7), np.append(alike, 9), np.append(alike, some(3))]
        for choice in choices:
            tokens = np.concatenate([examples, question, choice]).astype(np.int32)
            found.append(TokenRequest(tokens=tokens, continuation_length=len(choice)))
    return [*found, found[2]]


@torch.inference_mode()
def unshared_score(model: Any, request: TokenRequest) -> tuple[float, bool]:
    """Return the score from one forward pass of the whole request alone."""
    tokens = torch.from_numpy(request.tokens.astype(np.int64))
    targets = tokens[-request.continuation_length :]
    values = torch.log_softmax(model(tokens[None, :-1]).logits[0], dim=-1)[-request.continuation_length :]
    return float(values[range(len(targets)), targets].sum()), bool((values.argmax(dim=-1) == targets).all())


def scored(engine: Engine, plan: PassPlan) -> list[tuple[float, bool]]:
    """Return the engine's scores, request by request."""
    scores = {one.request: (one.loglikelihood, one.is_greedy) for one in engine.score(plan)}
    return [scores[number] for number in sorted(scores)]


SMALL = Budget(pass_overhead_tokens=4, max_batch_tokens=64)
"""A low overhead per pass, so that every prefix is shared."""


@pytest.mark.parametrize("batches_rows", [False, True], ids=["one by one", "batched"])
@pytest.mark.parametrize("attention", SHARING)
def test_shared_prefixes_change_no_answer(attention: str, *, batches_rows: bool) -> None:
    """With every kind of attention, log-likelihoods and greedy flags equal those of unshared scoring."""
    model = model_of(*SHARING[attention])
    plan = plan_passes(token_requests(), SMALL)
    engine = Engine(model, batches_rows=batches_rows)

    found = scored(engine, plan)

    assert unsupported_reason(model) is None
    assert sum(row.cache_id is not None for step in plan.passes for row in step.rows) > 3
    for (value, is_greedy), (expected, flag) in zip(
        found, [unshared_score(model, request) for request in token_requests()], strict=True
    ):
        assert value == pytest.approx(expected, abs=1e-4)
        assert is_greedy == flag


def test_greedy_continuations_are_flagged() -> None:
    """A continuation of likeliest tokens is flagged as greedy, also if its tokens are read in several passes."""
    model = model_of(*SHARING["full attention"])
    start = torch.arange(10, 40)[None]
    with torch.inference_mode():
        generated = model.generate(start, max_new_tokens=6, do_sample=False)[0].numpy().astype(np.int32)
    other = generated.copy()
    other[-2] += 1
    greedy, not_greedy = (TokenRequest(tokens=tokens, continuation_length=6) for tokens in (generated, other))

    assert [flag for _, flag in scored(Engine(model), plan_passes([greedy, not_greedy], SMALL))] == [True, False]


@pytest.mark.parametrize("batches_rows", [False, True], ids=["one by one", "batched"])
def test_scores_depend_only_on_the_requests(*, batches_rows: bool) -> None:
    """The same requests get the same bits in another order, and after the engine has computed something else."""
    model = model_of(*SHARING["windows in some layers"])
    engine = Engine(model, batches_rows=batches_rows)
    first = scored(engine, plan_passes(token_requests(), SMALL))

    scored(engine, plan_passes(token_requests()[:7], SMALL))
    again = scored(engine, plan_passes(token_requests(), SMALL))
    backwards = scored(Engine(model, batches_rows=batches_rows), plan_passes(token_requests()[::-1], SMALL))[::-1]

    assert first == again == backwards


def test_an_abandoned_plan_has_no_effect() -> None:
    """An engine whose scores were not all read computes the next plan like a new engine."""
    model = model_of(*SHARING["full attention"])
    engine = Engine(model)
    plan = plan_passes(token_requests(), SMALL)
    next(iter(engine.score(plan)))

    assert scored(engine, plan) == scored(Engine(model), plan)
    assert not engine._cached


def test_cached_prefixes_stay_within_the_budget() -> None:
    """With a budget smaller than one text, scores are the same and the budget is respected."""
    model = model_of(*SHARING["full attention"])
    engine = Engine(model)
    plan = plan_passes(token_requests(), Budget(max_kv_tokens=60, pass_overhead_tokens=4))
    live = [_cached_tokens(engine) for _ in engine.score(plan)]

    assert plan.unshared_rows
    assert max(live) <= 60
    for (value, _), request in zip(scored(engine, plan), token_requests(), strict=True):
        assert value == pytest.approx(unshared_score(model, request)[0], abs=1e-4)


def _cached_tokens(engine: Engine) -> int:
    return sum(prefix.end - prefix.start for prefix in engine._cached.values())


def test_logits_are_computed_only_where_they_are_read() -> None:
    """The head computes every position that is read once, and no other."""
    model = model_of(*SHARING["full attention"])
    engine = Engine(model)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    plan = plan_passes(token_requests(), SMALL)
    reads = [len(step.gather.row) for step in plan.passes]

    scored(engine, plan)

    # A forward pass without reads computes one position, because heads do not support an empty input.
    assert sum(reads) <= sum(seen) <= sum(reads) + reads.count(0)
    assert sum(reads) < sum(request.input_length for request in token_requests()) / 5


def test_low_precision_sums_as_lm_eval_does(tmp_path: Path) -> None:
    """In bfloat16, scores have the same type as lm-eval's and differ from them only by rounding."""
    folder = write_base(tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    lm = HFLM(pretrained=model, tokenizer=str(folder), batch_size=1)
    pairs = [("The capital of France is", f" {name}") for name in ("Paris", "Rome", "P", "Perugia")]
    scorer = Scorer(lm, on_gpu=False)
    scores = scorer.score(pairs, wanted=range(4))
    found = {number: (response.loglikelihood, response.is_greedy) for number, response in scores}

    expected = lm.loglikelihood([_Instance(pair) for pair in pairs], disable_tqdm=True)

    assert scorer.unsupported_reason is None
    for number, (value, flag) in enumerate(expected):
        assert float(torch.tensor(found[number][0], dtype=torch.bfloat16)) == found[number][0]
        assert found[number] == (pytest.approx(value, rel=2**-6), flag)


class _Instance:
    """The part of an Instance that lm-eval's backends use."""

    def __init__(self, args: tuple[str, str]) -> None:
        self.args = args
        self.task_name = None


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the folder of a byte tokenizer."""
    return str(write_base(tmp_path_factory.mktemp("base")))


@pytest.mark.parametrize("kind", REFUSED)
def test_unsupported_models_are_refused_with_the_reason(kind: str, tokenizer: str) -> None:
    """Recurrent states, length-dependent embeddings and linear biases are detected by configuration or self-check.

    Observed: prefixes of GPT-Neo were shared without its window: 115 of 120 log-likelihoods were wrong, by up to 11.
    """
    settings, reason = REFUSED[kind]
    scorer = Scorer(HFLM(pretrained=model_of(kind, settings), tokenizer=tokenizer), on_gpu=False)

    assert reason in (scorer.unsupported_reason or "")


@pytest.mark.parametrize(
    ("attention", "reason"),
    [
        (AttentionKinds(kinds=(SLIDING,), window=WINDOW), None),
        (AttentionKinds(kinds=(FULL,), window=0), "its own attention masks"),
        (AttentionKinds(kinds=(SLIDING,), window=WINDOW + 1), "its own attention masks"),
        (AttentionKinds(kinds=(CHUNKED,), window=WINDOW), "its own attention masks"),
    ],
    ids=["the model's window", "no window", "one token more", "chunks"],
)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_masks_are_compared_with_the_models_own(
    attention: AttentionKinds, reason: str | None, implementation: str
) -> None:
    """Masks that differ from the model's own by a single token are found, even if the configuration is plausible."""
    model = model_of(*SHARING["a window in every layer"])
    model.set_attn_implementation(implementation)
    tokens = np.arange(3, 3 + 4 * WINDOW)
    before = unshared_score(model, token_requests()[0])

    found = unsupported_attention(model, Forward(model), attention, tokens, num_layers=4)

    assert (found is None) if reason is None else (reason in (found or ""))
    assert unshared_score(model, token_requests()[0]) == before


def test_a_fault_that_only_long_texts_show_is_found_with_the_runs_requests(tokenizer: str) -> None:
    """A model with wrong positions after 300 tokens passes the short texts, but not the run's longest requests.

    Observed: the check used about 40 tokens, fewer than GPT-Neo's window.
    """
    model = model_of("LlamaConfig", {**SHAPE, "max_position_embeddings": 1024})
    rotate = model.model.rotary_emb.forward

    def rotate_by_index(hidden: torch.Tensor, position_ids: torch.Tensor) -> Any:
        index = torch.arange(position_ids.shape[-1])[None].expand_as(position_ids)
        return rotate(hidden, torch.where(position_ids > 300, index, position_ids))

    model.model.rotary_emb.forward = rotate_by_index
    scorer = Scorer(HFLM(pretrained=model, tokenizer=tokenizer, max_length=1024), on_gpu=False)
    assert scorer.unsupported_reason is None

    scorer.check([("The sky is blue. " * 25, choice) for choice in ("Yes", "No")])

    assert "from those of whole requests, more than rounding" in (scorer.unsupported_reason or "")


def test_scales_of_a_whole_batch_are_found_in_the_layers() -> None:
    """A layer that gets tokens without a batch dimension has one dynamic scale for all of them.

    Observed: the check read a configuration that is gone after loading, so it found none.
    """
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"one": torch.nn.Linear(8, 8), "other": torch.nn.Linear(8, 8)})
    to_fp8 = QuantizationArgs(num_bits=8, type="float", strategy="token", dynamic=True)
    group = QuantizationScheme(targets=["Linear"], input_activations=to_fp8)
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": group}))

    with BatchWideScales(model) as scales:
        model["one"](torch.ones(1, 3, 8))
        assert scales.layer is None
        model["other"](torch.ones(3, 8))

    assert scales.layer == "other"


def test_the_self_check_disables_quantized_activations() -> None:
    """compressed-tensors quantizes activations before and after the self-check, but not during it."""
    model = model_of(*SHARING["full attention"])
    one = token_requests()[2]
    exact = unshared_score(model, one)
    to_fp8 = QuantizationArgs(num_bits=8, type="float", strategy="token", dynamic=True)
    group = QuantizationScheme(targets=["Linear"], input_activations=to_fp8)
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": group}, ignore=["lm_head"]))
    quantized = unshared_score(model, one)

    with unquantized_activations(model):
        during = unshared_score(model, one)

    assert quantized != exact
    assert during == exact
    assert unshared_score(model, one) == quantized


def test_a_continuation_over_several_prefixes_is_summed() -> None:
    """A continuation that spans prefixes shared with other requests gets the sum over all of them."""
    model = model_of(*SHARING["full attention"])
    text = np.arange(20, 60, dtype=np.int32)
    overlapping: Sequence[TokenRequest] = [
        TokenRequest(tokens=text, continuation_length=39),
        TokenRequest(tokens=np.append(text[:20], 7).astype(np.int32), continuation_length=11),
        TokenRequest(tokens=np.append(text[:30], [7, 8]).astype(np.int32), continuation_length=1),
    ]
    plan = plan_passes(overlapping, SMALL)

    assert len(plan.passes) > 1
    for (value, _), request in zip(scored(Engine(model), plan), overlapping, strict=True):
        assert value == pytest.approx(unshared_score(model, request)[0], abs=1e-4)
