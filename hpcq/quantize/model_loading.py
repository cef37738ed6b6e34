"""Loading of a base checkpoint with transformers (5.17, 4.51), refused unless every weight comes from its files.

transformers initializes weights that a checkpoint lacks at random, and only warns. A model that was partly random would
be quantized and evaluated like any other.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from hpcq.catalog.attention_softcap import caps_attention
from hpcq.catalog.safetensors_headers import stored_dtype
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.frozen import dataclass
from hpcq.core.sentences import first_line
from hpcq.quantize.transformers_4 import dtype_argument, load_config, load_tokenizer
from hpcq.verify.config_errors import config_errors, missing_package, tokenizer_errors
from hpcq.verify.loaded_model import (
    TRIAL_TOKENS,
    forward_problem,
    loading_problem,
    stored_tensors,
    tokenizer_problem,
    values_problem,
)

PROBE = (
    "The library opens at nine. Anna returns two novels and a guide to the Alps, pays a fine of 3.50, and asks for a "
    "book about rivers. The librarian finds four: one is in French, two are for children, and the last one is lent out "
    "until Thursday. Anna takes the French one, because she wants to practise before her journey to Lyon in June."
)
"""A text that every tokenizer of natural language can tokenize."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A checkpoint in memory.

    Attributes:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        saved_dtype: Name of the dtype that its weights were saved in.
    """

    model: Any
    tokenizer: Any
    saved_dtype: str


def load_base(base: Path, *, compute_dtype: str | None, trust_remote_code: bool) -> LoadedModel:
    """Load a base checkpoint.

    Args:
        base: Its folder.
        compute_dtype: Name of the dtype to load the weights in; None: the dtype that they were saved in.
        trust_remote_code: Whether code in the checkpoint may run.

    Raises:
        UserInputError: transformers does not support the checkpoint, or its weights are incomplete or not finite.
        SetupError: A package that the checkpoint's code imports is missing.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, GenerationConfig

    with config_errors(base):
        config = load_config(base, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    saved_dtype = _saved_dtype(base, config)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            base,
            config=config,
            **dtype_argument(getattr(torch, compute_dtype or saved_dtype)),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **attention_settings(config),
            generation_config=GenerationConfig(),  # not read: an invalid one would be an error
            ignore_mismatched_sizes=True,  # they are refused below, with their names
        )
    except ImportError as error:
        raise SetupError(missing_package(base, error)) from error
    except (OSError, SafetensorError) as error:
        raise SetupError(f"{base}: transformers cannot load this model ({first_line(error)}).") from error
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserInputError(f"{base}: transformers cannot load this model: {first_line(error)}.") from error
    problem = loading_problem(info)
    if problem:
        raise UserInputError(f"{base}: {problem}: copy or download the checkpoint again, or correct its config.json.")
    problem = values_problem(stored_tensors(model))
    if problem:
        raise UserInputError(f"{base}: {problem}: copy or download the checkpoint again.")
    tokenizer = _load_tokenizer(
        base, trust_remote_code=trust_remote_code, vocabulary=model.get_input_embeddings().weight.shape[0]
    )
    with torch.inference_mode():
        problem = forward_problem(lambda: model(input_ids=torch.arange(TRIAL_TOKENS)[None]).logits)
    if problem:
        raise UserInputError(f"{base}: {problem}: correct its config.json.")
    return LoadedModel(model=model.eval(), tokenizer=tokenizer, saved_dtype=saved_dtype)


def attention_settings(config: Any) -> dict[str, str]:
    """Return the argument of `from_pretrained` that selects an attention which computes what a model defines."""
    return {"attn_implementation": "eager"} if caps_attention(config.to_dict()) else {}


def _saved_dtype(base: Path, config: Any) -> str:
    """Return the name of the dtype of a checkpoint's weights: as configured, else of most bytes of its tensors."""
    configs = (config.get_text_config(), config)
    configured = next(
        filter(None, (getattr(one, key, None) for one in configs for key in ("dtype", "torch_dtype"))), None
    )
    return str(configured or stored_dtype(base) or _dtype_of_pickles(base)).removeprefix("torch.")


def _dtype_of_pickles(base: Path) -> str:
    """Return the dtype of most bytes of the tensors in `.bin` files, whose contents are not read."""
    import torch

    sizes: Counter[str] = Counter()
    for path in base.glob("pytorch_model*.bin"):
        tensors = torch.load(path, map_location="meta", weights_only=True, mmap=True)
        for tensor in tensors.values():
            sizes[str(tensor.dtype)] += tensor.nbytes
    return sizes.most_common(1)[0][0] if sizes else "float32"


def _load_tokenizer(base: Path, *, trust_remote_code: bool, vocabulary: int) -> Any:
    with tokenizer_errors(base):
        tokenizer = load_tokenizer(base, trust_remote_code=trust_remote_code)
    problem = tokenizer_problem(tokenizer, vocabulary)
    if problem:
        raise UserInputError(f"{base}: {problem}: copy the model's tokenizer files.")
    return tokenizer


def separator_token(loaded: LoadedModel) -> int | None:
    """Return the token that ends a text, of the tokenizer or else of the model's configuration; None: there is none."""
    if loaded.tokenizer.eos_token_id is not None:
        return int(loaded.tokenizer.eos_token_id)
    configured = getattr(loaded.model.config, "eos_token_id", None)
    return configured[0] if isinstance(configured, list) else configured


def plain_tokens(loaded: LoadedModel) -> list[int]:
    """Return the tokens of the tokenizer in order, without special ones and those for which there is no embedding."""
    special = set(loaded.tokenizer.all_special_ids)
    rows = loaded.model.get_input_embeddings().num_embeddings
    return sorted(token for token in set(loaded.tokenizer.get_vocab().values()) - special if token < rows)
