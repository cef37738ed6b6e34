"""Lock files: complete, loadable, and equivalent to the manifest that they were written for."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcq.catalog.schemes import scheme_names
from hpcq.core.work_records import ScaleMapping
from hpcq.manifest import Context, load, lock_text, resolve
from tests.checkpoint_files import complete

LoadText = Callable[..., Context]

# Those of the study are other names of schemes, and two names of one scheme are refused.
QUANTIZED = [name for name in scheme_names() if name != "synthetic-w4a16" and not name.startswith("study-")]
RUN_NAMES = r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}"
TASKS = ["arc_challenge", "hellaswag", "gsm8k", "winogrande"]


def _lists(names: list[str], smallest: int = 1) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(names), unique=True, min_size=smallest, max_size=4)


@st.composite
def manifests(draw: st.DrawFn) -> dict[str, Any]:
    """Manifests with most keys."""
    tasks = draw(_lists(TASKS))
    options = st.fixed_dictionaries({}, optional={"limit": st.integers(1, 9), "num_fewshot": st.integers(0, 5)})
    definition = st.fixed_dictionaries(
        {
            "name": st.just("mine"),
            "base": st.sampled_from(["gptq-w4a16", "gptq-w8a16"]),
            "damping": st.floats(0.2, 1),  # not the base's value: two names for the same scheme are rejected
        },
        optional={
            "group_size": st.sampled_from([32, 64]),
            "activation_order": st.booleans(),
            "symmetric": st.booleans(),
            "ignore": st.sampled_from([[], ["lm_head"], ["lm_head", r"re:.*\.1\.mlp\..*"], ["re:.*(head|o_proj)"]]),
        },
    )
    model = {"id": draw(st.sampled_from(["google/gemma-2b", "meta-llama/Llama-3.1-8B"]))}
    if draw(st.booleans()):
        model |= {"schemes": draw(_lists(QUANTIZED)), "revision": "main", "trust_remote_code": draw(st.booleans())}
    defined = draw(st.lists(definition, max_size=1))
    return {
        "run": {"name": draw(st.from_regex(RUN_NAMES, fullmatch=True)), "description": draw(st.text())},
        "models": [model],
        "schemes": {"use": [*draw(_lists(QUANTIZED)), *(row["name"] for row in defined)], "define": defined},
        "calibration": {"samples": draw(st.integers(1, 9)), "seed": draw(st.integers(0, 9))},
        **draw(st.sampled_from([{}, {"fidelity": {}}, {"fidelity": {"tokens": 1000, "window": 64, "seed": 2}}])),
        "tasks": {
            "use": tasks,
            "data": draw(st.sampled_from(["hub", "packages"])),
            "options": {name: draw(options) for name in draw(_lists(tasks, smallest=0))},
        },
        "cluster": {"profile": draw(st.sampled_from(["local", "clusters/paper.toml"]))},
        "evaluate": {
            "backend": draw(st.sampled_from(["accelerate", "vllm", "synthetic"])),
            "flush_interval_s": draw(st.floats(0.1, 100)),
            "seed": draw(st.integers(0, 2**32 - 1)),
            "dtype": draw(st.sampled_from(["auto", "float32"])),
            "prefix_sharing": draw(st.booleans()),
            **draw(st.sampled_from([{}, {"backend": "vllm", "max_length": 2048, "engine": {"kv_cache_gib": 0.5}}])),
        },
    }


@given(manifests(), st.sampled_from([{}, {"transformers": (("torch", "2.13.0"),)}]))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_lock_resolves_to_what_it_was_written_for(
    document: dict[str, Any], versions: dict[str, tuple[tuple[str, str], ...]]
) -> None:
    """The lock of any manifest resolves to the same records, also from another folder; so does the lock of a lock."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        Path(first, "m.toml").write_text(tomli_w.dumps(document), encoding="utf-8")
        os.chdir(first)
        resolved = resolve(load(Path("m.toml")))
        text = lock_text(resolved, versions)
        os.chdir(second)
        Path("manifest.lock.toml").write_text(text, encoding="utf-8")
        again = resolve(load(Path("manifest.lock.toml")))
        os.chdir("/")
    assert again.locked_versions == versions
    assert tomllib.loads(lock_text(again)) == tomllib.loads(text)
    different = ("context", "missing", "absent", "locked_versions")  # they depend on the file itself
    for field in dataclasses.fields(resolved):
        assert field.name in different or getattr(again, field.name) == getattr(resolved, field.name)


