"""Write hpcq/catalog/model_types.toml from the installed transformers.

    python -m tests.models.model_types

It has the names in config.json that transformers knows: model types, rotary embeddings, activation functions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from hpcq.catalog.remote_code import MODEL_TYPES_FILE

CATALOG = Path(__file__).resolve().parents[2] / "hpcq" / "catalog"
_HEADER = """\
# Names in config.json that transformers (5.17) knows. Written by `python -m tests.models.model_types` in the
# environment 'transformers'; a test compares the two.
#
# activations  functions of hidden_act, hidden_activation and activation_function
# rope_types   kinds of rotary embeddings
# model_types  values of model_type with a configuration class, so that a model needs no own code
"""


def model_types_text() -> str:
    """Return the content of the file."""
    from transformers.activations import ACT2CLS
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    lists = {"activations": ACT2CLS, "rope_types": ("default", *ROPE_INIT_FUNCTIONS), "model_types": CONFIG_MAPPING}
    return _HEADER + "".join(f"\n{key} = [\n{_rows(names)}]\n" for key, names in lists.items())


def _rows(names: Iterable[str]) -> str:
    return "".join(f"    {json.dumps(name)},\n" for name in sorted(names))


if __name__ == "__main__":
    (CATALOG / MODEL_TYPES_FILE).write_text(model_types_text(), encoding="utf-8")
