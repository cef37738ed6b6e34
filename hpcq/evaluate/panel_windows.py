"""Windows of a fidelity panel: parts of a held-out text, the same for every model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hpcq.core.calibration_source import RANDOM_TOKENS
from hpcq.core.digests import digest_of_text
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.work_records import Calibration, FidelityPanel
from hpcq.quantize.calibration import shuffle
from hpcq.quantize.calibration_text import Passage, read_passages

WINDOW_CHARACTERS_PER_TOKEN = 6
"""Upper limit of the mean characters per token: English prose has 4 to 5, also with vocabularies of 262 k tokens."""

_SEPARATOR = "\n\n"


def panel_windows(panel: FidelityPanel) -> list[str]:
    """Return the texts of the windows. Each begins with a passage, and no passage is in two windows.

    A window has `WINDOW_CHARACTERS_PER_TOKEN` characters per token that the model reads, so that every tokenizer makes
    enough tokens of it. Passages that the calibration may read are left out, and so are repeated ones.

    Raises:
        SetupError: The text, or the calibration text, is missing or has changed.
        UserInputError: The text is malformed, has chats, or is too short.
    """
    passages = _read(panel, "fidelity")
    if not isinstance(passages[0], str):
        raise UserInputError(
            f"{panel.path}: the text of the fidelity panel has chat messages: set fidelity.column to a column of"
            " strings, or fidelity.dataset to a text."
        )
    left_out = reserved_passages(panel.reserved) if panel.reserved else []
    reserved = {text for passage in left_out for text in _texts(passage)}
    held_out = [text for text in dict.fromkeys(map(str, passages)) if text not in reserved]
    windows: list[str] = []
    for window in _windows(shuffle(held_out, panel.seed), panel.window_tokens * WINDOW_CHARACTERS_PER_TOKEN):
        if len(windows) == panel.windows:
            break
        windows.append(window)
    if len(windows) < panel.windows:
        raise UserInputError(_too_short(panel, len(windows)))
    return windows


def reserved_passages(calibration: Calibration) -> list[Passage]:
    """Return the passages that a calibration can read, and usually more, because its tokenizer is not known here.

    Raises:
        SetupError: The text is missing or has changed.
        UserInputError: The text is malformed.
    """
    if calibration.source == RANDOM_TOKENS:
        return []
    limit = calibration.samples * calibration.sequence_length * WINDOW_CHARACTERS_PER_TOKEN
    found: list[Passage] = []
    read = 0
    for passage in shuffle(_read(calibration, "calibration"), calibration.seed):
        if read >= limit:
            break
        found.append(passage)
        read += sum(map(len, _texts(passage)))
    return found


def _texts(passage: Passage) -> list[str]:
    return [passage] if isinstance(passage, str) else [message["content"] for message in passage]


def _read(text: FidelityPanel | Calibration, key: str) -> list[Passage]:
    """Return the passages of a text, whose digest must be the planned one."""
    path = Path(text.path) if text.path else None
    if path is None or not path.is_file():
        raise SetupError(
            f"{path}: the text '{text.source or text.dataset}' is missing: stage the manifest with `hpcq stage"
            f" MANIFEST`, or correct {key}.dataset."
        )
    if text.digest is not None and (found := digest_of_text(path)) != text.digest:
        raise SetupError(
            f"{path}: its SHA-256 is {found[:12]}…, but the run was planned with {text.digest[:12]}…: restore the text,"
            " or submit the manifest again."
        )
    return read_passages(path, text.column, table=key)


def _windows(passages: list[str], characters: int) -> Iterator[str]:
    """Yield texts of `characters` characters. A passage is in one window; the part beyond its end is dropped."""
    window = ""
    for passage in passages:
        window = f"{window}{_SEPARATOR}{passage}" if window else passage
        if len(window) >= characters:
            yield window[:characters]
            window = ""


def _too_short(panel: FidelityPanel, found: int) -> str:
    left_out = " besides what the calibration may read" if panel.reserved else ""
    fix = f"set fidelity.tokens to {found * panel.window_tokens} or less, or give" if found else "give"
    return (
        f"{panel.path}: has text for {found} windows of {panel.window_tokens} tokens{left_out}, but the fidelity panel"
        f" needs {panel.windows}: {fix} a longer text."
    )