def test_a_lock_contains_absolute_paths(load_text: LoadText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock finds checkpoint, items, calibration text and profile from another folder than the manifest's."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text("{}")
    complete(tmp_path / "own")
    (tmp_path / "items" / "gsm8k").mkdir(parents=True)
    (tmp_path / "items" / "gsm8k" / "test.jsonl").write_text("{}\n")
    (tmp_path / "text.txt").write_text("Some text. " * 30_000)
    (tmp_path / "c.toml").write_text(
        'name = "c"\nscheduler = "local"\n[gpu_classes.cpu]\ncpus_per_node = 2\nmemory_gib = 4\n'
    )
    resolved = resolve(
        load_text("""
[run]
name = "x"
[cluster]
profile = "c.toml"
[[models]]
path = "own"
[schemes]
use = ["fp8"]
[calibration]
dataset = "text.txt"
[tasks]
use = ["gsm8k"]
data = "items"
""")
    )
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "lock.toml").write_text(lock_text(resolved))
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "c.toml").unlink()
    again = resolve(load(Path("lock.toml")))
    assert (again.pairs, again.tasks, again.layout) == (resolved.pairs, resolved.tasks, resolved.layout)
    assert again.profile == resolved.profile
    assert again.calibration
    assert again.calibration.path == str(tmp_path / "text.txt")


def test_a_lock_contains_the_items_of_a_file(load_text: LoadText, smallest: str, tmp_path: Path) -> None:
    """It had the name of the file: with another file of this name, the same lock meant other items."""
    listed = tmp_path / "listed"
    listed.write_text("[0, 1, 2, 7]")
    first = resolve(load_text(smallest, f"tasks.options.arc_challenge.items={str(listed)!r}"))
    text = lock_text(first)
    listed.write_text("[3]")
    assert tomllib.loads(text)["tasks"]["options"]["arc_challenge"]["items"] == {"arc_challenge": "0-2,7"}
    assert resolve(load_text(text)).tasks == first.tasks


def test_a_lock_contains_complete_schemes(load_text: LoadText, smallest: str) -> None:
    """Every scheme is written out, so that a later catalog does not change the run."""
    resolved = resolve(load_text(smallest, "schemes.use=['bf16', 'gptq-w4a16-g64']"))
    defined = tomllib.loads(lock_text(resolved))["schemes"]["define"]
    assert [row["name"] for row in defined] == ["bf16", "gptq-w4a16-g64"]
    assert defined[1] == {
        "name": "gptq-w4a16-g64",
        "tool": "llmcompressor",
        "method": "gptq",
        "weights": "int4",
        "activations": "bf16",
        "granularity": "group",
        "group_size": 64,
        "symmetric": True,
        "dynamic": False,
        "damping": 0.01,
        "activation_order": True,
        "ignore": ["lm_head"],
    }


def test_a_lock_contains_mappings_and_the_kv_cache(load_text: LoadText, smallest: str) -> None:
    """A scheme with settings of its own is the same scheme when it is read from the lock file."""
    defined = """
[[schemes.define]]
name = "mine"
base = "smoothquant-w8a8"
smoothing_strength = 0.5
kv_cache = "fp8_e4m3"
mappings = [{ smooth = "re:.*input_layernorm", balance = ["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"] }]
"""
    first = resolve(load_text(smallest + defined, "schemes.use=['bf16', 'mine']"))
    second = resolve(load_text(lock_text(first)))
    assert second.pairs == first.pairs
    scheme = second.pairs[-1][1]
    assert scheme.mappings == (
        ScaleMapping(smooth="re:.*input_layernorm", balance=("re:.*q_proj", "re:.*k_proj", "re:.*v_proj")),
    )
    assert (scheme.kv_cache, scheme.smoothing_strength) == ("fp8_e4m3", 0.5)


def test_an_override_replaces_the_profile_of_a_lock(load_text: LoadText, smallest: str) -> None:
    """A profile name on the command line replaces the table in the lock."""
    text = lock_text(resolve(load_text(smallest)))
    assert resolve(load_text(text, "cluster.profile=clusters/paper.toml")).profile.name == "paper"
