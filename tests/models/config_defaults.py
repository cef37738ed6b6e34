"""Write hpcq/catalog/config_defaults.json from the configuration classes of the installed transformers.

    python -m tests.models.config_defaults

It has the keys that modules of the catalog name, with the defaults of each family's class that are not null.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpcq.catalog.families import FAMILIES
from hpcq.catalog.model_config import DEFAULTS_FILE

CATALOG = Path(__file__).resolve().parents[2] / "hpcq" / "catalog"
_READERS = (
    "attention_softcap",
    "attention_windows",
    "config_differences",
    "block_parts",
    "families",
    "early_blocks",
    "expert_blocks",
    "hybrid_blocks",
    "plain_blocks",
    "gemma4_blocks",
    "hf_config",
    "model_config",
)
_MAMBA_KEYS = {f"mamba_{name}" for name in ("conv_bias", "d_conv", "d_state", "dt_rank", "expand", "proj_bias")}
_NOT_IN_TRANSFORMERS = "qwen"


def defaults_text() -> str:
    """Return the content of the file."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    keys = set(_strings()) | _MAMBA_KEYS
    families = (model_type for model_type in FAMILIES if model_type != _NOT_IN_TRANSFORMERS)
    return json.dumps({name: dict(_defaults(CONFIG_MAPPING[name], keys)) for name in families}, indent=1) + "\n"


def _strings() -> Iterator[str]:
    """Yield all strings in the modules that read configurations."""
    for module in _READERS:
        for node in ast.walk(ast.parse((CATALOG / f"{module}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def _defaults(kind: Any, keys: set[str]) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(kind):
        value = field.default_factory() if callable(field.default_factory) else field.default
        if field.name in keys - {"is_encoder_decoder", "model_type"} and isinstance(
            value, bool | int | float | str | list | tuple
        ):
            yield field.name, value


if __name__ == "__main__":
    (CATALOG / DEFAULTS_FILE).write_text(defaults_text(), encoding="utf-8")
