"""Choice of the files of a model repository that transformers and vLLM read, without duplicates of the weights.

The weights are those that transformers (5.17, modeling_utils) chooses: `model.safetensors`, else the shards of its
index, else the same in PyTorch's format. Quantizers can write other names (`gptq_model-*.safetensors`); such files are
chosen if no file has a standard name. vLLM reads all `*.safetensors` in a folder, so no other such file may be staged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from hpcq.core.frozen import dataclass

CONFIG = "config.json"

_INDEX_SUFFIX = ".index.json"
_FORMATS = (("model.safetensors", ".safetensors"), ("pytorch_model.bin", ".bin"))
"""Name of the file if all weights are in one, and suffix of weight files; the preferred format first."""

_KEPT_SUFFIXES = (".json", ".jsonl", ".txt", ".py", ".jinja", ".model", ".tiktoken", ".spm", ".bpe", ".vocab", ".yaml")
_KEPT_NAMES = ("README.md", "LICENSE", "NOTICE", "USE_POLICY.md")
_KEPT_FOLDERS = ("additional_chat_templates/",)
_LEFT_OUT = re.compile(
    r"(.*/)?("
    r"adapter_.*"  # PEFT: transformers would load the adapter into the model
    r"|consolidated.*|params\.json"  # Mistral's and Meta's own format
    r"|trainer_state\.json|training_args\.json|optimizer\..*|scheduler\..*|rng_state.*|training_args\.bin"
    r"|all_results\.json|train_results\.json|eval_results\.json"
    r")"
)
_TOKENIZER = re.compile(
    r"tokenizer\.(json|model.*)|vocab\..*|tekken\.json|tokenization.*\.py|.*\.(model|tiktoken|spm|bpe|vocab)"
)
_SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")
_VARIANT = re.compile(r"(model|pytorch_model)\.(fp16|fp32|bf16|int8|non_ema|ema)[.-].*")
"""Files of `from_pretrained(variant=…)`: copies of the weights in another number format."""


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """Files to stage.

    Attributes:
        others: Configuration, tokenizer, code, templates and the model card.
        index: Index of the shards; None if there is none. It must be read to know `weights`.
        weights: Files of weights; empty if `index` lists them.
        found: Suffixes of all file names in the repository; a message lists them if no weights are usable.
    """

    others: tuple[str, ...]
    index: str | None
    weights: tuple[str, ...]
    found: tuple[str, ...]

    @property
    def has_weights(self) -> bool:
        """Whether there are weights in a format that can be read."""
        return self.index is not None or bool(self.weights)

    @property
    def lacks_index(self) -> bool:
        """Whether the weights are shards that transformers does not find, because their index is missing."""
        return any(_SHARD.fullmatch(name) for name in self.weights)

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a vocabulary, or code of a tokenizer."""
        return any(_TOKENIZER.fullmatch(name) for name in self.others)


def choose_model_files(paths: Iterable[str]) -> ModelFiles:
    """Return the files to stage among the paths of a repository."""
    names = [path for path in sorted(paths) if not _LEFT_OUT.fullmatch(path) and not _VARIANT.fullmatch(path)]
    index, weights = _choose_weights([name for name in names if "/" not in name])
    others = (name for name in names if _is_kept(name) and (not name.endswith(_INDEX_SUFFIX) or name == index))
    suffixes = {f".{path.rpartition('.')[2]}" for path in paths if "." in path.rpartition("/")[2][1:]}
    return ModelFiles(others=tuple(others), index=index, weights=weights, found=tuple(sorted(suffixes)))


def _choose_weights(names: list[str]) -> tuple[str | None, tuple[str, ...]]:
    """Return the index, or the files of weights."""
    for single, _ in _FORMATS:
        if single in names:
            return None, (single,)
        if single + _INDEX_SUFFIX in names:
            return single + _INDEX_SUFFIX, ()
    by_suffix = (tuple(name for name in names if name.endswith(suffix)) for _, suffix in _FORMATS)
    return None, next(filter(None, by_suffix), ())


def _is_kept(path: str) -> bool:
    if path.startswith(_KEPT_FOLDERS):
        return path.endswith(".jinja")
    is_at_top = "/" not in path
    return is_at_top and (path.endswith(_KEPT_SUFFIXES) or path in _KEPT_NAMES or path.startswith("tokenizer.model"))
