"""Generation settings of a checkpoint (generation_config.json): its stop tokens, and the settings that are ignored.

With every backend, text is generated as the definition of lm-eval's task says. Of the checkpoint's own settings only
the stop tokens are used, because they belong to the model. By default, transformers (5.17) would apply the other
settings to every answer, including greedy ones. vLLM (0.32) applies none of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpcq.core.frozen import dataclass

GENERATION_CONFIG_FILE = "generation_config.json"
CONFIG_FILE = "config.json"
CUSTOM_GENERATE_FILE = "custom_generate/generate.py"

_STOP_KEY = "eos_token_id"
_UNSET: tuple[object, ...] = (None, False, 0, [], {})
_GREEDY: Mapping[str, tuple[object, ...]] = {
    "assistant_early_exit": _UNSET,
    "bad_words_ids": _UNSET,
    "begin_suppress_tokens": _UNSET,
    "cache_implementation": (None, "dynamic", "hybrid"),  # transformers replaces "hybrid" by the model's default
    "constraints": _UNSET,
    "dola_layers": _UNSET,
    "encoder_no_repeat_ngram_size": _UNSET,
    "encoder_repetition_penalty": (None, 1),
    "exponential_decay_length_penalty": _UNSET,
    "force_words_ids": _UNSET,
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "guidance_scale": (None, 1),
    "max_new_tokens": (None,),
    "max_time": (None,),
    "min_length": _UNSET,
    "min_new_tokens": _UNSET,
    "no_repeat_ngram_size": _UNSET,
    "num_beam_groups": (None, 1),
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "output_attentions": _UNSET,
    "output_hidden_states": _UNSET,
    "output_logits": _UNSET,
    "output_scores": _UNSET,
    "penalty_alpha": _UNSET,
    "prompt_lookup_num_tokens": _UNSET,
    "remove_invalid_values": _UNSET,
    "repetition_penalty": (None, 1),
    "return_dict_in_generate": _UNSET,
    "sequence_bias": _UNSET,
    "stop_strings": _UNSET,
    "suppress_tokens": _UNSET,
    "token_healing": _UNSET,
    "use_mtp": _UNSET,
    "watermarking_config": _UNSET,
}
"""Settings that transformers' `generate` applies to a greedy answer (GenerationConfig in
generation/configuration_utils.py), each with the values that have no effect."""
_SAMPLING: Mapping[str, tuple[object, ...]] = {
    "do_sample": _UNSET,
    "epsilon_cutoff": _UNSET,
    "eta_cutoff": _UNSET,
    "min_p": _UNSET,
    "temperature": (None, 1),
    "top_h": _UNSET,
    "top_k": (None, 50),
    "top_p": (None, 1),
    "typical_p": (None, 1),
}
"""Settings that apply only to sampled answers."""
_MAX_VALUE_CHARACTERS = 40
_LFS_POINTER = "version https://git-lfs.github.com/spec/"


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """Generation settings of a checkpoint.

    Attributes:
        stop_tokens: Ids of the tokens that end an answer, in addition to the tokenizer's end token.
        ignored: Settings that would change a greedy answer, as 'name=value'.
        ignored_sampling: Settings that would change a sampled answer only, as 'name=value'.
        problem: Why a file or a value is invalid; None: all are valid.
    """

    stop_tokens: tuple[int, ...] = ()
    ignored: tuple[str, ...] = ()
    ignored_sampling: tuple[str, ...] = ()
    problem: str | None = None

    def as_facts(self) -> dict[str, str]:
        """Return what is recorded with the responses."""
        return {
            "stop_tokens": " ".join(map(str, self.stop_tokens)),
            "ignored_generation_settings": ", ".join(self.ignored),
            "ignored_sampling_settings": ", ".join(self.ignored_sampling),
            "generation_config_problem": self.problem or "",
        }


def read_generation_settings(folder: Path) -> GenerationSettings:
    """Return the settings in generation_config.json; without that file, in config.json.

    An invalid file or value is reported in `problem`, not raised: tasks without generated text do not need it.
    """
    own, problem = _read(folder / GENERATION_CONFIG_FILE)
    document = _with_text_part(_read(folder / CONFIG_FILE)[0] or {}) if own is None else own
    stop_tokens, invalid = _stop_tokens(document.get(_STOP_KEY))
    custom = (CUSTOM_GENERATE_FILE,) if (folder / CUSTOM_GENERATE_FILE).is_file() else ()
    return GenerationSettings(
        stop_tokens=stop_tokens,
        ignored=(*_differing(document, _GREEDY), *custom),
        ignored_sampling=tuple(_differing(document, _SAMPLING)),
        problem=problem or invalid,
    )


def generation_problem(folder: Path, vocabulary: int | None) -> str | None:
    """Return why answers would end at other tokens than the checkpoint's, and the fix, as a clause; None: they do not.

    Settings of a wrong type are accepted: they are ignored like all other settings (`GenerationSettings.ignored`).

    Args:
        folder: Folder of the checkpoint.
        vocabulary: Size of the model's vocabulary; None: unknown.
    """
    own = folder / GENERATION_CONFIG_FILE
    settings, is_own = read_generation_settings(folder), own.is_file() or own.is_symlink()
    file = GENERATION_CONFIG_FILE if is_own else CONFIG_FILE
    if settings.problem:
        is_named = settings.problem.startswith(file)
        remedy = "correct it, copy or download it again" if is_named else f"correct {_STOP_KEY}"
        remedy += ", or delete the file" if is_own else ""
        return f"{settings.problem if is_named else f'in {file}, {settings.problem}'}: {remedy}"
    beyond = [token for token in settings.stop_tokens if vocabulary is not None and token >= vocabulary]
    if not beyond:
        return None
    remedy = f"correct it, or delete the {'file' if is_own else 'key'}"
    return f"in {file}, {_STOP_KEY} has {beyond[0]}, but the model has {vocabulary} tokens: {remedy}"


def _read(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """Return the JSON object in a file, or why there is none; both are None if the file does not exist."""
    try:
        content = path.read_text(encoding="utf-8-sig")
        if content.startswith(_LFS_POINTER):
            return None, f"{path.name} is a Git LFS pointer, not the file itself"
        document = json.loads(content)
    except FileNotFoundError:
        return None, f"{path.name} is a broken symbolic link" if path.is_symlink() else None
    except OSError as error:
        return None, f"{path.name} cannot be read ({error.strerror})"
    except (ValueError, RecursionError):
        return None, f"{path.name} is not valid JSON"
    return (document, None) if isinstance(document, dict) else (None, f"{path.name} is not a JSON object")


def _with_text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration. If it has no stop tokens, those of its `text_config` are added."""
    text = config.get("text_config")
    if config.get(_STOP_KEY) is None and isinstance(text, dict):
        return {**config, _STOP_KEY: text.get(_STOP_KEY)}
    return config


def _stop_tokens(value: object) -> tuple[tuple[int, ...], str | None]:
    """Return the valid token ids, without duplicates, and a clause that reports invalid ones; None: all are valid."""
    listed = value if isinstance(value, list) else [] if value is None else [value]
    valid = tuple(dict.fromkeys(one for one in listed if type(one) is int and one >= 0))
    is_valid = all(type(one) is int and one >= 0 for one in listed)
    return valid, None if is_valid else f"{_STOP_KEY} has values that are not token ids: {_shown(value)}"


def _differing(document: Mapping[str, Any], neutral: Mapping[str, tuple[object, ...]]) -> Iterator[str]:
    for name, values in neutral.items():
        if document.get(name) not in values:
            yield f"{name}={_shown(document[name])}"


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MAX_VALUE_CHARACTERS else f"{text[:_MAX_VALUE_CHARACTERS]}…"
