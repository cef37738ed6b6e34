"""Calibration sequences: a calibration text cut into token sequences of one length, the same on every machine."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hpcq.core.calibration_source import RANDOM_TOKENS
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
            the text's passages, of those that the sequences are made of, of repeated ones, whether they are chats, the
            SHA-256 of the text, and that of the tokens, by which calibrations of different tools can be compared.
    """

    sequences: list[list[int]]
    facts: dict[str, Any]


def calibration_set(
    calibration: Calibration,
    tokenize: Tokenize,
    *,
    separator: int | None,
    render_chat: RenderChat | None = None,
    bos: int | None = None,
    vocabulary: Sequence[int] = (),
) -> CalibrationSet:
    """Return the token sequences that `calibration` describes: the same for every tool that gets these tokens.

    Args:
        calibration: The text, and the number and length of the sequences.
        tokenize: Returns the tokens of a text.
        separator: Token after each passage that is not a chat; None for none.
        render_chat: Returns the text of a chat's messages; None: the model has no chat template.
        bos: The model's BOS token; None: it has none.
        vocabulary: Tokens from which random ones are drawn: those of the model, without special ones.

    Raises:
        SetupError: The text is missing, or its digest is not the planned one.
        UserInputError: The text is malformed, too short, or has chats that the model cannot read; or BOS is missing.
    """
    if calibration.add_bos and bos is None:
        raise UserInputError("the model has no BOS token: remove calibration.add_bos.")
    begin = [bos] if calibration.add_bos and bos is not None else []
    if calibration.source == RANDOM_TOKENS:
        sequences = random_sequences(calibration, vocabulary, begin)
        return CalibrationSet(sequences=sequences, facts={**_token_facts(sequences, begin), "source": RANDOM_TOKENS})
    path, digest = _checked_text(calibration)
    passages = read_passages(path, calibration.column)
    is_chat = not isinstance(passages[0], str)
    renders = is_chat if calibration.chat_template is None else calibration.chat_template
    if renders and render_chat is None:
        raise UserInputError(
            f"{path}: the calibration text has chat messages, but the model has no chat template: set "
            "calibration.column to a column of strings, or add chat_template.jinja to the model's folder."
            if is_chat
            else "the model has no chat template: remove calibration.chat_template."
        )
    used = _Counted(shuffle(passages, calibration.seed))
    try:
        sequences = pack(
            (tokenize(_text(passage, render_chat if renders else None)) for passage in used),
            samples=calibration.samples,
            length=calibration.sequence_length,
            separator=None if renders else separator,
            begin=begin,
        )
    except UserInputError as error:
        raise UserInputError(f"{path}: {error}") from None
    facts = {
        **_token_facts(sequences, begin),
        "passages": len(passages),
        "passages_used": used.count,
        "repeated_passages": len(passages) - len(set(map(repr, passages))),
        "is_chat": is_chat,
        "chat_template": renders,
        "sha256": digest,
    }
    return CalibrationSet(sequences=sequences, facts=facts)


def random_sequences(calibration: Calibration, vocabulary: Sequence[int], begin: Sequence[int]) -> list[list[int]]:
    """Return sequences of tokens that are drawn uniformly from `vocabulary`, after the tokens `begin`.

    Raises:
        UserInputError: The vocabulary is empty.
    """
    if not vocabulary:
        raise UserInputError("the tokenizer has no tokens to draw from: set calibration.dataset to a text.")
    generator = random.Random(calibration.seed)  # noqa: S311  reproducible, not secret
    count = calibration.sequence_length - len(begin)
    return [[*begin, *generator.choices(vocabulary, k=count)] for _ in range(calibration.samples)]


def digest_of_tokens(sequences: Sequence[Sequence[int]]) -> str:
    """Return the SHA-256 of token sequences: of each its length and its tokens, as little-endian 32-bit integers."""
    total = hashlib.sha256()
    for sequence in sequences:
        total.update(struct.pack(f"<{len(sequence) + 1}I", len(sequence), *sequence))
    return total.hexdigest()


def _token_facts(sequences: Sequence[Sequence[int]], begin: Sequence[int]) -> dict[str, Any]:
    return {
        "samples": len(sequences),
        "tokens": sum(map(len, sequences)),
        "tokens_sha256": digest_of_tokens(sequences),
        "begins_with_bos": bool(begin),
    }


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
    if render_chat is None:
        return passage if isinstance(passage, str) else "\n\n".join(message["content"] for message in passage)
    return render_chat([{"role": "user", "content": passage}] if isinstance(passage, str) else passage)


def shuffle(passages: Sequence[T], seed: int) -> list[T]:
    """Return `passages` in an order that depends on `seed` alone."""
    # random.Random gives the same order on every platform and in every Python since 3.2; sets and hashes do not.
    ordered = list(passages)
    random.Random(seed).shuffle(ordered)  # noqa: S311  reproducible, not secret
    return ordered


def pack(
    passages: Iterable[Sequence[int]], *, samples: int, length: int, separator: int | None, begin: Sequence[int] = ()
) -> list[list[int]]:
    """Join `passages` and cut `samples` sequences of exactly `length` tokens.

    Args:
        passages: Tokens of each passage; consumed only as far as needed.
        samples: Number of sequences.
        length: Tokens per sequence.
        separator: Token after each passage; None for none.
        begin: First tokens of each sequence, a part of its length.

    Raises:
        UserInputError: The passages have too few tokens.
    """
    part = length - len(begin)
    if part < 1:
        raise UserInputError("sequences of one token have no room for BOS: increase calibration.sequence_length.")
    needed = samples * part
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
    return [[*begin, *tokens[start : start + part]] for start in range(0, needed, part)]


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
