"""Calibration texts at plan time: an invalid text is refused with key, file and fix."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hpcq.core.addressing import canonical
from hpcq.core.errors import ManifestError
from hpcq.core.hub_cache import RepoKind
from hpcq.core.mirror import mirror_revision
from hpcq.core.text_marker import write_text_marker
from hpcq.core.work_records import Calibration
from hpcq.manifest import resolve
from hpcq.manifest.calibration_checks import staged_text_problems
from hpcq.manifest.context import look_up
from hpcq.manifest.pins import Pin, Pins, Repository
from tests.checkpoint_files import write_checkpoint
from tests.unit.manifest.conftest import LoadText

MANIFEST = """
[run]
name = "x"
[[models]]
path = "model"
[schemes]
use = ["gptq-w4a16"]
[tasks]
use = ["arc_challenge"]
[calibration]
dataset = "text.jsonl"
samples = 2
sequence_length = 8
"""
CHAT = json.dumps({"messages": [{"role": "user", "content": "A long question about rivers?"}]}) + "\n"


@pytest.fixture(autouse=True)
def _model(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model")
    (tmp_path / "model" / "tokenizer_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("content", "overrides", "location", "message"),
    [
        ("text", (), "mine.toml:11: calibration.dataset", "text.jsonl:1: is not valid JSON: write one object"),
        ("", (), "mine.toml:11: calibration.dataset", "text.jsonl: has no text: write one object"),
        ('{"content": "a"}', (), "mine.toml:11: calibration.dataset", "text.jsonl:1: has no 'text', but 'content'"),
        (
            '{"text": "0123456789"}',
            (),
            "mine.toml:12: calibration.samples",
            "2 samples of 8 tokens need 16 tokens, but 'text.jsonl' has at most 12: set calibration.samples to 1",
        ),
        (
            CHAT,
            ("calibration.column=messages",),
            "-O calibration.column=messages: calibration.column",
            "'text.jsonl' has chat messages, but model has no chat template. Set a column of strings, or add",
        ),
    ],
)
def test_a_text_that_cannot_be_used_is_refused(
    load_text: LoadText, content: str, overrides: tuple[str, ...], location: str, message: str
) -> None:
    """Invalid lines, too little text, and chats for a model without a template, before anything is submitted.

    Observed: such texts passed the plan, and failed on a node.
    """
    Path("text.jsonl").write_text(content)

    with pytest.raises(ManifestError) as caught:
        load_text(MANIFEST, *overrides)
    assert str(caught.value).startswith(f"{location}: ")
    assert message in str(caught.value)


def test_a_chat_needs_a_template_only(load_text: LoadText) -> None:
    """With a chat template, and for a plain text without one, the manifest is valid; the column is addressed."""
    Path("text.jsonl").write_text(CHAT * 2)
    Path("model/chat_template.jinja").write_text("{{ messages }}")
    chat = resolve(load_text(MANIFEST, "calibration.column=messages")).calibration
    Path("text.txt").write_text("A paragraph.\n\nAnother one.\n")
    plain = resolve(load_text(MANIFEST, "calibration.dataset=text.txt")).calibration

    assert chat
    assert plain
    assert (chat.column, plain.column) == ("messages", "text")


def test_a_repeated_text_has_a_note(load_text: LoadText) -> None:
    """A text that is long enough only with repeated passages is used, and the plan says so."""
    Path("text.jsonl").write_text('{"text": "abcdef"}\n' * 10)

    (note,) = resolve(load_text(MANIFEST)).notes
    assert note.startswith(
        "The calibration text 'text.jsonl' is long enough only because passages are repeated: without"
    )
    assert note.endswith("at most 8 of 16 tokens.")


def test_a_text_is_read_only_if_a_scheme_needs_it(load_text: LoadText) -> None:
    """A text that no scheme uses is not read."""
    Path("text.jsonl").write_text("text")

    load_text(MANIFEST, 'schemes.use=["fp8-dynamic"]')


def test_a_staged_text_that_is_too_short_is_refused(load_text: LoadText, tmp_path: Path) -> None:
    """The size of a text from the hub is known from its completion marker."""
    context = load_text(MANIFEST, "calibration.dataset=org/passages", f"paths.cache={tmp_path / 'hub'}")
    repository = Repository(kind=RepoKind.DATASET, id="org/passages")
    pinned = look_up(context.manifest, Pins(by_repository={repository: Pin(commit="a" * 40)}))
    assert [*staged_text_problems(pinned)] == []

    path = pinned.cache.calibration("org/passages", "a" * 40, ("default", "train", "text"))
    path.parent.mkdir(parents=True)
    path.write_text('{"text": ""}\n')
    write_text_marker(path)
    ((key, sentence),) = staged_text_problems(pinned)
    assert key == ("calibration", "samples")
    assert "'org/passages' has at most 13" in sentence


def test_a_mirrored_text_that_is_too_short_is_refused(load_text: LoadText, tmp_path: Path) -> None:
    """A staged text of a mirror is found by what identifies the mirrored files."""
    folder = tmp_path / "mirror" / "datasets" / "org" / "passages"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text('{"text": "short"}\n')
    overrides = ("calibration.dataset=org/passages", "data.mirror=mirror", f"paths.cache={tmp_path / 'hub'}")
    cache = load_text(MANIFEST, *overrides).cache

    path = cache.calibration("org/passages", mirror_revision(folder), ("default", "train", "text"))
    path.parent.mkdir(parents=True)
    path.write_text('{"text": ""}\n')
    write_text_marker(path)
    with pytest.raises(ManifestError, match=r"calibration\.samples: .* 'org/passages' has at most 13"):
        load_text(MANIFEST, *overrides)


@pytest.mark.parametrize(
    ("tokenizer", "overrides", "message"),
    [
        ("{}", ("calibration.chat_template=true",), "chat_template: model has no chat template. Remove the key"),
        ('{"bos_token": null}', ("calibration.add_bos=true",), "add_bos: model has no BOS token. Remove the key."),
        (
            "{}",
            ("calibration.add_bos=true", "calibration.sequence_length=1", "calibration.samples=1"),
            "calibration.add_bos: leaves no room for text in sequences of 1 token",
        ),
        (
            "{}",
            ("calibration.dataset=random-tokens", "calibration.chat_template=false"),
            "calibration.chat_template: is not allowed with 'random-tokens', which has no text",
        ),
    ],
)
def test_what_a_tokenizer_does_not_have_is_refused(
    tokenizer: str, overrides: tuple[str, ...], message: str, load_text: LoadText, tmp_path: Path
) -> None:
    """BOS and chat template are looked up in the model's folder before anything is submitted."""
    (tmp_path / "model" / "tokenizer_config.json").write_text(tokenizer)
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "A passage of some length."}) + "\n")
    with pytest.raises(ManifestError, match=re.escape(message)):
        load_text(MANIFEST, *overrides)


def test_random_tokens_need_no_text(load_text: LoadText) -> None:
    """Nothing is staged, and the source is a part of the address."""
    resolved = resolve(load_text(MANIFEST, "calibration.dataset=random-tokens", "calibration.add_bos=true"))
    calibration = resolved.calibration
    assert calibration
    assert (calibration.source, calibration.path, calibration.add_bos) == ("random-tokens", None, True)
    assert not any("calibration" in sentence for sentence in resolved.missing)


def test_a_named_set_is_locked_as_its_data_set(load_text: LoadText) -> None:
    """A name stands for a data set on the hub, so that a later version of hpcq reads the same one."""
    context = load_text(MANIFEST, "calibration.dataset=ultrachat")
    section = context.manifest.calibration
    assert (section.dataset, section.split, section.column) == ("HuggingFaceH4/ultrachat_200k", "train_sft", "messages")


def test_new_settings_keep_existing_addresses() -> None:
    """Settings that are not given are no part of an address."""
    calibration = Calibration(digest="0" * 64, samples=4, sequence_length=8)
    assert set(canonical(calibration)) == {"digest", "samples", "sequence_length"}
