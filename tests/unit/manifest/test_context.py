"""The names in a manifest are looked up once for all of their users."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcq.catalog.hf_config import read_checkpoint_shape
from hpcq.core.errors import ManifestError
from hpcq.manifest import Manifest, check_manifest, load, lock_text, lookups, profiles, resolve, task_names
from hpcq.plan.planner import make_plan
from tests.checkpoint_files import write_safetensors
from tests.unit.manifest.test_resolver import make_checkpoint

TWO_MODELS = """
[run]
name = "r"
[cluster]
profile = "local"
[[models]]
path = "old"
[[models]]
path = "new"
[schemes]
use = ["bf16"]
[tasks]
use = ["arc_challenge"]
"""


def count_calls(of: tuple[Callable[..., Any], ...], during: Callable[[], object]) -> Counter[str]:
    """Return how often each function of `of` is called during a call."""
    names = {function.__code__: function.__name__ for function in of}
    counts: Counter[str] = Counter()

    def record(frame: Any, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code in names:
            counts[names[frame.f_code]] += 1

    sys.setprofile(record)
    try:
        during()
    finally:
        sys.setprofile(None)
    return counts


def test_a_run_is_loaded_with_one_look_up_of_each_name(tmp_path: Path) -> None:
    """From the file to the lock and the plan, the profile is read once, and each model's sizes once."""
    for name in ("old", "new"):
        write_safetensors(make_checkpoint(tmp_path / name) / "model.safetensors", **{name: (2,)})
    path = tmp_path / "mine.toml"
    path.write_text(TWO_MODELS)
    once = (
        profiles.load_profile,
        profiles.local_profile,
        lookups.defined_schemes,
        task_names.task_entries,
        lookups.calibration_file,
    )

    def load_all() -> None:
        resolved = resolve(load(path))
        make_plan(resolved)
        lock_text(resolved)

    counts = count_calls((*once, lookups.model_shape, read_checkpoint_shape), load_all)
    assert counts == dict.fromkeys((function.__name__ for function in once), 1) | {
        "model_shape": 2,
        "read_checkpoint_shape": 2,
    }


def test_a_manifest_made_in_python_is_checked_like_a_file() -> None:
    """`check_manifest` refuses unknown names and a profile that does not exist, all at once."""
    manifest = Manifest.model_validate(
        {
            "run": {"name": "r"},
            "cluster": {"profile": "nowhere.toml"},
            "models": [{"id": "nobody/nothing", "source": "packages"}],
            "schemes": {"use": ["bf16"]},
            "tasks": {"use": ["arc_challenge"]},
        }
    )
    with pytest.raises(ManifestError) as raised:
        check_manifest(manifest)
    assert [problem.split(":")[1].strip() for problem in raised.value.problems] == ["cluster.profile", "models.0.id"]
