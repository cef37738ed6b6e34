"""Vocabulary in a tokenizer.json: whether the tokenizers library can load it, and its largest token id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

TOKENIZER_FILE = "tokenizer.json"
_PAIR = 2
_MODEL_TYPES = ("BPE", "Unigram", "WordLevel", "WordPiece")
"""Types of the tokenizers library (0.23). A file without a type is read as the first type whose keys it has."""


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
