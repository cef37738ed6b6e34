"""A model is scored only if it is exactly that of its files: weights, tokenizer, attention, code, revision."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Gemma2ForCausalLM, MixtralConfig, MptConfig
from transformers import MixtralForCausalLM as Mixtral
from transformers import MptForCausalLM as Mpt

from hpcq.core.digests import digest_of_model
from hpcq.core.errors import SetupError, UserInputError, WorkerError
from hpcq.core.work_records import Model, QuantizeWork, Variant
from hpcq.evaluate.backends.transformers.backend import AccelerateBackend
from hpcq.evaluate.backends.transformers.prefix_scoring.engine import Engine
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD, Request
from hpcq.quantize.worker import quantize
from hpcq.store import RequestKey, digest_of_arguments
from hpcq.verify.checkpoint_files import check_files
from tests.checkpoint_weights import edit_json
from tests.families import write_family
from tests.models.custom_code import CONFIGURATION, write_custom_checkpoint
from tests.models.test_checkpoints_of_others import BASE, PAIRS, attempt_of, edited, loglikelihoods, work_of
from tests.tiny_llama import write_base
from tests.unit.quantize.conftest import FP8_DYNAMIC

Tensors = dict[str, torch.Tensor]
SMALL = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in bfloat16."""
    return write_base(tmp_path_factory.mktemp("base") / "tiny")


def with_tokenizer(model: Any, folder: Path, base: Path) -> Path:
    """Write a model with the tokenizer of `base`."""
    model.save_pretrained(folder)
    for path in base.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


