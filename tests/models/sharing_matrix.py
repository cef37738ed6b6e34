"""Matrix of model families and window sizes: shared prefixes give lm-eval's log-likelihoods, or are refused.

    python -m tests.models.sharing_matrix [--families a,b] [--windows 32,128,256]

makes a small random model of every family of causal language models that transformers has, computes the same requests
of 10 to 600 tokens from shared prefixes and one by one, prints a line per model, and exits with 1 if a log-likelihood
differs by more than 1e-4 and prefixes are shared nevertheless. It needs the environment 'transformers' and about ten
minutes.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from lm_eval.models.huggingface import HFLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hpcq.evaluate.backends.transformers.prefix_scoring.engine import Engine
from hpcq.evaluate.backends.transformers.prefix_scoring.scorer import Scorer
from hpcq.evaluate.prefix.batching import Budget
from hpcq.evaluate.prefix.planner import plan_passes
from tests.families import randomize
from tests.models.family_configs import CONFIGS
from tests.tiny_llama import write_base

TOLERANCE = 1e-4
WINDOWS = (32, 128, 256)
_WINDOW_NAMES = ("sliding_window", "window_size", "attention_chunk_size", "local_attention")
_LENGTH_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "context_length")
_LENGTH = 1024
_MAX_PARAMETERS = 50_000_000
# Sizes of a family that is not in `CONFIGS`: those of the names that its configuration has.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner"), 96),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(_LENGTH_NAMES, _LENGTH),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 32),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "encoder_layers"), 1),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "type_vocab_size"), 2),
    "vocab_size": 512,
    "is_decoder": True,
}
_TOKENS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of one model.

    Attributes:
        name: Family, and window if it has one.
        refusal: Why prefixes are not shared; None: they are.
        difference: Largest difference of a log-likelihood from lm-eval's own; 0 if prefixes are not shared.
        seconds: Duration.
    """

    name: str
    refusal: str | None
    difference: float
    seconds: float

    @property
    def is_right(self) -> bool:
        """Whether the log-likelihoods are lm-eval's; a NaN is not."""
        return self.difference <= TOLERANCE

    def __str__(self) -> str:
        text = f"refused: {self.refusal}" if self.refusal else f"equal within {self.difference:.1e}"
        return f"{'' if self.is_right else 'WRONG '}{self.name:32} {self.seconds:5.1f} s  {text}"


