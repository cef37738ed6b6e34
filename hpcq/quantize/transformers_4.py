"""Reading of checkpoints of transformers 5 with transformers 4.51, which AutoGPTQ and AutoAWQ need.

transformers 4 does not know some keys of config.json that transformers 5 writes, and ignores them without an error. It
would, for example, compute a model with `rope_parameters` with the default base of the rotary embedding. Therefore
these keys are translated, and a configuration that cannot be translated is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcq.core.errors import UserInputError

_GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes of tokenizers that are described by tokenizer.json alone: in transformers 5, and in 4."""


def is_transformers_4() -> bool:
    """Return whether the installed transformers is a version before 5."""
    import transformers

    return int(transformers.__version__.partition(".")[0]) < 5  # noqa: PLR2004


def load_config(base: Path, *, trust_remote_code: bool) -> Any:
    """Return the configuration of a checkpoint, as this version of transformers reads it.

    Raises:
        UserInputError: transformers 4 cannot express it.
    """
    from transformers import AutoConfig

    if not is_transformers_4():
        return AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    content = json.loads((base / "config.json").read_text(encoding="utf-8"))
    changes = old_settings(content, str(base))
    return AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code, **changes)


def old_settings(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the settings that transformers 4 needs in addition: those of `dtype` and `rope_parameters`.

    Args:
        config: Content of config.json.
        name: Name of the checkpoint, for the message.

    Raises:
        UserInputError: The kinds of attention layers have different rotary embeddings, which transformers 4 does not
            read in this form.
    """
    changes: dict[str, Any] = {}
    if "dtype" in config and "torch_dtype" not in config:
        changes["torch_dtype"] = config["dtype"]
    rope = config.get("rope_parameters")
    if not rope:
        return changes
    if any(isinstance(value, dict) for value in rope.values()):
        raise UserInputError(
            f"{name}: transformers 4.51, which AutoGPTQ and AutoAWQ need, cannot read rope_parameters by layer type:"
            " choose a scheme of gptqmodel or llmcompressor."
        )
    rest = dict(rope)
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rest:
            changes[key] = rest.pop(key)
    if rest.get("rope_type", "default") != "default":
        changes["rope_scaling"] = rest
    return changes


def dtype_argument(dtype: Any) -> dict[str, Any]:
    """Return the argument of `from_pretrained` that selects the dtype of the weights."""
    return {"torch_dtype": dtype} if is_transformers_4() else {"dtype": dtype}


def load_tokenizer(base: Path, *, trust_remote_code: bool) -> Any:
    """Return the tokenizer of a checkpoint. Errors are those of `AutoTokenizer.from_pretrained`."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    settings = base / "tokenizer_config.json"
    if is_transformers_4() and settings.is_file():
        content = json.loads(settings.read_text(encoding="utf-8"))
        if content.get("tokenizer_class") in _GENERIC_TOKENIZERS:
            return PreTrainedTokenizerFast.from_pretrained(base)
    return AutoTokenizer.from_pretrained(base, trust_remote_code=trust_remote_code)
