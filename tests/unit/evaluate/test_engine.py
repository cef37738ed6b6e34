"""Scoring from shared prefixes on small random models of every kind of attention, against one text at a time."""

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

from hpcq.evaluate.backends.transformers.prefix_scoring.engine import Engine
from hpcq.evaluate.backends.transformers.prefix_scoring.scorer import Scorer
from hpcq.evaluate.backends.transformers.prefix_scoring.self_check import exact_activations, why_not
from hpcq.evaluate.prefix.batching import Limits
from hpcq.evaluate.prefix.planner import Schedule, schedule
from hpcq.evaluate.prefix.radix_tree import Ask
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
        "log-likelihoods of a trial differ",
    ),
    "BloomConfig": (
        {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 3, "n_head": 4},
        "cannot go on from a kept prefix",
    ),
}


def model_of(kind: str, settings: dict[str, Any]) -> Any:
    """A random model, always the same; its weights are large enough for every layer to matter."""
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**settings, initializer_range=0.2)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def asks() -> list[Ask]:
    """Three questions behind common examples longer than a window, with choices of one to six tokens, one asked twice.

    Some choices begin alike, and some differ in their last token alone.
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
            found.append(Ask(tokens=tokens, continuation=len(choice)))
    return [*found, found[2]]


@torch.inference_mode()
def plain(model: Any, ask: Ask) -> tuple[float, bool]:
    """The answer of one forward pass of all that is asked, and nothing else."""
    tokens = torch.from_numpy(ask.tokens.astype(np.int64))
    wanted = tokens[-ask.continuation :]
    values = torch.log_softmax(model(tokens[None, :-1]).logits[0], dim=-1)[-ask.continuation :]
    return float(values[range(len(wanted)), wanted].sum()), bool((values.argmax(dim=-1) == wanted).all())


def scored(engine: Engine, plan: Schedule) -> list[tuple[float, bool]]:
    """The engine's answers, ask by ask."""
    answers = {answer.ask: (answer.loglikelihood, answer.is_greedy) for answer in engine.score(plan)}
    return [answers[number] for number in sorted(answers)]


SMALL = Limits(pass_tokens=4, batch_tokens=64)
"""As if a pass cost little: every prefix is worth sharing."""


@pytest.mark.parametrize("stacks_lanes", [False, True], ids=["one by one", "stacked"])
@pytest.mark.parametrize("attention", SHARING)
def test_shared_prefixes_change_no_answer(attention: str, *, stacks_lanes: bool) -> None:
    """Whatever the attention, log-likelihoods and greedy flags are those of one text at a time."""
    model = model_of(*SHARING[attention])
    plan = schedule(asks(), SMALL)
    engine = Engine(model, stacks_lanes=stacks_lanes)

    found = scored(engine, plan)

    assert why_not(model) is None
    assert sum(row.keep is not None for step in plan.passes for row in step.rows) > 3
    for (value, is_greedy), (expected, flag) in zip(found, [plain(model, ask) for ask in asks()], strict=True):
        assert value == pytest.approx(expected, abs=1e-4)
        assert is_greedy == flag


def test_greedy_answers_are_known_as_such() -> None:
    """A continuation of likeliest tokens has the flag, also where its tokens are read in several passes."""
    model = model_of(*SHARING["full attention"])
    start = torch.arange(10, 40)[None]
    with torch.inference_mode():
        said = model.generate(start, max_new_tokens=6, do_sample=False)[0].numpy().astype(np.int32)
    other = said.copy()
    other[-2] += 1
    greedy, not_greedy = (Ask(tokens=tokens, continuation=6) for tokens in (said, other))

    assert [flag for _, flag in scored(Engine(model), schedule([greedy, not_greedy], SMALL))] == [True, False]


@pytest.mark.parametrize("stacks_lanes", [False, True], ids=["one by one", "stacked"])
def test_answers_are_a_function_of_the_asks(*, stacks_lanes: bool) -> None:
    """The same asks get the same bits in another order, and after the engine has done something else."""
    model = model_of(*SHARING["windows in some layers"])
    engine = Engine(model, stacks_lanes=stacks_lanes)
    first = scored(engine, schedule(asks(), SMALL))

    scored(engine, schedule(asks()[:7], SMALL))
    again = scored(engine, schedule(asks(), SMALL))
    backwards = scored(Engine(model, stacks_lanes=stacks_lanes), schedule(asks()[::-1], SMALL))[::-1]

    assert first == again == backwards


def test_what_is_left_in_the_middle_is_forgotten() -> None:
    """An engine whose answers were not all fetched answers the next asks as a new one does."""
    model = model_of(*SHARING["full attention"])
    engine = Engine(model)
    plan = schedule(asks(), SMALL)
    next(iter(engine.score(plan)))

    assert scored(engine, plan) == scored(Engine(model), plan)
    assert not engine._kept


