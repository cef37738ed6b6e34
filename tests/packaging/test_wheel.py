"""The wheel: installed into an empty environment outside the checkout, it does all that the checkout does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

from hpcq.core import environments
from tests.command_line import REHEARSAL, Hpcq

REAL = """
[run]
name = "real"
[cluster]
profile = "local"
[[models]]
id = "HuggingFaceTB/SmolLM2-135M-Instruct"
source = "packages"
[schemes]
use = ["bf16"]
[tasks]
use = ["arc_challenge"]
limit = 2
data = "packages"
"""
NOT_SOURCES = ("runs", "logs", "checkpoints", "build", "tests", "benchmarks", ".git", "*.egg-info", "__pycache__")

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def installed(core_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Hpcq:
    """Build the wheel from a copy of the sources, and install it with its requirements into an empty environment."""
    folder = tmp_path_factory.mktemp("wheel")
    sources, wheels, environment = folder / "sources", folder / "wheels", folder / "environment"
    ignore = shutil.ignore_patterns(*NOT_SOURCES)
    shutil.copytree(environments.CHECKOUT, sources, symlinks=True, ignore=ignore)
    pip = [str(core_python), "-m", "pip"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(sources)]
    subprocess.run(build, cwd=folder, check=True, env=clean_environment())
    (wheel,) = wheels.glob("hpcq-*.whl")
    venv.create(environment, with_pip=False)
    # Versions from the lock: the fixture tests that the requirements are complete, not what an index offers today.
    constraints = folder / "constraints.txt"
    pins = environments.pins("core").items()
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in pins), encoding="utf-8")
    python = environment / "bin" / "python"
    install = [*pip, "--python", str(python), "install", "--constraint", str(constraints), str(wheel)]
    subprocess.run(install, cwd=folder, check=True, env=clean_environment())
    shutil.rmtree(sources)
    work = folder / "work"
    work.mkdir()
    return Hpcq(python=python, folder=work, wrapper=("env", "--unset=PYTHONPATH"))


def clean_environment() -> dict[str, str]:
    """Return the variables without the path to the checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_shipped_manifests_are_planned(installed: Hpcq) -> None:
    """In an empty folder, `hpcq plan` finds each shipped manifest, its profile and the locks that its versions need."""
    for name in ("405b", "paper", "quickstart"):
        done = installed("plan", f"manifests/{name}.toml", "--json")
        assert done.code == 0, done.err
        assert done.document["units"]
    assert list(installed.folder.iterdir()) == []


def test_a_synthetic_run_is_submitted(installed: Hpcq) -> None:
    """The shell and the package reach the jobs: all units are done, merge included."""
    done = installed("submit", installed.write(REHEARSAL))
    assert done.code == 0, done.err
    plan = json.loads((installed.folder / "runs" / "rehearsal" / "plan.json").read_text(encoding="utf-8"))
    assert {array["environment"] for array in plan["arrays"]} == {"core"}
    assert installed("status", "rehearsal", "--json").document["state"] == "done"


def test_a_real_run_is_reported_next_to_published_scores(installed: Hpcq) -> None:
    """An evaluation in an environment from the wheel's locks, and `report --compare` with the wheel's tables."""
    done = installed("submit", installed.write(REAL, "real.toml"), timeout_s=600)
    assert done.code == 0, done.err
    report = installed("report", "real", "--compare", "published")
    assert report.code == 0, report.err
    assert "arc_challenge" in report.out
    assert "arxiv-2409.11055" in report.out
    page = installed("report", "real", "--format", "html")
    assert page.code == 0, page.err
    assert "Content-Security-Policy" in page.out
    claims = installed("report", "--claims", "published")
    assert "10 of 14" in claims.out, claims.err
