"""Model architectures with which a backend generates text (architectures.toml, which is generated; plugins)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from hpcq.catalog.toml_rows import catalog_rows
from hpcq.catalog.tools import backends

ARCHITECTURES_FILE = "architectures.toml"

_WITHOUT_TEXT = re.compile(
    r"(?:(?<!LMHead)Model|ForMaskedLM|ForPreTraining|ForTextEncoding|For\w*Classification|ForQuestionAnswering"
    r"|ForMultipleChoice|ForNextSentencePrediction)$"
)
"""Names of transformers' classes without a head for the next token."""


def architecture_problem(backend: str, architectures: Sequence[str] | None) -> str | None:
    """Return why the backend cannot generate text with a model, as the end of a sentence; None: it can, or is unknown.

    Args:
        backend: Name of the backend.
        architectures: `architectures` in the model's config.json; None: unknown.
    """
    if architectures is None:
        return None
    info, known, named = backends()[backend], _known().get(backend), ", ".join(architectures)
    if any(name in info.unsupported_architectures for name in architectures):
        return f"{info.title} does not support {named}"
    if known is None:
        return None
    if not architectures:
        return f"{info.title} needs the key architectures, which its config.json does not have"
    first = next((name for name in architectures if name in known), None)
    if first is None:
        return f"{info.title} does not support {named}"
    return None if known[first] else f"{info.title} supports {named} only for embeddings or classification"


def generates_with(backend: str, architectures: Sequence[str]) -> bool | None:
    """Return whether the backend has own code that generates text with a model; None: unknown (plugins).

    Only vLLM has such code. The backend accelerate needs the code of transformers.
    """
    if backend == "accelerate":
        return False
    known = _known().get(backend)
    return None if known is None else any(known.get(name, False) for name in architectures)


def cpu_problem(backend: str, architectures: Sequence[str] | None) -> str | None:
    """Return why the backend cannot compute a model on CPUs, as the end of a sentence; None: it can, or is unknown.

    Args:
        backend: Name of the backend.
        architectures: `architectures` in the model's config.json; None: unknown.
    """
    first = next((name for name in architectures or () if name in _known().get(backend, {})), None)
    lacking = {name for row in _rows() if row["backend"] == backend for name in row["not_on_cpus"]}
    lacking |= _NOT_ON_CPUS if backend == "vllm" else set()
    return f"{backends()[backend].title} does not support {first} on CPUs" if first in lacking else None


def text_problem(config: Mapping[str, Any]) -> str | None:
    """Return why a model is not a causal language model, as the end of a sentence; None: it is one, or is unknown.

    transformers (5.17) would load an encoder as a decoder, with attention to later tokens or with a random head.

    Args:
        config: Content of its config.json.
    """
    if config.get("is_encoder_decoder") is True:
        return "it is an encoder-decoder model (is_encoder_decoder), and evaluations are for causal language models"
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        for key, values in _BIDIRECTIONAL.items():
            if part.get(key) in values:
                return f"its attention reads later tokens ({key} = {json.dumps(part[key])} in its config.json)"
    named, code = architectures_of(config), config.get("auto_map")
    is_causal = any(any(known.get(name, False) for known in _known().values()) for name in named)
    has_causal_code = isinstance(code, Mapping) and "AutoModelForCausalLM" in code
    if is_causal or has_causal_code or not named or not all(map(_WITHOUT_TEXT.search, named)):
        return None
    return f"{', '.join(named)} (architectures in its config.json) generates no text"


def architectures_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names in `architectures` of a config.json; empty if it has none."""
    named = config.get("architectures")
    return tuple(name for name in (named if isinstance(named, list) else [named]) if isinstance(name, str) and name)


_NOT_ON_CPUS = {
    "FalconH1ForCausalLM",
    "FalconMambaForCausalLM",
    "GraniteMoeHybridForCausalLM",
    "JambaForCausalLM",
    "KimiLinearForCausalLM",
    "Lfm2ForCausalLM",
    "Mamba2ForCausalLM",
    "MambaForCausalLM",
    "NemotronHForCausalLM",
    "OlmoHybridForCausalLM",
    "Zamba2ForCausalLM",
}
"""Architectures with state-space, linear-attention or convolution layers that vLLM (0.32) computes on GPUs only.

It has Triton kernels for most of them, which fail on CPUs. Its code of LFM2 does not fail there, but the
log-likelihoods of a tiny model differed by 5.7 nats.
"""

_BIDIRECTIONAL = {"is_causal": (False,), "use_bidirectional_attention": (True, "all")}
"""Settings with which a decoder is an encoder: a token's probability would be computed from the token itself."""


@lru_cache(maxsize=1)
def _known() -> dict[str, dict[str, bool]]:
    """Return, by backend and architecture, whether it generates text."""
    return {
        row["backend"]: dict.fromkeys(row["pooling"], False) | dict.fromkeys(row["generating"], True) for row in _rows()
    }


def _rows() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = catalog_rows(ARCHITECTURES_FILE)["architectures"]
    return found
