"""Mutations of the generation settings."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from tests.mutations.checkpoint_edit import edit_json
from tests.mutations.kinds.registry import Case, Effect, Target, kind


@kind(Target.GENERATION, Effect.OTHER_INPUT)
def generation_settings(case: Case, random: Random) -> str | None:
    """Change the generation settings of the model."""
    settings: dict[str, Any] = random.choice(
        [
            {"do_sample": True, "temperature": 0.7, "top_p": 0.9},
            {"do_sample": True, "repetition_penalty": 1.5},
            {"repetition_penalty": 2.0},
            {"do_sample": False, "temperature": 0.6},
            {"num_beams": 4},
            {"no_repeat_ngram_size": 2},
            {"min_new_tokens": 8, "suppress_tokens": [2]},
            {"max_length": 5},
            {"max_new_tokens": 2},
            {"eos_token_id": 500},
            {"eos_token_id": [2, 11, 12, 13]},
            {"eos_token_id": None},
            {"forced_bos_token_id": 9},
            {"bad_words_ids": [[11], [12]]},
            {"begin_suppress_tokens": list(range(0, 4000, 2))},
            {"temperature": "hot"},
            {"cache_implementation": "nonsense"},
            {"use_cache": False},
            {"stop_strings": ["a"]},
            {"guidance_scale": 3.0},
            {"exponential_decay_length_penalty": [1, 1.5]},
            {"encoder_no_repeat_ngram_size": 2},
            {"sequence_bias": [[[11], -10.0]]},
            {"renormalize_logits": True},
            {"penalty_alpha": 0.6, "top_k": 4},
            {"num_return_sequences": 3},
            {"output_scores": True, "return_dict_in_generate": True},
            {"pad_token_id": 10**6},
            {"unknown_setting": 1},
        ]
    )
    edit_json(case.model / "generation_config.json", lambda content: content.update(settings))
    return json.dumps(settings)[:100]


@kind(Target.GENERATION, Effect.OTHER_INPUT)
def no_generation_settings(case: Case, _random: Random) -> str | None:
    """Remove the generation settings."""
    (case.model / "generation_config.json").unlink()
    return "generation_config.json"
