"""Convert a GGUF file to a bf16 checkpoint folder that transformers and vLLM load.

Runs in the transformers environment: `python -m hpcq.stage.gguf_checkpoint INPUT.gguf OUTPUT_FOLDER`. The output is the
same bytes with every version of transformers, because the model's digest is part of every content address; therefore
these modules write the configuration files themselves.

transformers 5.17's own GGUF loader reads such files, but cannot save them, and its tokenizers are wrong: SmolLM2's does
not end turns, and Gemma's uses another algorithm.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors.torch import save_file

from hpcq.core.errors import WorkerError
from hpcq.stage import gguf_gemma3, gguf_llama
from hpcq.stage.gguf_file import GgufFile

ARCHITECTURES = {"llama": gguf_llama, "gemma3": gguf_gemma3}


def write_checkpoint(gguf_path: Path, folder: Path) -> None:
    """Convert `gguf_path` and write the checkpoint's files to `folder`, which must exist.

    Raises:
        WorkerError: The file is incomplete, or of an architecture that cannot be converted.
    """
    source = GgufFile(gguf_path)
    architecture = _architecture(source)
    tensors = architecture.tensors(source)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = architecture.model_config(source, has_lm_head="lm_head.weight" in tensors)
    token_ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **token_ids})
    _write_json(folder / "tokenizer_config.json", architecture.tokenizer_config(source))
    architecture.build_tokenizer(source).save(str(folder / "tokenizer.json"))
    # safetensors 0.8 makes its files readable by the owner only; on a cluster, a group shares the cache.
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)


def _architecture(source: GgufFile) -> ModuleType:
    name, pre_tokenizer = source.metadata("general.architecture"), source.metadata("tokenizer.ggml.pre")
    found = ARCHITECTURES.get(name)
    if found is None or pre_tokenizer != found.PRE_TOKENIZER:
        known = " and ".join(f"'{name}' with '{one.PRE_TOKENIZER}'" for name, one in ARCHITECTURES.items())
        raise WorkerError(
            f"{source.path}: architecture '{name}' with pre-tokenizer '{pre_tokenizer}' cannot be converted; "
            f"only {known} can."
        )
    return found


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        write_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]))
    except WorkerError as error:
        sys.exit(str(error))
