"""Checks of a model that was just loaded: its weights are exactly those of its files, and finite; its tokenizer fits.

If a checkpoint lacks weights, transformers and vLLM initialize them at random and continue. The scores of such a model
do not show the error.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcq.catalog.safetensors_headers import files_of_tensors
from hpcq.core.error_classification import classify_error
from hpcq.core.failures import Failure
from hpcq.core.sentences import first_line, listed

_BUFFERS_OF_OLD_CHECKPOINTS = (
    "*rotary_emb.inv_freq",
    "*rotary_emb.cos_cached",
    "*rotary_emb.sin_cached",
    "*.masked_bias",
    "*.attn.bias",
    "*.attention.bias",
)
"""Buffers that earlier versions of transformers saved. The current version computes them."""

_OTHER_PART = re.compile(r"(^|\.)(vision|visual|audio|speech|multi_modal|mm_|image|embed_vision|embed_audio)[^.]*\.")
"""Parts of a multimodal checkpoint that a text model does not have."""

EXPERT_INPUT_SCALE = re.compile(r"\.experts\.\d+\..*\.input_scale$")
"""Static scales of activations in experts. vLLM uses them; transformers computes experts with unrounded activations."""

_MAY_BE_ZERO = ("zero_point", "bias")
"""Ends of the names of zero points, which are zero in symmetric quantization, and of biases, also those of experts."""

MAX_ZERO_SHARE = 0.2
"""Largest share of matrices with only zeros. Models that were made deeper have two of seven in each new block."""

_CHUNK_VALUES = 2**24
"""Number of values that are checked at once; their mask takes 16 MiB."""

TRIAL_TOKENS = 8
"""Number of tokens that a model computes when it is checked: those with the ids 0 to 7."""

_SAME_LOGITS = 1e-3
"""Largest difference of logits after different tokens, relative to those of one token, that rounding explains."""

_TRIAL_TEXT = "The library opens at nine."
"""A text that every tokenizer of natural language can tokenize."""

_SAME_TEXTS, _TRIALS = 16, 4
"""A tokenizer that drops one of a hundred merges at random splits 16 copies of the text in the same way four times with
a probability below 1 %."""


def loading_problem(
    info: Mapping[str, Any], *, is_quantized: bool = False, has_other_parts: bool = False
) -> str | None:
    """Return how the weights of a model and of its files differ, as a clause; None: they are the same.

    Args:
        info: What `from_pretrained(output_loading_info=True)` of transformers (5.17) returned, without tied weights.
        is_quantized: Whether the files have quantized weights, and so scales.
        has_other_parts: Whether the checkpoint is multimodal; a text model of it lacks the other parts.
    """
    mismatched = [entry[0] if isinstance(entry, tuple | list) else entry for entry in info["mismatched_keys"]]
    unexpected = unexpected_names(info["unexpected_keys"], is_quantized=is_quantized, has_other_parts=has_other_parts)
    missing = missing_problem(info["missing_keys"])
    if missing:
        return missing
    if mismatched:
        return weights_clause(mismatched, "has another shape than in the model", "have other shapes than the model")
    if unexpected:
        return unexpected_problem(unexpected)
    errors = [*info.get("error_msgs", ()), *info.get("conversion_errors", ())]
    return f"weights could not be converted: {first_line(errors[0])}" if errors else None


def missing_problem(names: Collection[str]) -> str | None:
    """Return a clause that reports missing weights; None if `names` is empty."""
    if not names:
        return None
    return weights_clause(names, "of the model is missing in its files", "of the model are missing in its files")


def unexpected_problem(names: Collection[str]) -> str:
    """Return the clause that the files have weights of which the model has no use."""
    return weights_clause(names, "in its files does not belong to the model", "in its files do not belong to the model")


def weights_clause(names: Collection[str], one: str, several: str) -> str:
    """Return a clause about weights, with their number and some of their names.

    Args:
        names: Names of the weights, at least one.
        one: The rest of the clause about a single weight.
        several: The rest of the clause about several weights.
    """
    if len(names) == 1:
        return f"the weight {next(iter(names))} {one}"
    return f"{len(names)} weights {several}, such as {listed(sorted(names))}"


def unexpected_names(names: Iterable[str], *, is_quantized: bool, has_other_parts: bool) -> list[str]:
    """Return the names of unused tensors that should have been used.

    Buffers that old versions saved are left out, and so are tensors that a model of this kind never uses. The other
    arguments are those of `loading_problem`.
    """
    return sorted(
        name
        for name in names
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in _BUFFERS_OF_OLD_CHECKPOINTS)
        and not (is_quantized and EXPERT_INPUT_SCALE.search(name))
        and not (has_other_parts and _OTHER_PART.search(name))
    )


def stored_tensors(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield names and tensors of a model of torch: its parameters, and the buffers that its checkpoints contain."""
    yield from model.named_parameters()
    for prefix, module in model.named_modules():
        unsaved = module._non_persistent_buffers_set  # noqa: SLF001  # torch has no public list
        buffers = module.named_buffers(prefix, recurse=False)
        yield from ((name, value) for name, value in buffers if name.rpartition(".")[2] not in unsaved)


