"""Calibration sequences: a calibration text cut into token sequences of one length, the same on every machine."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.files import digest_of_file
from hpcq.core.work_records import Calibration


def calibration_sequences(
    calibration: Calibration, tokenize: Callable[[str], Sequence[int]], *, separator: int | None
) -> list[list[int]]:
    """Return the token sequences that `calibration` describes.

    Args:
        calibration: The text, and the number and length of the sequences.
        tokenize: From a passage to its tokens.
        separator: Token after each passage; None for none.

    Raises:
        SetupError: The text is missing, or its digest is not the planned one.
        UserInputError: The text is malformed or too short.
    """
    path = _checked_path(calibration)
    passages = shuffle(read_passages(path), calibration.seed)
    try:
        return pack(
            map(tokenize, passages),
            samples=calibration.samples,
            length=calibration.sequence_length,
            separator=separator,
        )
    except UserInputError as error:
        raise UserInputError(f"{path}: {error}") from None


def read_passages(path: Path) -> list[str]:
    """Return the `text` of every line of a JSON lines file, in order; blank lines are skipped.

    Raises:
        UserInputError: A line is not a JSON object with a text.
    """
    passages = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError):
                text = None
            if not isinstance(text, str):
                raise UserInputError(f'{path}:{number}: not a JSON line {{"text": "…"}}: write one passage per line.')
            passages.append(text)
    return passages


def shuffle(passages: Sequence[str], seed: int) -> list[str]:
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
            f"set calibration.samples to {len(tokens) // length} or less, or give a longer text."
        )
    return [tokens[start : start + length] for start in range(0, needed, length)]


def _checked_path(calibration: Calibration) -> Path:
    if calibration.path is None or not Path(calibration.path).is_file():
        raise SetupError(
            f"{calibration.path}: the calibration text '{calibration.dataset}' is missing: "
            f"stage the manifest, or correct calibration.dataset."
        )
    path = Path(calibration.path)
    found = digest_of_file(path)
    if calibration.digest is not None and found != calibration.digest:
        raise SetupError(
            f"{path}: its SHA-256 is {found[:12]}…, but the run was planned with {calibration.digest[:12]}…: "
            f"restore the text, or submit the manifest again."
        )
    return path
