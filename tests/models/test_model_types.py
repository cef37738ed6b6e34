"""The list of model types in the catalog is that of the installed transformers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.models.model_types import CATALOG

PRINT = "import sys; from tests.models.model_types import model_types_text; sys.stdout.write(model_types_text())"


def test_model_types_are_those_of_transformers(tmp_path: Path) -> None:
    """A change of transformers' version has to update the list. In this process, other tests may have added types."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", PRINT]
    printed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert (CATALOG / "model_types.toml").read_text(encoding="utf-8") == printed.stdout