def reference(folder: Path, **settings: Any) -> list[float]:
    """The log-likelihoods of `PAIRS` by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, **settings)
    found = []
    for context, choice in PAIRS:
        before = tokenizer(context)["input_ids"] or [tokenizer.bos_token_id]
        tokens = torch.tensor([before + tokenizer(choice)["input_ids"]])
        with torch.no_grad():
            rows = model(tokens).logits[0, :-1].log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]
        found.append(float(rows[len(before) - 1 :].sum()))
    return found


LAYER = "model.layers.1."


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda found: found.pop(f"{LAYER}self_attn.k_proj.weight"),
            r"the weight model.layers.1.self_attn.k_proj.weight of the model is missing in its files",
        ),
        (
            lambda found: found.update({f"{LAYER}self_attn.q_proj.weight_old": torch.ones(2)}),
            "the weight .*weight_old in its files does not belong to the model",
        ),
        (
            lambda found: found.update({f"{LAYER}mlp.down_proj.weight": torch.ones(128, 255)}),
            "the weight .*down_proj.weight has another shape than in the model",
        ),
        (
            lambda found: found[f"{LAYER}mlp.down_proj.weight"][0].fill_(float("-inf")),
            "the weight .*down_proj.weight has values that are not finite",
        ),
        (
            lambda found: [tensor.zero_() for name, tensor in found.items() if name.startswith(LAYER)],
            "7 of 15 matrices contain only zeros, such as model.layers.1.self_attn.q_proj.weight",
        ),
    ],
)
def test_a_model_that_is_not_that_of_its_files_is_refused(
    base: Path, tmp_path: Path, damage: Callable[[Tensors], object], message: str
) -> None:
    """transformers would initialize weights at random, differently in each process, and ignore tensors.

    Observed: with one projection missing, two shards were two models. A file with holes of zeros, as interrupted copies
    leave them, was scored without a mark.
    """
    folder = edited(base, tmp_path / "damaged", damage)
    with pytest.raises(UserInputError, match=message):
        AccelerateBackend(work_of(folder, base)).load()


def test_experts_under_names_that_transformers_does_not_know_are_refused(base: Path, tmp_path: Path) -> None:
    """If transformers cannot convert the names to those of its fused experts, every expert is random after loading.

    Observed: hpcq's own checkpoints had such names: mixtral fp8-dynamic 45.0 (+10.0).
    """
    torch.manual_seed(0)
    model = Mixtral(MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2, bos_token_id=0, eos_token_id=1))
    folder = with_tokenizer(model, tmp_path / "mixtral", base)
    assert loglikelihoods(work_of(folder, base)) == pytest.approx(reference(folder), abs=1e-4)
    names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}

    def rename(found: Tensors) -> None:
        for name in [name for name in found if ".experts." in name]:
            layer, _, part = name.rpartition(".experts.")
            number, weight, _ = part.split(".")
            found[f"{layer.replace('block_sparse_moe', 'mlp')}.experts.{number}.{names[weight]}.weight"] = found.pop(
                name
            )

    with pytest.raises(UserInputError, match=r"weights of the model are missing in its files, such as .*experts"):
        AccelerateBackend(work_of(edited(folder, tmp_path / "renamed", rename), base)).load()


def test_a_model_that_cannot_compute_a_text_is_refused(base: Path, tmp_path: Path) -> None:
    """All weights fit, but rotary embeddings have another size than the heads: DeepSeek-V3 with another head_dim.

    Observed: the first prompt failed with a RuntimeError of torch, "The size of tensor a (8) must match …".
    """
    folder = write_family("deepseek_v3", tmp_path / "model", base)
    edit_json(folder / "config.json", head_dim=8)
    with pytest.raises(UserInputError, match=r"transformers cannot compute a text with it: .*correct its config"):
        AccelerateBackend(work_of(folder, base)).load()


def test_an_expert_of_another_shape_is_refused(base: Path, tmp_path: Path) -> None:
    """transformers fuses experts while it loads. Observed: its RuntimeError, which names no file."""
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    sound = write_family("qwen3_moe", tmp_path / "model", base)
    folder = edited(sound, tmp_path / "damaged", lambda found: found.update({name: found[name][:-1].clone()}))
    with pytest.raises(UserInputError, match=r"damaged: transformers cannot load it: "):
        AccelerateBackend(work_of(folder, base)).load()


def test_a_padding_token_without_embeddings_is_refused(base: Path, tmp_path: Path) -> None:
    """Observed: "IndexError: index out of range in self" at the first batch of different lengths."""
    name, tokens = "model.embed_tokens.weight", len(AutoTokenizer.from_pretrained(base))
    folder = edited(base, tmp_path / "model", lambda found: found.update({name: found[name][:tokens].clone()}))
    edit_json(folder / "config.json", vocab_size=tokens)
    edit_json(folder / "tokenizer_config.json", pad_token="<beyond the vocabulary>")  # noqa: S106  # no password
    with pytest.raises(UserInputError, match=r"padding token has the id \d+, but the model has \d+ tokens: choose"):
        AccelerateBackend(work_of(folder, base)).load()


@pytest.mark.parametrize(
    ("content", "problem"),
    [("bos_token_id", "expected `,`"), ("pre_tokenizer", "PreTokenizer"), ("version", "expected a string")],
)
def test_a_tokenizer_that_the_library_cannot_read_is_refused(
    base: Path, tmp_path: Path, content: str, problem: str
) -> None:
    """The library raises an Exception without a class of its own, which names neither file nor fix.

    Observed: a unit failed with "Exception: expected `,` or `}` at line 1 column 16".
    """
    folder = Path(shutil.copytree(base, tmp_path / "damaged"))
    edit_json(folder / "tokenizer.json", **{content: 5 if content == "bos_token_id" else {"type": "Nonsense"}})
    with pytest.raises(SetupError, match=rf"its tokenizer.json is invalid \(.*{problem}.*\): copy the"):
        check_files(folder, trust_remote_code=False)


def test_a_tokenizer_without_an_end_token_cannot_generate(base: Path, tmp_path: Path) -> None:
    """lm-eval would decode the missing token. Log-likelihoods need none.

    Observed: a unit failed with "TypeError: 'None' is not an instance of 'Sequence'".
    """
    folder = Path(shutil.copytree(base, tmp_path / "endless"))
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    work = work_of(folder, base, options=(("prefix_sharing", False),))
    assert len(loglikelihoods(work)) == len(PAIRS)
    backend = AccelerateBackend(work)
    backend.load()
    arguments = ("Some text", {"until": ["."], "max_gen_toks": 2})
    request = Request(
        key=RequestKey("texts", "1", 0, 0, 0, digest_of_arguments(GENERATE, arguments)),
        kind=GENERATE,
        arguments=arguments,
        instance=Instance(request_type=GENERATE, doc={}, arguments=arguments, idx=0),
    )
    with pytest.raises(
        UserInputError, match=r"endless: its tokenizer has no end token \(eos_token\), which lm-eval needs"
    ):
        list(backend.stream([[request]], ()))


def test_attention_with_soft_caps_is_computed_as_the_model_defines(base: Path, tmp_path: Path) -> None:
    """Gemma-2 with `eager` equals transformers' own; the default attention, which ignores the caps, is refused.

    Observed: log-likelihoods with `sdpa` were 2.2e-2 off; those with `eager` equal vLLM's within 1.3e-5.
    """
    torch.manual_seed(0)
    config = Gemma2Config(
        **SMALL, head_dim=16, query_pre_attn_scalar=16, attn_logit_softcapping=2.0, bos_token_id=0, eos_token_id=1
    )
    folder = with_tokenizer(Gemma2ForCausalLM(config), tmp_path / "gemma2", base)
    work = work_of(folder, base, options=(("attention", "eager"),))
    backend = AccelerateBackend(work)
    backend.load()
    assert backend.describe()["attention"] == "eager"
    expected, ignoring = (reference(folder, attn_implementation=name) for name in ("eager", "sdpa"))
    assert loglikelihoods(work) == pytest.approx(expected, abs=1e-4)
    assert loglikelihoods(work) != pytest.approx(ignoring, abs=1e-2)
    with pytest.raises(WorkerError, match="caps attention logits, which the default attention of transformers ignores"):
        AccelerateBackend(replace(work, options=())).load()


def test_the_tokenizer_is_that_of_the_revision(base: Path) -> None:
    """The tokenizer of the branch main, to which lm-eval's default points, is another one.

    Observed: a text had 19 tokens instead of 9.
    """
    cache = Path(HF_HUB_CACHE) / "models--org--two-tokenizers"
    commits = {"main": "a" * 40, "pinned": "b" * 40}
    for commit in commits.values():
        shutil.copytree(base, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commits["main"])
    path = cache / "snapshots" / commits["main"] / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(content), encoding="utf-8")
    found = []
    for commit in commits.values():
        work = work_of(base, base)
        model = replace(work.variant.model, id="org/two-tokenizers", revision=commit)
        work = replace(work, checkpoint_path="org/two-tokenizers", variant=replace(work.variant, model=model))
        backend = AccelerateBackend(work)
        backend.load()
        found.append(backend._lm.tok_encode("THE RIVER"))
    assert found[0] != found[1]
    assert found[1] == AutoTokenizer.from_pretrained(base)("THE RIVER")["input_ids"]
    shutil.rmtree(cache)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(base: Path, tmp_path: Path) -> None:
    """And so is a checkpoint without a tokenizer. Observed: neither was refused with path and fix."""

    def cut(found: Tensors) -> None:
        found["model.embed_tokens.weight"] = found["model.embed_tokens.weight"][:200].clone()

    folder = edited(base, tmp_path / "small", cut)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 200}))
    with pytest.raises(UserInputError, match="it has token ids up to 257, but the model has 200 tokens"):
        AccelerateBackend(work_of(folder, base)).load()
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises((SetupError, UserInputError), match="tokenizer"):
        AccelerateBackend(work_of(folder, base)).load()


@pytest.mark.parametrize("change", [{"num_attention_heads": 3}, {"vocab_size": -1}, {"pretraining_tp": [1]}])
def test_an_invalid_configuration_is_refused_in_one_sentence(
    base: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    """For every exception of transformers' classes, the message is one line with the folder and the reason."""
    folder = Path(shutil.copytree(base, tmp_path / "invalid"))
    content = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(
        UserInputError, match=r"invalid: transformers cannot make a model of its config.json: .+"
    ) as error:
        AccelerateBackend(work_of(folder, base)).load()
    assert "\n" not in str(error.value)


