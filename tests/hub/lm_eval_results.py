"""lm-eval itself as another user of the hub."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hub.user import ONLINE

PROGRAM = Path(__file__).with_name("lm_eval_program.py")


@dataclass(frozen=True, kw_only=True)
class LmEvalResults:
    """What lm-eval gives.

    Attributes:
        by_label: Scores and responses by label and task.
        home: Its HF_HOME, which only the hub's own clients have filled.
    """

    by_label: Mapping[str, Mapping[str, Any]]
    home: Path


def lm_eval_results(
    python: Path, url: str, folder: Path, models: Mapping[str, str], tasks: Mapping[str, int]
) -> LmEvalResults:
    """Evaluate with lm-eval.

    Args:
        python: Interpreter of the transformers environment.
        url: HF_ENDPOINT.
        folder: An empty folder.
        models: Id on the hub, or folder, by label.
        tasks: Items per task.
    """
    output, home = folder / "results.json", folder / "hf-home"
    done = subprocess.run(
        [python, PROGRAM, output],
        input=json.dumps({"models": dict(models), "tasks": dict(tasks)}),
        env={**os.environ, **ONLINE, "HF_ENDPOINT": url, "HF_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return LmEvalResults(by_label=json.loads(output.read_text(encoding="utf-8")), home=home)