def configurations(windows: tuple[int, ...]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield name, type and settings of every model; a family with a window has one model per window."""
    known = {name: (kind, settings) for name, (kind, settings) in CONFIGS.items() if kind in _families()}
    rest = sorted(_families() - {kind for kind, _ in known.values()})
    for name, (kind, settings) in [*known.items(), *((kind, (kind, None)) for kind in rest)]:
        defaults = _defaults(kind, settings or {})
        names = [one for one in _WINDOW_NAMES if isinstance(_value(defaults, one), int)]
        sizes = settings or {one: value for one, value in _SIZES.items() if _value(defaults, one, missing=None) != ""}
        sizes = {**sizes, **{one: _LENGTH for one in _LENGTH_NAMES if one in sizes}}
        for window in windows if names else (0,):
            title = f"{name} window {window}" if window else name
            yield title, kind, {**sizes, **dict.fromkeys(names, window)}


def _defaults(kind: str, settings: Mapping[str, Any]) -> Any:
    """Return a configuration with these settings; None if the family cannot be made without more."""
    try:
        return transformers.AutoConfig.for_model(kind, **settings)
    except Exception:  # noqa: BLE001  # a family's own validation
        return None


def _families() -> set[str]:
    return set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _value(config: Any, name: str, missing: Any = "") -> Any:
    """Return a setting; `missing` if the configuration has none, or one per layer."""
    try:
        return getattr(config, name, "")
    except Exception:  # noqa: BLE001  # a family's own check of a setting that differs between layers
        return missing


def pairs() -> list[tuple[str, str]]:
    """Return contexts of 10 to 600 tokens (bytes) with common prefixes, each with choices of one to six tokens."""
    numbers = random.Random(1)  # noqa: S311  # reproducible, not secret

    def text(length: int) -> str:
        return "".join(numbers.choice("abcdefghijklmnopqrstuvwxyz ,.?") for _ in range(length))

    examples, begin = text(600), text(3)
    contexts = [examples[:length] + "\nQ: " + text(rest) for length, rest in
                ((3, 3), (40, 20), (40, 4), (150, 30), (290, 9), (290, 70), (570, 25), (570, 8))]  # fmt: skip
    choices = (" a", " b", f" {begin}x", f" {begin}yz!")
    return [(f"{context}.", choice) for context in contexts for choice in choices]


def compare(name: str, kind: str, settings: Mapping[str, Any], tokenizer: Path) -> Outcome:
    """Return whether a family's log-likelihoods from shared prefixes are those of lm-eval's own scoring."""
    begin_s = time.monotonic()

    def outcome(refusal: str | None, difference: float = 0.0) -> Outcome:
        return Outcome(name=name, refusal=refusal, difference=difference, seconds=time.monotonic() - begin_s)

    try:
        model = make_model(kind, settings)
        lm = HFLM(pretrained=model, tokenizer=str(tokenizer), batch_size=1, max_length=_LENGTH)
        scorer = Scorer(lm, on_gpu=False)
        if scorer.unsupported_reason is None:
            scorer.check([pairs()[-1], pairs()[-2], pairs()[16], pairs()[17]])
        if scorer.unsupported_reason is not None:
            return outcome(scorer.unsupported_reason)
        expected = _lm_eval_scores(lm)
    except Exception as error:  # noqa: BLE001  # what a family raises without the inputs or sizes that it needs
        return outcome(f"no small model that lm-eval can score ({type(error).__name__})")
    found = {number: response.loglikelihood for number, response in scorer.score(pairs(), range(len(expected)))}
    requests = scorer._token_requests(pairs())
    engine = Engine(model, batches_rows=True)
    together = {one.request: one.loglikelihood for one in engine.score(plan_passes(requests, Budget()))}
    differences = torch.tensor([[one[number] for number in range(len(expected))] for one in (found, together)])
    return outcome(None, float((differences.double() - torch.tensor(expected).double()).abs().max()))


def make_model(kind: str, settings: Mapping[str, Any]) -> Any:
    """Return a random model whose weights are large enough for every mask and position to matter."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **settings, **_TOKENS)
    with torch.device("meta"):
        size = sum(one.numel() for one in transformers.AutoModelForCausalLM.from_config(config).parameters())
    if size > _MAX_PARAMETERS:
        raise ValueError(f"{size} parameters")
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    randomize(model, seed=zlib.crc32(kind.encode()))
    return model


def _lm_eval_scores(lm: HFLM) -> list[float]:
    """Return lm-eval's log-likelihoods, one request at a time."""
    encoded = [lm._encode_pair(*pair) for pair in pairs()]
    arguments = [(None, context, continuation) for context, continuation in encoded]
    with torch.inference_mode():
        return [float(value) for value, _ in lm._loglikelihood_tokens(arguments, disable_tqdm=True)]


def main() -> None:
    """Run the matrix and print it."""
    parser = argparse.ArgumentParser(description="Compare shared and unshared scoring of every family.")
    parser.add_argument("--families", default="")
    parser.add_argument("--windows", default=",".join(map(str, WINDOWS)))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    chosen = set(filter(None, arguments.families.split(",")))
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = write_base(Path(folder) / "base")
        for name, kind, settings in configurations(tuple(map(int, arguments.windows.split(",")))):
            if not chosen or kind in chosen:
                outcomes.append(compare(name, kind, settings, tokenizer))
                sys.stdout.write(f"{outcomes[-1]}\n")
                sys.stdout.flush()
    wrong = [outcome.name for outcome in outcomes if not outcome.is_right]
    shared = [outcome for outcome in outcomes if outcome.refusal is None]
    sys.stdout.write(f"{len(outcomes)} models: {len(shared)} shared, {len(outcomes) - len(shared)} refused\n")
    for reason, count in Counter(outcome.refusal for outcome in outcomes if outcome.refusal).most_common():
        sys.stdout.write(f"{count:4}  {reason}\n")
    sys.exit(f"wrong: {', '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
