"""generation_config.json: stop tokens are read, every setting that would change an answer is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpcq.catalog.generation_settings import GenerationSettings, read_generation_settings


def _read(folder: Path, content: Any, config: Any = None) -> GenerationSettings:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "generation_config.json").write_text(text, encoding="utf-8")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return read_generation_settings(folder)


def test_settings_that_change_answers_are_named(tmp_path: Path) -> None:
    """Penalties, limits and sampling are named with their values; metadata and neutral values are not."""
    found = _read(
        tmp_path,
        {
            "bos_token_id": 1,
            "eos_token_id": [7, 2, 7],
            "pad_token_id": 0,
            "do_sample": True,
            "temperature": 0.6,
            "top_k": 50,
            "repetition_penalty": 1.3,
            "no_repeat_ngram_size": 0,
            "max_length": 4096,
            "max_new_tokens": 3,
            "stop_strings": ["\n\n"],
            "transformers_version": "4.40.0",
            "chat_format": "chatml",
        },
    )

    assert found.stop_tokens == (7, 2)
    assert found.ignored == ("max_new_tokens=3", "repetition_penalty=1.3", r'stop_strings=["\n\n"]')
    assert found.ignored_sampling == ("do_sample=true", "temperature=0.6")
    assert found.problem is None


@pytest.mark.parametrize(("value", "stop_tokens"), [(None, ()), (2, (2,)), ([2, 5], (2, 5))])
def test_stop_tokens_are_one_id_or_a_list(tmp_path: Path, value: object, stop_tokens: tuple[int, ...]) -> None:
    """A token id, or a list of them, is read."""
    assert _read(tmp_path, {"eos_token_id": value}) == GenerationSettings(stop_tokens=stop_tokens)


@pytest.mark.parametrize(
    ("value", "stop_tokens"),
    [("2", ()), ([2, None], (2,)), (-1, ()), (True, ()), ([[2]], ()), (2.0, ()), ({"a": 2}, ())],
)
def test_other_values_are_no_stop_tokens(tmp_path: Path, value: object, stop_tokens: tuple[int, ...]) -> None:
    """A value that is no token id is left out, and the problem has the value."""
    found = _read(tmp_path, {"eos_token_id": value})

    assert found.stop_tokens == stop_tokens
    assert found.problem == f"eos_token_id has values that are not token ids: {json.dumps(value)}"


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"eos_token_id": 2', "\ufeff", "[" * 100_000])
def test_a_file_that_is_no_json_object_is_no_error(tmp_path: Path, content: str) -> None:
    """Without a readable generation_config.json the stop tokens come from config.json, of its part for text too."""
    found = _read(tmp_path, content, {"model_type": "gemma3", "text_config": {"eos_token_id": [1, 106]}})

    assert found.stop_tokens == (1, 106)
    assert found.problem is not None


def test_a_file_without_stop_tokens_is_taken_as_it_is(tmp_path: Path) -> None:
    """generation_config.json replaces config.json as a whole, as in transformers and vLLM."""
    assert _read(tmp_path, {"do_sample": False}, {"eos_token_id": 2}) == GenerationSettings()


def test_no_file_is_no_problem(tmp_path: Path) -> None:
    """A folder without either file has no settings."""
    assert read_generation_settings(tmp_path) == GenerationSettings()


def test_code_that_replaces_generation_is_named(tmp_path: Path) -> None:
    """The program that transformers would run instead of its own `generate` is named."""
    (tmp_path / "custom_generate").mkdir()
    (tmp_path / "custom_generate" / "generate.py").write_text("", encoding="utf-8")

    assert _read(tmp_path, {}).ignored == ("custom_generate/generate.py",)


def test_a_setting_of_a_wrong_type_is_named(tmp_path: Path) -> None:
    """A penalty in quotes is ignored like a number, and named for the mark ^G."""
    found = _read(tmp_path, {"repetition_penalty": "1.3", "min_length": "x", "bad_words_ids": {"a": 1}})

    assert found.ignored == ('bad_words_ids={"a": 1}', 'min_length="x"', 'repetition_penalty="1.3"')
    assert found.problem is None