def test_a_checkpoint_with_code_is_quantized_and_evaluated_with_its_code(tmp_path: Path) -> None:
    """All its modules and its tokenizer's own files are in the quantized checkpoint, and in the digest.

    Observed: such models were evaluated, but could not be quantized.
    """
    folder = write_custom_checkpoint(tmp_path / "letters")
    digest = digest_of_model(folder)
    model = Model(id="org/letters", path=str(folder), digest=digest, trust_remote_code=True)
    variant = Variant(model=model, scheme=FP8_DYNAMIC)
    target = tmp_path / "letters-fp8"
    quantize(QuantizeWork(variant=variant, checkpoint_path=str(target)), attempt_of(tmp_path, "quantize.letters"))
    names = {path.name for path in folder.iterdir() if path.suffix in (".py", ".vocab")}
    assert names == {path.name for path in target.iterdir() if path.suffix in (".py", ".vocab")}
    shutil.move(folder, tmp_path / "away")  # the quantized checkpoint does not need its base
    work = replace(work_of(tmp_path / "away", folder), checkpoint_path=str(target), variant=variant)
    unquantized = replace(work_of(tmp_path / "away", folder), variant=Variant(model=model, scheme=BASE))
    found, expected = loglikelihoods(work), loglikelihoods(unquantized)
    assert expected == pytest.approx(reference(tmp_path / "away", trust_remote_code=True), abs=1e-4)
    assert found != expected
    assert found == pytest.approx(expected, rel=0.1)
    (tmp_path / "away" / "factors.py").write_text("def scaled(logits, factor):\n    return logits\n")
    assert digest_of_model(tmp_path / "away") != digest
    # In one process, transformers keeps the model's class for a configuration's class.
    (tmp_path / "away" / "configuration_letters.py").write_text(f"# Changed.\n{CONFIGURATION}")
    (tmp_path / "away" / "factors.py").write_text("import no_such_package\n")
    with pytest.raises(SetupError, match=r"a package that this model needs is missing .*no_such_package"):
        AccelerateBackend(unquantized).load()


