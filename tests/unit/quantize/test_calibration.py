"""Calibration text: reading, shuffling and cutting into sequences."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcq.core.calibration_source import RANDOM_TOKENS
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.files import digest_of_file
from hpcq.core.text_marker import write_text_marker
from hpcq.core.work_records import Calibration
from hpcq.quantize.calibration import calibration_set, digest_of_tokens, pack, shuffle

passages_of_tokens = st.lists(st.lists(st.integers(1, 9), max_size=30), max_size=30)


def write_passages(folder: Path, texts: list[str]) -> Path:
    """Write a calibration file of these texts."""
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def letters(text: str) -> list[int]:
    """Return one token per letter."""
    return [ord(letter) for letter in text]


@given(passages=passages_of_tokens, samples=st.integers(1, 5), length=st.integers(1, 20))
def test_sequences_are_the_text_cut(passages: list[list[int]], samples: int, length: int) -> None:
    """The joined sequences are the beginning of the passages joined with separators; each has the requested length."""
    stream = [token for passage in passages for token in (*passage, 0)]
    if len(stream) < samples * length:
        with pytest.raises(UserInputError, match=f"need {samples * length}"):
            pack(passages, samples=samples, length=length, separator=0)
        return
    sequences = pack(passages, samples=samples, length=length, separator=0)
    assert [len(sequence) for sequence in sequences] == [length] * samples
    assert [token for sequence in sequences for token in sequence] == stream[: samples * length]


def test_without_a_separator_passages_are_adjacent() -> None:
    """For a model without an end-of-text token, passages follow each other directly."""
    assert pack([[1, 2], [3, 4]], samples=2, length=2, separator=None) == [[1, 2], [3, 4]]


def test_only_needed_passages_are_tokenized() -> None:
    """Packing stops reading as soon as it has enough tokens: a large text costs no more than a small one."""
    read = []

    def passages() -> Iterator[list[int]]:
        for number in range(1000):
            read.append(number)
            yield [number] * 10

    pack(passages(), samples=2, length=10, separator=None)
    assert read == [0, 1]


def test_too_little_text_is_refused_with_the_possible_number_of_samples() -> None:
    """The message has the tokens found, the tokens needed, and the largest possible number of samples.

    Observed: the plan accepted such a text.
    """
    with pytest.raises(UserInputError, match=r"has 25 tokens, but 4 samples of 10 need 40: set .* to 2 or less"):
        pack([[1] * 25], samples=4, length=10, separator=None)


def test_the_seed_alone_determines_the_order() -> None:
    """The same seed always gives the same order; another seed gives another order."""
    texts = [str(number) for number in range(10)]
    assert shuffle(texts, 1234) == ["2", "8", "3", "5", "6", "4", "9", "0", "1", "7"]
    assert shuffle(texts, 1235) != shuffle(texts, 1234)
    assert sorted(shuffle(texts, 7)) == texts


def test_a_text_becomes_sequences(tmp_path: Path) -> None:
    """Reading, shuffling, tokenizing and cutting are deterministic."""
    path = write_passages(tmp_path, ["ab", "cd", "", "ef"])
    calibration = Calibration(
        digest=digest_of_file(path), samples=2, sequence_length=4, seed=1, dataset="letters", path=str(path)
    )
    made = calibration_set(calibration, letters, separator=0)
    first = made.sequences
    assert made == calibration_set(calibration, letters, separator=0)
    assert ["".join(map(chr, sequence)) for sequence in first] == ["ef\0a", "b\0\0c"]
    counts = {"samples": 2, "tokens": 8, "passages": 4, "passages_used": 4, "repeated_passages": 0, "is_chat": False}
    tokens = {"tokens_sha256": digest_of_tokens(first), "begins_with_bos": False, "chat_template": False}
    assert made.facts == {**counts, **tokens, "sha256": calibration.digest}


def test_a_byte_order_mark_changes_no_sequence(tmp_path: Path) -> None:
    """The same text with a byte order mark gives the same sequences; its digest differs."""
    plain, marked = tmp_path / "plain.txt", tmp_path / "marked.txt"
    plain.write_text("ab\n\ncd\n")
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    first, second = (
        calibration_set(
            Calibration(digest=digest_of_file(path), samples=1, sequence_length=4, path=str(path)), letters, separator=0
        )
        for path in (plain, marked)
    )
    assert first.sequences == second.sequences
    assert first.facts["sha256"] != second.facts["sha256"]


def test_chats_are_rendered_with_the_template(tmp_path: Path) -> None:
    """Chats are rendered without separators; without a template they are refused.

    Observed: chat messages were refused.
    """
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "ab"}]}) + "\n")
    calibration = Calibration(digest=None, samples=1, sequence_length=5, column="messages", path=str(path))

    made = calibration_set(
        calibration, letters, separator=0, render_chat=lambda messages: "".join(f"<{m['content']}>." for m in messages)
    )
    assert "".join(map(chr, made.sequences[0])) == "<ab>."
    assert made.facts["is_chat"] is True
    with pytest.raises(UserInputError, match="has chat messages, but the model has no chat template: set calibration"):
        calibration_set(calibration, letters, separator=0)


def test_a_staged_text_is_verified(tmp_path: Path) -> None:
    """A text from the hub is used only with the digest that its completion marker has."""
    path = write_passages(tmp_path, ["ab"])
    calibration = Calibration(digest=None, samples=1, sequence_length=2, source="org/data@0/a/b/c", path=str(path))
    with pytest.raises(SetupError, match="has no completion marker: remove the file, and run"):
        calibration_set(calibration, letters, separator=None)
    write_text_marker(path)
    assert calibration_set(calibration, letters, separator=None).facts["tokens"] == 2
    write_passages(tmp_path, ["xy"])
    with pytest.raises(SetupError, match=r"but the calibration text .* was staged with"):
        calibration_set(calibration, letters, separator=None)


def test_a_modified_text_is_refused(tmp_path: Path) -> None:
    """A text whose digest is not the planned one is never used."""
    path = write_passages(tmp_path, ["enough text"])
    calibration = Calibration(digest="0" * 64, samples=1, sequence_length=2, path=str(path))
    with pytest.raises(SetupError, match=r"text.jsonl: its SHA-256 is .*planned with 000000000000"):
        calibration_set(calibration, lambda text: [1] * len(text), separator=None)


def test_a_missing_text_is_named(tmp_path: Path) -> None:
    """The message about a missing text has its name and path."""
    calibration = Calibration(
        digest=None, samples=1, sequence_length=2, dataset="boolq-passages", path=str(tmp_path / "none.jsonl")
    )
    with pytest.raises(SetupError, match=r"none.jsonl: the calibration text 'boolq-passages' is missing"):
        calibration_set(calibration, lambda _: [1], separator=None)


MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


def rendered(messages: list[dict[str, str]]) -> str:
    """Return messages as a chat template would."""
    return "".join(f"<{message['role']}>{message['content']}" for message in messages)


def calibration_of(folder: Path, texts: list[object], **fields: object) -> Calibration:
    """Return a calibration with one sequence of 12 tokens of these passages."""
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    defaults: dict[str, object] = {"digest": None, "samples": 1, "sequence_length": 12, "path": str(path)}
    return Calibration(**{**defaults, **fields})  # type: ignore[arg-type]


def text_of(calibration: Calibration, **options: object) -> str:
    """Return the only sequence as text; the separator is '|' and BOS is '^'."""
    options = {"separator": ord("|"), "render_chat": rendered, "bos": ord("^"), **options}
    [sequence] = calibration_set(calibration, letters, **options).sequences  # type: ignore[arg-type]
    return "".join(map(chr, sequence))


@pytest.mark.parametrize(
    ("passages", "fields", "expected"),
    [
        ([MESSAGES], {}, "<user>Hi<ass"),
        ([MESSAGES, MESSAGES], {"chat_template": False}, "Hi\n\nHo|Hi\n\nH"),
        (["Hello", "Hello", "Hello"], {}, "Hello|Hello|"),
        (["Hello"], {"chat_template": True, "sequence_length": 11}, "<user>Hello"),
        (["Hello", "Hello", "Hello"], {"add_bos": True}, "^Hello|Hello"),
    ],
)
def test_templates_and_bos_are_applied_as_asked(
    passages: list[object], fields: dict[str, object], expected: str, tmp_path: Path
) -> None:
    """By default chats are rendered and texts are separated; each sequence may begin with BOS, within its length."""
    assert text_of(calibration_of(tmp_path, passages, **fields)) == expected


def test_every_sequence_begins_with_bos(tmp_path: Path) -> None:
    """BOS is a part of the length, and the facts say so."""
    found = calibration_set(
        calibration_of(tmp_path, ["abcdefgh"], samples=2, sequence_length=4, add_bos=True),
        letters, separator=None, bos=1,
    )  # fmt: skip
    assert found.sequences == [[1, *letters("abc")], [1, *letters("def")]]
    assert (found.facts["begins_with_bos"], found.facts["tokens"]) == (True, 8)


@pytest.mark.parametrize(
    ("passages", "fields", "message"),
    [
        (["Hello"], {"add_bos": True}, "the model has no BOS token: remove calibration.add_bos"),
        (["Hello"], {"chat_template": True}, "the model has no chat template: remove calibration.chat_template"),
        ([MESSAGES], {}, "the calibration text has chat messages, but the model has no chat template"),
    ],
)
def test_what_a_model_does_not_have_is_refused(
    passages: list[object], fields: dict[str, object], message: str, tmp_path: Path
) -> None:
    """A model without BOS or template is refused with the key to change."""
    with pytest.raises(UserInputError, match=message):
        text_of(calibration_of(tmp_path, passages, **fields), bos=None, render_chat=None)


def test_random_tokens_depend_on_the_seed_alone() -> None:
    """They are drawn from the given vocabulary, without a text; another seed gives others."""
    random = Calibration(digest=None, samples=3, sequence_length=20, source=RANDOM_TOKENS, add_bos=True)
    first, second = (calibration_set(random, letters, separator=None, bos=0, vocabulary=range(5, 99)) for _ in range(2))
    other = calibration_set(replace(random, seed=7), letters, separator=None, bos=0, vocabulary=range(5, 99))
    assert first.sequences == second.sequences != other.sequences
    assert all(one[0] == 0 and len(one) == 20 and set(one[1:]) <= set(range(5, 99)) for one in first.sequences)
    assert first.facts["tokens_sha256"] == second.facts["tokens_sha256"] != other.facts["tokens_sha256"]
    with pytest.raises(UserInputError, match="has no tokens to draw from"):
        calibration_set(replace(random, add_bos=False), letters, separator=None)


def test_the_digest_of_tokens_tells_sequences_apart() -> None:
    """It depends on the tokens, their order, and where a sequence ends; the value never changes."""
    lists = ([[1, 2], [3]], [[1], [2, 3]], [[2, 1], [3]], [[1, 2, 3]])
    assert len({digest_of_tokens(one) for one in lists}) == len(lists)
    assert digest_of_tokens([[1, 2], [3]]).startswith("da72f95aa502")