def values_problem(tensors: Iterable[tuple[str, Any]]) -> str | None:
    """Return which weights cannot be those of a trained model, as a clause; None: all can.

    They have values that are NaN or infinite, or many matrices contain only zeros. Interrupted downloads and copies
    leave files of the full size with zeros in them.

    Args:
        tensors: Names and tensors (of torch); those without storage (`meta`) are skipped.
    """
    damaged, zero, matrices = [], [], 0
    for name, tensor in tensors:
        if not _is_finite(tensor):
            damaged.append(name)
        if _is_matrix(tensor) and not name.endswith(_MAY_BE_ZERO):
            matrices += 1
            zero += [name] if _is_zero(tensor) else []
    if damaged:
        clause = "values that are not finite (NaN or infinity)"
        return weights_clause(damaged, f"has {clause}", f"have {clause}")
    if len(zero) > MAX_ZERO_SHARE * matrices:
        return f"{len(zero)} of {matrices} matrices contain only zeros, such as {listed(zero)}"
    return None


def _is_finite(tensor: Any) -> bool:
    if tensor.is_meta or not tensor.is_floating_point():
        return True
    chunks = tensor.detach().reshape(-1).split(_CHUNK_VALUES)
    return all(bool((chunk.float() if chunk.element_size() == 1 else chunk).isfinite().all()) for chunk in chunks)


def forward_problem(forward: Callable[[], Any]) -> str | None:
    """Return why a loaded model cannot compute a text, as a clause; None: it can.

    Sizes in a configuration may contradict each other although all weights fit. A last norm of zeros makes all logits
    equal: then a score depends on the lengths of the choices only.

    Args:
        forward: Computes TRIAL_TOKENS different tokens and returns their logits (batch × tokens × vocabulary).

    Raises:
        RuntimeError: The device failed, or its memory is full.
    """
    try:
        logits = forward()
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if classify_error(error) is not Failure.BUG:
            raise
        return f"transformers cannot compute a text with it: {first_line(error)}"
    spread = (logits.amax(dim=-1) - logits.amin(dim=-1)).amax()
    if bool(spread == 0):
        return "all of its logits are equal"
    if bool((logits - logits[:, :1]).abs().amax() <= _SAME_LOGITS * spread):
        return "its logits are the same after every token"
    return None


def equal_scores_problem(loglikelihoods: Collection[float]) -> str | None:
    """Return, as a clause, that the log-likelihoods of different tokens are the same; None: they differ."""
    if len(loglikelihoods) > 1 and len(set(loglikelihoods)) == 1:
        return f"different tokens after a text have the same log-likelihood ({next(iter(loglikelihoods)):.2f})"
    return None


def _is_matrix(tensor: Any) -> bool:
    return not tensor.is_meta and tensor.is_floating_point() and tensor.ndim > 1


def _is_zero(tensor: Any) -> bool:
    chunks = tensor.detach().reshape(-1).split(_CHUNK_VALUES)
    return not any(bool((chunk.float() if chunk.element_size() == 1 else chunk).any()) for chunk in chunks)


def zero_tensors(folder: Path, names: Sequence[str]) -> set[str]:
    """Return those tensors of the checkpoint in `folder` that contain only zeros.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file is not a safetensors file.
    """
    from safetensors import safe_open

    zero = set()
    for name, path in files_of_tensors(folder, names).items():
        with safe_open(path, framework="pt") as file:
            if not file.get_tensor(name).count_nonzero():
                zero.add(name)
    return zero


def tokenizer_problem(tokenizer: Any, vocabulary: int) -> str | None:
    """Return why a tokenizer does not fit a model, as a clause; None: it does.

    Some published tokenizers have added tokens without a row in the model's embeddings, which no text of a benchmark
    contains (Gemma-3-1B: an image token). All other tokens, and BOS and EOS, must have a row.

    Args:
        tokenizer: A tokenizer of transformers.
        vocabulary: Number of rows of the model's embeddings.
    """
    added = set(getattr(tokenizer, "added_tokens_decoder", {}))
    if not tokenizer(_TRIAL_TEXT, add_special_tokens=False)["input_ids"]:
        return "its tokenizer returns no tokens for a text"
    if len({tuple(tokenizer(_TRIAL_TEXT * _SAME_TEXTS)["input_ids"]) for _ in range(_TRIALS)}) > 1:
        return "its tokenizer splits the same text differently each time (dropout or sampling in its settings)"
    own = max((number for number in tokenizer.get_vocab().values() if number not in added), default=-1)
    used = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos")}
    if own < 0 and not added:
        return "its tokenizer has no tokens"
    if own >= vocabulary:
        return (
            f"its tokenizer does not fit the model: it has token ids up to {own}, but the model has {vocabulary} tokens"
        )
    for name, number in used.items():
        if number is not None and number >= vocabulary:
            return (
                f"its tokenizer does not fit the model: its {name} token has the id {number}, but the model has "
                f"{vocabulary} tokens"
            )
    return None