def test_prompts_are_cut_to_the_table_of_an_mpt(base: Path, tmp_path: Path) -> None:
    """HFLM does not read max_seq_len, and assumes 2048 tokens. A longer prompt is cut and marked, as of other models.

    Observed: a unit failed with torch's error about the sizes of two tensors.
    """
    config = MptConfig(vocab_size=260, d_model=64, n_layers=2, n_heads=4, expansion_ratio=2, max_seq_len=32)
    folder = with_tokenizer(Mpt(config).to(torch.bfloat16), tmp_path / "mpt", base)
    backend = AccelerateBackend(work_of(folder, base))
    backend.load()
    assert backend.describe()["max_length"] == 32
    pair = ("word " * 40, " end")
    request = Request(
        key=RequestKey("texts", "1", 0, 0, 0, digest_of_arguments(LOGLIKELIHOOD, pair)),
        kind=LOGLIKELIHOOD,
        arguments=pair,
        instance=Instance(LOGLIKELIHOOD, {}, pair, 0),
    )
    [(_, response)] = backend.stream([[request]], ())
    assert response.cut_tokens > 0
    assert response.loglikelihood is not None
    assert response.loglikelihood < 0


def test_the_reason_why_prefixes_are_not_shared_is_a_sentence(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's error is logged.

    Observed: reports showed 'the model cannot continue from a cached prefix (too many indices for tensor …)'.
    """

    def fail(*_arguments: Any) -> None:
        raise IndexError("too many indices for tensor of dimension 2")

    monkeypatch.setattr(Engine, "unsupported_attention", fail)
    backend = AccelerateBackend(work_of(Path(shutil.copytree(base, tmp_path / "model")), base))
    backend.load()
    assert backend.describe()["prefix_sharing"] == "the model cannot continue from a cached prefix"
