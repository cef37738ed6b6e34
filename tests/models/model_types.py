"""Write hpcq/catalog/model_types.toml from the installed transformers.

    python -m tests.models.model_types

It has the values of model_type for which transformers has a configuration class: such models need no own code.
"""

from __future__ import annotations

import json
from pathlib import Path

from hpcq.catalog.remote_code import MODEL_TYPES_FILE

CATALOG = Path(__file__).resolve().parents[2] / "hpcq" / "catalog"
_HEADER = """\
# Values of model_type in config.json for which transformers (5.17) has a configuration class. Written by
# `python -m tests.models.model_types` in the environment 'transformers'; a test compares the two.
"""


def model_types_text() -> str:
    """Return the content of the file."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    rows = "".join(f"    {json.dumps(name)},\n" for name in sorted(CONFIG_MAPPING))
    return f"{_HEADER}\nmodel_types = [\n{rows}]\n"


if __name__ == "__main__":
    (CATALOG / MODEL_TYPES_FILE).write_text(model_types_text(), encoding="utf-8")
