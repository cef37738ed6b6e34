"""Code of a checkpoint is used only from its own folder: that of another repository would not be pinned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpcq.catalog.remote_code import code_problem

OTHER = "org/code--modeling_own.Own"


def write(folder: Path, **files: dict[str, Any]) -> Path:
    """Write JSON files, and a module."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "modeling_own.py").write_text("")
    return folder


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"config": {"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}}, None),
        ({"config": {"auto_map": {"AutoModelForMaskedLM": OTHER}}}, None),
        ({"config": {"auto_map": "text"}}, None),
        ({"config": {}, "tokenizer_config": {"auto_map": {"AutoTokenizer": ["modeling_own.Own", None]}}}, None),
        (
            {"config": {"auto_map": {"AutoConfig": "modeling_own.Own", "AutoModelForCausalLM": OTHER}}},
            f"auto_map in config.json names code of another repository ({OTHER}), which is neither pinned nor staged:",
        ),
        (
            {"tokenizer_config": {"auto_map": {"AutoTokenizer": [None, OTHER]}}},
            f"auto_map in tokenizer_config.json names code of another repository ({OTHER}), ",
        ),
        (
            {"config": {"auto_map": {"AutoConfig": "configuration_own.Own"}}},
            "it has no configuration_own.py, which auto_map in config.json names: copy the file into the folder",
        ),
    ],
)
def test_code_outside_of_the_folder_is_found(files: dict[str, Any], problem: str | None, tmp_path: Path) -> None:
    """transformers would load it from the branch main of that repository, or fail without a network.

    Observed: such a model passed the plan, and its unit failed.
    """
    found = code_problem(write(tmp_path, **files))
    assert found is None if problem is None else (found or "").startswith(problem)
