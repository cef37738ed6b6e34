"""Calibration sequences: a calibration text cut into token sequences of one length, the same on every machine."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.files import digest_of_file
from hpcq.core.frozen import dataclass
from hpcq.core.text_marker import read_text_marker
from hpcq.core.work_records import Calibration
from hpcq.quantize.calibration_text import Message, Passage, read_passages

T = TypeVar("T")

Tokenize = Callable[[str], Sequence[int]]
RenderChat = Callable[[list[Message]], str]


@dataclass(frozen=True, kw_only=True)
class CalibrationSet:
    """Calibration sequences.

    Attributes:
        sequences: Tokens of each sequence.
        facts: What they were made of, for the metadata of the checkpoint: numbers of sequences, of their tokens, of
            the text's passages, of those that the sequences are made of, of repeated ones, whether they are chats, and
            the SHA-256 of the text.
    """

    sequences: list[list[int]]
    facts: dict[str, Any]


def calibration_set(
    calibration: Calibration, tokenize: Tokenize, *, separator: int | None, render_chat: RenderChat | None = None
) -> CalibrationSet:
    """Return the token sequences that `calibration` describes.

    Args:
        calibration: The text, and the number and length of the sequences.
        tokenize: Returns the tokens of a text.
        separator: Token after each passage that is not a chat; None for none.
        render_chat: Returns the text of a chat's messages; None: the model has no chat template.

    Raises:
        SetupError: The text is missing, or its digest is not the planned one.
        UserInputError: The text is malformed, too short, or has chats that the model cannot read.
    """
    path, digest = _checked_text(calibration)
    passages = read_passages(path, calibration.column)
    is_chat = not isinstance(passages[0], str)
    if is_chat and render_chat is None:
        raise UserInputError(
            f"{path}: the calibration text has chat messages, but the model has no chat template: set "
            "calibration.column to a column of strings, or add chat_template.jinja to the model's folder."
        )
    used = _Counted(shuffle(passages, calibration.seed))
    try:
        sequences = pack(
            (tokenize(_text(passage, render_chat)) for passage in used),
            samples=calibration.samples,
            length=calibration.sequence_length,
            separator=None if is_chat else separator,
        )
    except UserInputError as error:
        raise UserInputError(f"{path}: {error}") from None
    facts = {
        "samples": len(sequences),
        "tokens": sum(map(len, sequences)),
        "passages": len(passages),
        "passages_used": used.count,
        "repeated_passages": len(passages) - len(set(map(repr, passages))),
        "is_chat": is_chat,
        "sha256": digest,
    }
    return CalibrationSet(sequences=sequences, facts=facts)


class _Counted(Iterable[T]):
    """Counts the items that are read."""

    def __init__(self, items: Sequence[T]) -> None:
        self._items = items
        self.count = 0

    def __iter__(self) -> Iterator[T]:
        for item in self._items:
            self.count += 1
            yield item


def _text(passage: Passage, render_chat: RenderChat | None) -> str:
    if isinstance(passage, str) or render_chat is None:
        return str(passage)
    return render_chat(passage)


def shuffle(passages: Sequence[T], seed: int) -> list[T]:
    """Return `passages` in an order that depends on `seed` alone."""
    # random.Random gives the same order on every platform and in every Python since 3.2; sets and hashes do not.
    ordered = list(passages)
    random.Random(seed).shuffle(ordered)  # noqa: S311  reproducible, not secret
    return ordered


def pack(passages: Iterable[Sequence[int]], *, samples: int, length: int, separator: int | None) -> list[list[int]]:
    """Join `passages` and cut `samples` sequences of exactly `length` tokens.

    Args:
        passages: Tokens of each passage; consumed only as far as needed.
        samples: Number of sequences.
        length: Tokens per sequence.
        separator: Token after each passage; None for none.

    Raises:
        UserInputError: The passages have too few tokens.
    """
    needed = samples * length
    tokens: list[int] = []
    for passage in passages:
        tokens.extend(passage)
        if separator is not None:
            tokens.append(separator)
        if len(tokens) >= needed:
            break
    if len(tokens) < needed:
        raise UserInputError(
            f"the calibration text has {len(tokens)} tokens, but {samples} samples of {length} need {needed}: "
            f"{shorter_calibration(len(tokens), length)}."
        )
    return [tokens[start : start + length] for start in range(0, needed, length)]


def shorter_calibration(tokens: int, length: int) -> str:
    """Return the fix of a text with too few tokens, as a clause."""
    if not tokens:
        return "give a text"
    if tokens < length:
        return (
            f"set calibration.samples to 1 and calibration.sequence_length to {tokens} or less, or give a longer text"
        )
    return f"set calibration.samples to {tokens // length} or less, or give a longer text"


def _checked_text(calibration: Calibration) -> tuple[Path, str]:
    """Return the file of the text and its SHA-256, which must be the one of the plan or of the staging."""
    if calibration.path is None or not Path(calibration.path).is_file():
        raise SetupError(
            f"{calibration.path}: the calibration text '{calibration.source or calibration.dataset}' is missing: "
            f"stage the manifest with `hpcq stage MANIFEST`, or correct calibration.dataset."
        )
    path = Path(calibration.path)
    found = digest_of_file(path)
    if calibration.digest is not None and found != calibration.digest:
        raise SetupError(
            f"{path}: its SHA-256 is {found[:12]}…, but the run was planned with {calibration.digest[:12]}…: "
            f"restore the text, or submit the manifest again."
        )
    if calibration.source is not None:
        marker = read_text_marker(path)
        if marker is None or marker.sha256 != found:
            staged = f"was staged with {marker.sha256[:12]}…" if marker else "has no completion marker"
            raise SetupError(
                f"{path}: its SHA-256 is {found[:12]}…, but the calibration text {calibration.source} {staged}: remove "
                "the file, and run `hpcq stage MANIFEST`."
            )
    return path, found