def test_kept_prefixes_stay_within_the_budget() -> None:
    """With room for fewer tokens than one text has, answers are the same and the budget holds."""
    model = model_of(*SHARING["full attention"])
    engine = Engine(model)
    plan = schedule(asks(), Limits(kv_tokens=60, pass_tokens=4))
    live = [_kept_tokens(engine) for _ in engine.score(plan)]

    assert plan.unshared
    assert max(live) <= 60
    for (value, _), ask in zip(scored(engine, plan), asks(), strict=True):
        assert value == pytest.approx(plain(model, ask)[0], abs=1e-4)


def _kept_tokens(engine: Engine) -> int:
    return sum(kept.end - kept.start for kept in engine._kept.values())


def test_the_head_sees_only_what_is_read() -> None:
    """Logits are computed for each place that is read once, and for no other."""
    model = model_of(*SHARING["full attention"])
    engine = Engine(model)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    plan = schedule(asks(), SMALL)
    reads = [len(step.readings.row) for step in plan.passes]

    scored(engine, plan)

    # A forward pass from which nothing is read is given one place, since no head is made for none.
    assert sum(reads) <= sum(seen) <= sum(reads) + reads.count(0)
    assert sum(reads) < sum(ask.read for ask in asks()) / 5


def test_low_precision_sums_as_lm_eval_does(tmp_path: Path) -> None:
    """In bfloat16, answers have the type that lm-eval's have, and differ from them by rounding alone."""
    folder = write_base(tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    lm = HFLM(pretrained=model, tokenizer=str(folder), batch_size=1)
    pairs = [("The capital of France is", f" {name}") for name in ("Paris", "Rome", "P", "Perugia")]
    scorer = Scorer(lm, on_gpu=False)
    found = {number: (value, flag) for number, value, flag in scorer.score(pairs, wanted=range(4))}

    expected = lm.loglikelihood([_Instance(pair) for pair in pairs], disable_tqdm=True)

    assert scorer.why_not is None
    for number, (value, flag) in enumerate(expected):
        assert float(torch.tensor(found[number][0], dtype=torch.bfloat16)) == found[number][0]
        assert found[number] == (pytest.approx(value, rel=2**-6), flag)


class _Instance:
    """What lm-eval's back ends use of an Instance."""

    def __init__(self, args: tuple[str, str]) -> None:
        self.args = args
        self.task_name = None


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tokenizer of bytes."""
    return str(write_base(tmp_path_factory.mktemp("base")))


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_share_is_refused_with_the_reason(kind: str, tokenizer: str) -> None:
    """States, embeddings that look ahead and linear biases are found out, by the configuration or by the trial."""
    settings, reason = REFUSED[kind]
    scorer = Scorer(HFLM(pretrained=model_of(kind, settings), tokenizer=tokenizer), on_gpu=False)

    assert reason in (scorer.why_not or "")


@pytest.mark.parametrize(
    ("experts", "strategy", "is_dynamic", "is_refused"),
    [(0, "token", True, False), (0, "tensor", True, True), (0, "tensor", False, False), (4, "token", True, True)],
)
def test_scales_of_a_whole_batch_are_refused(
    experts: int, strategy: str, *, is_dynamic: bool, is_refused: bool
) -> None:
    """Activations that are quantized by what else is computed at the time exclude sharing; a token's own do not."""
    model = model_of(*(SHARING["experts"] if experts else SHARING["full attention"]))
    inputs = {"num_bits": 8, "strategy": strategy, "dynamic": is_dynamic}
    model.config.quantization_config = {"config_groups": {"group_0": {"input_activations": inputs}}}

    assert ("one dynamic scale" in (why_not(model) or "")) is is_refused


def test_a_trial_leaves_quantized_activations_out() -> None:
    """Activations that compressed-tensors quantizes are exact for the trial alone, and quantized before and after."""
    model = model_of(*SHARING["full attention"])
    one = asks()[2]
    exact = plain(model, one)
    to_fp8 = QuantizationArgs(num_bits=8, type="float", strategy="token", dynamic=True)
    group = QuantizationScheme(targets=["Linear"], input_activations=to_fp8)
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": group}, ignore=["lm_head"]))
    quantized = plain(model, one)

    with exact_activations(model):
        during = plain(model, one)

    assert quantized != exact
    assert during == exact
    assert plain(model, one) == quantized


def test_pieces_of_one_text_are_one_answer() -> None:
    """An ask whose continuation spans prefixes that others share gets the sum of what each of them tells."""
    model = model_of(*SHARING["full attention"])
    text = np.arange(20, 60, dtype=np.int32)
    spread: Sequence[Ask] = [
        Ask(tokens=text, continuation=39),
        Ask(tokens=np.append(text[:20], 7).astype(np.int32), continuation=11),
        Ask(tokens=np.append(text[:30], [7, 8]).astype(np.int32), continuation=1),
    ]
    plan = schedule(spread, SMALL)

    assert len(plan.passes) > 1
    for (value, _), ask in zip(scored(Engine(model), plan), spread, strict=True):
        assert value == pytest.approx(plain(model, ask)[0], abs=1e-4)
