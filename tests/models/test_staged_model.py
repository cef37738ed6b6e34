"""The checkpoint that is converted from a packaged GGUF file is the expected model."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hpcq.core.errors import SetupError
from hpcq.stage.staging import _convert_gguf
from tests.staged import staged_model

CHECKOUT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).parent / "checkpoint_facts.py"
STRINGS = [
    "In 2024, 1234567 ducks\n\n\n  ate 3.14 pies\t!",
    "Ünïcödé 你好 🎉 Ж",
    "<|im_start|>user\nhi<|im_end|>\n",
    " leading and trailing \r\n",
]


@pytest.fixture(scope="module")
def facts(transformers_python: Path) -> dict[str, Any]:
    """Return the facts of the staged checkpoint of the quickstart's model."""
    folder = staged_model("HuggingFaceTB/SmolLM2-135M-Instruct")
    command = [str(transformers_python), str(PROGRAM), str(folder), str(CHECKOUT / "LICENSE")]
    completed = subprocess.run(command, input=json.dumps(STRINGS), capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr[-2000:]
    facts: dict[str, Any] = json.loads(completed.stdout)
    return facts


def test_the_weights_are_correct(facts: dict[str, Any]) -> None:
    """All weights are correct: with q and k not in transformers' order, the perplexity would be in the thousands."""
    assert facts["generated"].startswith("The capital of France is Paris")
    assert facts["perplexity"] == pytest.approx(13.97, abs=0.02)


def test_text_survives_the_tokenizer(facts: dict[str, Any]) -> None:
    """Digits, line ends, other scripts and special tokens are unchanged after encoding and decoding."""
    assert facts["decoded"] == {string: string for string in STRINGS}


def test_every_digit_is_a_token(facts: dict[str, Any]) -> None:
    """A number is split into its digits, as in the training; transformers' GPT-2 tokenizer does not do this."""
    assert facts["tokens"][STRINGS[0]][:6] == ["In", "Ġ", "2", "0", "2", "4"]


def test_generation_ends_at_the_end_of_a_turn(facts: dict[str, Any]) -> None:
    """The token `<|im_end|>` with id 2 stops generation and pads batches."""
    assert facts["stop_ids"] == [2, 2, 2]
    assert facts["tokens"][STRINGS[2]] == ["<|im_start|>", "user", "Ċ", "hi", "<|im_end|>", "Ċ"]


def test_the_chat_template_opens_the_answer(facts: dict[str, Any]) -> None:
    """A chat begins with the model's own system message and ends with the header of the assistant's turn."""
    assert facts["chat"].startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert facts["chat"].endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


def test_an_invalid_gguf_file_is_refused(transformers_python: Path, tmp_path: Path) -> None:
    """A damaged source gives an error of one line with its name and the reason, and no checkpoint."""
    source, folder = tmp_path / "model.gguf", tmp_path / "checkpoint"
    source.write_bytes(b"no GGUF" * 100)
    folder.mkdir()
    with pytest.raises(SetupError) as fault:
        _convert_gguf(transformers_python, source, folder)
    assert "\n" not in str(fault.value)
    assert str(fault.value).startswith(
        f"{source}: the conversion to a checkpoint failed (ValueError: GGUF magic invalid"
    )
    assert list(folder.iterdir()) == []
