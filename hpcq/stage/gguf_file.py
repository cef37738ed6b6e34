"""GGUF file: its metadata, its tensors as torch tensors, and its vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf.quants import dequantize

from hpcq.core.errors import WorkerError

CONTROL_TOKEN = 3
"""Token type of special tokens such as `<|im_end|>` in llama.cpp."""

USER_DEFINED_TOKEN = 4
"""Token type of texts that are always one token, such as a run of line ends, in llama.cpp."""


class GgufFile:
    """Metadata and tensors of a GGUF file, with llama.cpp's names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = gguf.GGUFReader(path)

    def metadata(self, name: str) -> Any:
        """Return the value of a metadata key.

        Raises:
            WorkerError: The file does not have the key.
        """
        field = self._reader.fields.get(name)
        if field is None:
            raise WorkerError(f"{self.path}: the metadata key '{name}' is missing. Use a complete GGUF file.")
        return field.contents()

    def real(self, name: str) -> float:
        """Return a real number. GGUF stores 32-bit floats: 1e-05 is read as 9.999999747378752e-06."""
        return float(f"{self.metadata(name):.6g}")

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield name and dequantized values of all tensors, sorted by name."""
        for tensor in sorted(self._reader.tensors, key=lambda tensor: str(tensor.name)):
            yield str(tensor.name), torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())

    def tokens_of_type(self, token_type: int) -> list[str]:
        """Return the tokens of a type, in the order of their ids."""
        types = zip(self.metadata("tokenizer.ggml.tokens"), self.metadata("tokenizer.ggml.token_type"), strict=True)
        return [token for token, its_type in types if its_type == token_type]

    def special_tokens(self) -> dict[str, str]:
        """Return the special tokens by their names in tokenizer_config.json."""
        tokens = self.metadata("tokenizer.ggml.tokens")
        keys = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
        return {name: tokens[self.metadata(f"tokenizer.ggml.{key}_token_id")] for name, key in keys.items()}
