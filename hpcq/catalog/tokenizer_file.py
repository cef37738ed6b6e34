"""Vocabulary in a tokenizer.json: whether the tokenizers library can load it, and its largest token id."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpcq.core.file_facts import remembered
from hpcq.core.frozen import dataclass

TOKENIZER_FILE = "tokenizer.json"
_PAIR = 2
_MODEL_TYPES = ("BPE", "Unigram", "WordLevel", "WordPiece")
"""Types of the tokenizers library (0.23). A file without a type is read as the first type whose keys it has."""


@dataclass(frozen=True, kw_only=True)
class TokenizerFacts:
    """What a tokenizer.json says.

    Attributes:
        is_object: Whether it is a JSON object; otherwise nothing else is known.
        problem: What `vocabulary_problem` returns.
        largest: What `largest_token` returns.
    """

    is_object: bool
    problem: str | None
    largest: int | None


def read_tokenizer(path: Path) -> TokenizerFacts:
    """Return the facts about a tokenizer.json. A large file takes a second, so they are kept until it changes.

    Raises:
        OSError: The file cannot be read.
    """
    version = str(zlib.crc32(Path(__file__).read_bytes()))
    return TokenizerFacts(**remembered(path, _facts, name="tokenizers", version=version))


def _facts(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    is_object = isinstance(content, dict)
    problem = vocabulary_problem(content) if is_object else None
    return asdict(TokenizerFacts(is_object=is_object, problem=problem, largest=largest_token(content)))


def vocabulary_problem(content: Mapping[str, Any]) -> str | None:
    """Return why the vocabulary cannot be loaded, as the end of a sentence; None: no problem was found.

    The library names neither the file nor the key in its errors.

    Args:
        content: Content of a tokenizer.json.
    """
    model = content.get("model")
    if not isinstance(model, dict):
        return "has no vocabulary (no key model)"
    kind, vocabulary = model.get("type"), model.get("vocab")
    if model.get("dropout"):
        return f"splits every text at random (model.dropout is {model['dropout']!r}): set it to null"
    if kind is not None and kind not in _MODEL_TYPES:
        return f"has a vocabulary of the type {kind!r}, which tokenizers does not support"
    if not isinstance(vocabulary, dict | list) or not vocabulary:
        return "has no vocabulary (model.vocab is missing or empty)"
    if kind is not None and (kind == "Unigram") is not isinstance(vocabulary, list):
        return f"has a vocabulary of the type {kind!r}, but in the form of another type"
    return None if isinstance(vocabulary, list) else _number_problem(vocabulary) or _merge_problem(model, vocabulary)


def _number_problem(vocabulary: Mapping[str, Any]) -> str | None:
    wrong = next((token for token, number in vocabulary.items() if type(number) is not int or number < 0), None)
    return None if wrong is None else f"has an invalid id for the token {wrong!r}: {vocabulary[wrong]!r}"


def _merge_problem(model: Mapping[str, Any], vocabulary: Mapping[str, int]) -> str | None:
    merges, prefix = model.get("merges"), model.get("continuing_subword_prefix") or ""
    if merges is None and model.get("type") == "BPE":
        return "has no merges (no key model.merges)"
    for merge in merges if isinstance(merges, list) else ():
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != _PAIR or not all(isinstance(part, str) for part in pair):
            return f"has an invalid merge: {merge!r}"
        absent = next((part for part in (*pair, pair[0] + pair[1][len(prefix) :]) if part not in vocabulary), None)
        if absent is not None:
            return f"has the merge {merge!r}, but its vocabulary lacks {absent!r}"
    return None


def largest_token(content: Any) -> int | None:
    """Return the largest token id in the vocabulary, without added tokens; None: unknown.

    Some published tokenizers have added tokens without a row in the model's embeddings (Gemma-3-1B: an image token).

    Args:
        content: Content of a tokenizer.json, which may be invalid.
    """
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        return None
    vocabulary = content["model"].get("vocab")
    added = {entry.get("id") for entry in content.get("added_tokens") or () if isinstance(entry, dict)}
    if isinstance(vocabulary, dict):
        numbers: Iterable[Any] = vocabulary.values()
    else:  # Unigram: a list, whose positions are the token ids
        numbers = range(len(vocabulary)) if isinstance(vocabulary, list) else ()
    return max((number for number in numbers if isinstance(number, int) and number not in added), default=None)
