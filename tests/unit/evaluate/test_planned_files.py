"""Evaluation of a model whose files are no longer those of the plan: the unit fails, and commits nothing.

Observed: a checkpoint was overwritten between the submission and the start of the unit. Its scores had the address,
and the digest, of the planned weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hpcq.core.attempts import Attempt
from hpcq.core.digests import digest_of_model
from hpcq.core.errors import SetupError
from hpcq.core.work_records import EvaluateWork, Model, Task, Variant
from hpcq.evaluate.backends.transformers.backend import AccelerateBackend
from hpcq.evaluate.worker import evaluate
from hpcq.store import count_rows
from tests.tiny_llama import write_base
from tests.unit.evaluate.conftest import BASE

MakeAttempt = Callable[[str], Attempt]
Change = Callable[[Path], object]


def flip_last_bit(path: Path) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def switch_link(link: Path) -> None:
    """Let a link point to a copy with other weights, which was never hashed."""
    other = shutil.copytree(link.resolve(), link.with_name("other"))
    flip_last_bit(other / "model.safetensors")
    link.unlink()
    link.symlink_to(other)


CHANGES: dict[str, Change] = {
    "other weights": lambda folder: flip_last_bit(folder / "model.safetensors"),
    "a new file": lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"),
    "a switched link": switch_link,
}


@pytest.fixture
def work(tmp_path: Path, arc_items: Path, monkeypatch: pytest.MonkeyPatch) -> EvaluateWork:
    """Return an evaluation of a small model that was hashed by the plan; its folder is a link."""
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path / "cache"))
    link = tmp_path / "link"
    link.symlink_to(write_base(tmp_path / "base"))
    variant = Variant(model=Model(id="tiny", path=str(link), digest=digest_of_model(link)), scheme=BASE)
    return EvaluateWork(
        variant=variant,
        tasks=(Task(name="arc_challenge", limit=1, data_path=str(arc_items)),),
        backend="accelerate",
        dtype="float32",
        device="cpu",
        checkpoint_path=str(link),
        segments_path=str(tmp_path / "run" / "segments" / f"evaluate.{variant.id}"),
    )


def test_the_planned_files_are_evaluated(work: EvaluateWork, make_attempt: MakeAttempt) -> None:
    """Files that did not change, or have only other times, are evaluated."""
    (Path(work.checkpoint_path) / "model.safetensors").touch()
    evaluate(work, make_attempt("evaluate.x"))
    assert count_rows(Path(work.segments_path)) > 0


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("moment", ["before loading", "during loading"])
def test_a_model_that_changed_since_the_plan_is_refused(
    work: EvaluateWork, change: Change, moment: str, make_attempt: MakeAttempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says that the files have changed, also if that happens while they are read."""
    load = AccelerateBackend.load

    def load_then_change(backend: AccelerateBackend) -> None:
        load(backend)
        change(Path(work.checkpoint_path))

    if moment == "during loading":
        monkeypatch.setattr(AccelerateBackend, "load", load_then_change)
    else:
        change(Path(work.checkpoint_path))
    with pytest.raises(SetupError, match=r"the files of tiny have changed since the run was planned"):
        evaluate(work, make_attempt("evaluate.x"))
    assert count_rows(Path(work.segments_path)) == 0


def test_a_checkpoint_that_hpcq_made_is_refused_after_an_edit(work: EvaluateWork, make_attempt: MakeAttempt) -> None:
    """Its `hpcq.json` has the digest of its files.

    Observed: every scale of an FP8 checkpoint was doubled. Its scores had no mark.
    """
    made = Path(work.checkpoint_path)
    (made / "hpcq.json").write_text(json.dumps({"digest": digest_of_model(made)}))
    other = Model(id="tiny", path=str(made.with_name("other")))
    work = replace(work, variant=replace(work.variant, model=other))
    evaluate(work, make_attempt("evaluate.x"))
    flip_last_bit(made / "model.safetensors")
    with pytest.raises(SetupError, match=r"have changed since hpcq made it .*: delete the folder and submit"):
        evaluate(work, make_attempt("evaluate.y"))


def test_stop_tokens_are_checked_before_texts_are_generated(work: EvaluateWork, make_attempt: MakeAttempt) -> None:
    """A model of the hub may be staged after the plan, which checks them. Log-likelihoods need no stop tokens.

    Observed: such a model was evaluated with answers that did not end where its publisher lets them end.
    """
    folder = Path(work.checkpoint_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    model = replace(work.variant.model, digest=digest_of_model(folder))
    work = replace(work, variant=replace(work.variant, model=model))
    evaluate(work, make_attempt("evaluate.x"))
    items = folder.with_name("sums")
    items.mkdir()
    for split in ("train", "test"):
        (items / f"{split}.jsonl").write_text('{"question": "What is 1 + 2?", "answer": "#### 3"}\n')
    generating = replace(work, tasks=(Task(name="gsm8k", num_fewshot=0, limit=1, data_path=str(items)),))
    with pytest.raises(SetupError, match=r"in generation_config.json, eos_token_id has values that are not token ids"):
        evaluate(generating, make_attempt("evaluate.y"))
