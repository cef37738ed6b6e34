"""Check of a tied head in PyTorch's own files, which `hpcq plan` cannot read without torch."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from hpcq.catalog.checkpoint_problems import EMBEDDING, HEAD, other_head
from hpcq.catalog.weight_files import weight_files


def pickled_head_problem(folder: Path) -> str | None:
    """Return how a head in `.bin` files differs from the embeddings to which it is tied, and the fix; None: equal.

    vLLM (0.32) uses the embeddings as the head, and transformers (5.17) the stored head. The tensors are mapped into
    memory. For safetensors files there is `hpcq.catalog.checkpoint_problems.head_problem`.
    """
    import torch

    found: dict[str, Any] = {}
    for path in weight_files(folder):
        if path.suffix != ".bin":
            return None
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        found |= {name: value for name, value in tensors.items() if HEAD.search(name) or EMBEDDING.search(name)}
    heads = [name for name in found if HEAD.search(name)]
    embeddings = [name for name in found if EMBEDDING.search(name)]
    if len(heads) != 1 or len(embeddings) != 1 or torch.equal(found[heads[0]], found[embeddings[0]]):
        return None
    return other_head(heads[0], embeddings[0])
