"""A tokenizer that appends an end token to every text: its scores are marked; `evaluate.add_eos = false` mends them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from lm_eval.api.instance import Instance

from hpcq.core.work_records import EvaluateWork, Model, Scheme, Variant
from hpcq.evaluate.backends.appended_tokens import appended_tokens, remove_appended_tokens
from hpcq.evaluate.backends.transformers.backend import AccelerateBackend
from hpcq.evaluate.requests import LOGLIKELIHOOD, Request
from hpcq.store import RequestKey, digest_of_arguments
from hpcq.verify.marks import MarkKind, VariantFacts, derive_marks
from tests.staged import staged_model

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
END, BEGIN = "<|im_end|>", "<|im_start|>"
PAIRS = (("Question: What is the capital of France?\nAnswer:", " Paris is its name"), ("2 + 2 =", " 4"))


@pytest.fixture(params=([], [BEGIN]), ids=("end", "begin_and_end"))
def appending(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return the staged model with a post-processor that appends the end token."""
    for path in staged_model(MODEL_ID).iterdir():
        (tmp_path / path.name).symlink_to(path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in document["added_tokens"]}
    special = [{"SpecialToken": {"id": token, "type_id": 0}} for token in request.param]
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [*special, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": END, "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in (BEGIN, END)},
    }
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    return tmp_path


def test_only_what_is_appended_is_removed(appending: Path) -> None:
    """What the tokenizer puts before a text stays."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(appending)
    before = tokenizer("A text")["input_ids"]
    assert appended_tokens(tokenizer) == END
    remove_appended_tokens(tokenizer, str(appending))
    assert appended_tokens(tokenizer) == ""
    assert tokenizer("A text")["input_ids"] == before[:-1]
    remove_appended_tokens(tokenizer, str(appending))
    assert tokenizer("A text")["input_ids"] == before[:-1]


@pytest.mark.parametrize("appending", [[]], indirect=True)
def test_appended_tokens_are_marked_and_can_be_removed(appending: Path) -> None:
    """They cost many nats; without them every log-likelihood is that of the unchanged tokenizer."""
    kept, description = loglikelihoods(appending)
    (mark,) = derive_marks(VariantFacts(segments=[description]))
    assert (mark.kind, mark.detail) == (MarkKind.APPENDED_TOKENS, END)

    removed, clean = loglikelihoods(appending, add_eos=False)
    assert derive_marks(VariantFacts(segments=[clean])) == ()
    assert removed[0] > kept[0] + 5.0
    assert removed == loglikelihoods(staged_model(MODEL_ID))[0]


def loglikelihoods(folder: Path, **options: bool) -> tuple[list[float], dict[str, str | int | float]]:
    """Return the log-likelihoods of PAIRS in nats, and the backend's description."""
    scheme = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
    backend = AccelerateBackend(
        EvaluateWork(
            variant=Variant(model=Model(id=MODEL_ID, path=str(folder)), scheme=scheme),
            tasks=(),
            backend="accelerate",
            dtype="float32",
            checkpoint_path=str(folder),
            segments_path="",
            device="cpu",
            options=tuple(options.items()),
        )
    )
    backend.load()
    requests = [
        Request(
            key=RequestKey("t", "1", number, 0, 0, digest_of_arguments(LOGLIKELIHOOD, pair)),
            kind=LOGLIKELIHOOD,
            arguments=pair,
            instance=Instance(LOGLIKELIHOOD, {}, pair, number),
        )
        for number, pair in enumerate(PAIRS)
    ]
    found = dict(backend.stream([requests], ()))
    return [float(found[request].loglikelihood or 0.0) for request in requests], backend.describe()
