"""The example of a plugin, installed with hpcq into a new environment without a network, from manifest to scores."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from hpcq.core.environments import CHECKOUT
from hpcq.quantize.safetensors_io import read_tensors
from hpcq.store import VariantScores, read_results

EXAMPLE = CHECKOUT / "examples" / "plugin"
PACKAGED = ("hpcq", "sbatch", "modules", "manifests", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
WRITE_MODEL = (
    "import sys; from pathlib import Path; from tests.tiny_llama import write_base; write_base(Path(sys.argv[1]))"
)
PLUGIN = "hpcq-example-plugin"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def hpcq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of a new virtual environment with hpcq and the example, and this one's packages as requirements."""
    folder = tmp_path_factory.mktemp("installed")
    for name in PACKAGED:
        copy = shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy
        copy(CHECKOUT / name, folder / "hpcq" / name, **({"symlinks": True} if copy is shutil.copytree else {}))
    shutil.copytree(EXAMPLE, folder / "plugin")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (packages,) = folder.glob("venv/lib/python3*/site-packages")
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", folder / "venv" / "bin" / "python", "install"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, *offline, folder / "hpcq", folder / "plugin"], check=True, capture_output=True)
    return folder / "venv" / "bin" / "hpcq"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, transformers_python: Path) -> Path:
    """A working directory with a random Llama of 2 layers and a few items of a benchmark."""
    folder = tmp_path_factory.mktemp("work")
    subprocess.run([transformers_python, "-c", WRITE_MODEL, folder / "tiny"], check=True, capture_output=True)
    for split, count in (("train", 2), ("test", 6)):
        rows = [
            {
                "id": f"{split}-{number}",
                "question": f"What is {number} times {number}?",
                "choices": {"text": [str(number * number), "not a number"], "label": ["A", "B"]},
                "answerKey": "AB"[number % 2],
            }
            for number in range(count)
        ]
        (folder / "items" / "arc_challenge").mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "items" / "arc_challenge" / f"{split}.jsonl").write_text(text)
    return folder


def command(hpcq: Path, run_folder: Path, verb: str, *options: str) -> str:
    """Run a verb on the example's manifest, with the local model and items; return its output."""
    overrides = (f"models.0.path={run_folder / 'tiny'}", f"tasks.data={run_folder / 'items'}", *options)
    words = [hpcq, verb, EXAMPLE / "manifest.toml", *(word for one in overrides for word in ("-O", one))]
    # Without the checkout on the path: the installed distributions alone must be enough.
    done = subprocess.run(
        [*words, "--json"], cwd=run_folder, capture_output=True, text=True, check=False, env=_clean_environment()
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _clean_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def test_a_plan_has_the_plug_ins_units(hpcq: Path, run_folder: Path) -> None:
    """The planner places the plugin's tools in the environments that it declares, without importing them."""
    units = json.loads(command(hpcq, run_folder, "plan"))["units"]

    assert {(unit["kind"], unit["scheme"], unit["backend"], unit["environment"]) for unit in units} == {
        ("quantize", "nearest-w8a16", None, "core"),
        ("quantize", "nearest-attention", None, "core"),
        ("evaluate", "bf16", "byte-length", "transformers"),
        ("evaluate", "nearest-w8a16", "byte-length", "transformers"),
        ("evaluate", "nearest-attention", "byte-length", "transformers"),
        ("merge", None, None, "transformers"),
    }


def test_scores_name_the_plug_in_its_version_and_its_environment(hpcq: Path, run_folder: Path) -> None:
    """A run with both tools is scored, and the provenance of each variant has names, versions and environments."""
    command(hpcq, run_folder, "submit")
    variants = _variants(run_folder / "runs" / "plugin")

    assert {scheme: len(found.scores) for scheme, found in variants.items()} == dict.fromkeys(variants, 2)
    # The shorter choice is always the first: it is right for half of the items.
    accuracy = {score.value for found in variants.values() for score in found.scores if score.metric == "acc"}
    assert accuracy == {0.5}
    provenance = variants["nearest-w8a16"].provenance
    assert (provenance["tool"], provenance["backend"]) == ("nearest", "byte-length")
    for key, environment in (("quantizer", "core"), ("backend", "transformers")):
        assert json.loads(str(provenance[f"{key}_versions"]))[PLUGIN] == "0.1.0"
        assert provenance[f"{key}_environment"] == environment


def test_other_back_ends_load_the_plug_ins_checkpoints(hpcq: Path, run_folder: Path) -> None:
    """The transformers backend evaluates a checkpoint with each weight of a linear layer rounded to 8 bits."""
    options = ("evaluate.backend=accelerate", "run.name=scores", "schemes.use=['bf16', 'nearest-w8a16']")
    command(hpcq, run_folder, "submit", *options)

    variants = _variants(run_folder / "runs" / "scores")
    assert {found.provenance["backend"] for found in variants.values()} == {"accelerate"}
    (checkpoint,) = (run_folder / "checkpoints").glob("*/nearest-w8a16-*")
    base, rounded = _weights(run_folder / "tiny"), _weights(checkpoint)
    assert base.keys() == rounded.keys()
    for name, weights in base.items():
        if name.endswith("_proj.weight"):
            half_step = np.abs(weights).max(axis=1, keepdims=True) / 127 / 2
            error = np.abs(rounded[name] - weights)
            assert error.max() > 0
            assert np.all(error <= half_step + np.abs(weights) / 2**7)  # bfloat16 has 8 bits of precision
        else:
            assert np.array_equal(rounded[name], weights)


def _weights(checkpoint: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a checkpoint in bfloat16 as float32."""
    _, tensors = read_tensors(checkpoint / "model.safetensors")
    return {
        name: (np.frombuffer(tensor.data, "<u2").astype("<u4") << 16).view("<f4").reshape(tensor.shape)
        for name, tensor in tensors.items()
    }


def _variants(run: Path) -> dict[str, VariantScores]:
    return {str(found.provenance["scheme"]): found for found in read_results(run / "results.h5").variants}
