"""Facts about how a calibration text becomes sequences."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.files import digest_of_file
from hpcq.core.work import Calibration
from hpcq.quantize.calibration import calibration_sequences, pack, read_passages, shuffled

passages_of_tokens = st.lists(st.lists(st.integers(1, 9), max_size=30), max_size=30)


def written(folder: Path, texts: list[str]) -> Path:
    """A calibration file of these texts."""
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@given(passages=passages_of_tokens, samples=st.integers(1, 5), length=st.integers(1, 20))
def test_sequences_are_the_text_cut(passages: list[list[int]], samples: int, length: int) -> None:
    """The sequences joined are the beginning of the passages joined with separators; each has the length asked for."""
    stream = [token for passage in passages for token in (*passage, 0)]
    if len(stream) < samples * length:
        with pytest.raises(UserInputError, match=f"need {samples * length}"):
            pack(passages, samples=samples, length=length, separator=0)
        return
    sequences = pack(passages, samples=samples, length=length, separator=0)
    assert [len(sequence) for sequence in sequences] == [length] * samples
    assert [token for sequence in sequences for token in sequence] == stream[: samples * length]


def test_no_separator_where_the_model_has_none() -> None:
    """Without an end-of-text token passages follow each other directly."""
    assert pack([[1, 2], [3, 4]], samples=2, length=2, separator=None) == [[1, 2], [3, 4]]


def test_only_needed_passages_are_tokenised() -> None:
    """Packing stops reading as soon as it has enough: a large text costs no more than a small one."""
    read = []

    def passages() -> Iterator[list[int]]:
        for number in range(1000):
            read.append(number)
            yield [number] * 10

    pack(passages(), samples=2, length=10, separator=None)
    assert read == [0, 1]


def test_too_little_text_says_how_much_would_do() -> None:
    """The sentence has the tokens found, the tokens needed, and the number of samples that would do."""
    with pytest.raises(UserInputError, match=r"has 25 tokens, but 4 samples of 10 need 40: set .* to 2 or less"):
        pack([[1] * 25], samples=4, length=10, separator=None)


def test_the_seed_alone_decides_the_order() -> None:
    """One seed gives one order for good; another gives another."""
    texts = [str(number) for number in range(10)]
    assert shuffled(texts, 1234) == ["2", "8", "3", "5", "6", "4", "9", "0", "1", "7"]
    assert shuffled(texts, 1235) != shuffled(texts, 1234)
    assert sorted(shuffled(texts, 7)) == texts


def test_a_text_becomes_sequences(tmp_path: Path) -> None:
    """Reading, shuffling, tokenising and cutting go together, and repeat exactly."""
    path = written(tmp_path, ["ab", "cd", "", "ef"])
    calibration = Calibration(
        digest=digest_of_file(path), samples=2, sequence_length=4, seed=1, dataset="letters", path=str(path)
    )
    first = calibration_sequences(calibration, lambda text: [ord(letter) for letter in text], separator=0)
    assert first == calibration_sequences(calibration, lambda text: [ord(letter) for letter in text], separator=0)
    assert ["".join(map(chr, sequence)) for sequence in first] == ["ef\0a", "b\0\0c"]


def test_an_altered_text_is_refused(tmp_path: Path) -> None:
    """A text whose digest is not the planned one is never calibrated with."""
    path = written(tmp_path, ["enough text"])
    calibration = Calibration(digest="0" * 64, samples=1, sequence_length=2, path=str(path))
    with pytest.raises(SetupError, match=r"text.jsonl: its SHA-256 is .*planned with 000000000000"):
        calibration_sequences(calibration, lambda text: [1] * len(text), separator=None)


def test_a_missing_text_is_named(tmp_path: Path) -> None:
    """A text that is not there gives one sentence with its name and path."""
    calibration = Calibration(
        digest=None, samples=1, sequence_length=2, dataset="boolq-passages", path=str(tmp_path / "none.jsonl")
    )
    with pytest.raises(SetupError, match=r"none.jsonl: the calibration text 'boolq-passages' is not there"):
        calibration_sequences(calibration, lambda _: [1], separator=None)


@pytest.mark.parametrize("line", ["no json", '["text"]', '{"passage": "x"}', '{"text": 3}'])
def test_a_malformed_line_is_named(tmp_path: Path, line: str) -> None:
    """A line that is no JSON object with a text is refused with file and line."""
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "good"}\n\n' + line + "\n", encoding="utf-8")
    with pytest.raises(UserInputError, match=r"text.jsonl:3: not a JSON line"):
        read_passages(path)
