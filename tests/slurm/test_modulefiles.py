"""Modulefiles of hpcq's environments: a job loads the one of its environment, as the cluster profile says."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hpcq.core import environments
from hpcq.core.modulefiles import modules_folder, version_of
from hpcq.core.paths import RunLayout
from hpcq.core.work_records import UnitState
from hpcq.launch.build_array_spec import build_environment
from hpcq.launch.slurm_launcher import SlurmLauncher
from hpcq.manifest.profiles import EnvironmentSettings, Profile
from tests.slurm.cluster import VirtualCluster
from tests.slurm.synthetic_units import layout_at, synthetic_array, synthetic_unit
from tests.slurm.waiting import wait_until_ended

INIT = Path("/usr/share/modules/init/bash")
NUMBERS = itertools.count()
CPU = {"nodes": 1, "cpus_per_node": 1, "memory_gib": 1}


@pytest.fixture
def layout(cluster: VirtualCluster, tmp_path: Path) -> Iterator[RunLayout]:
    """A new run on an idle cluster."""
    if not INIT.is_file():
        reason = "environment modules are not installed: run tests/install-slurm"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    yield layout_at(tmp_path, name=f"modules-{next(NUMBERS)}")
    cluster.cancel_all_jobs()


def profile_with(module: str) -> Profile:
    """Return a profile whose environment 'core' loads a module."""
    settings = EnvironmentSettings.model_validate({"modules": [module]})
    return Profile.model_validate({"name": "here", "scheduler": "local", "gpu_classes": {"cpu": CPU}}).model_copy(
        update={"environments": {"core": settings}}
    )


def test_a_job_loads_the_module_of_its_environment(layout: RunLayout, tmp_path: Path) -> None:
    """The module has the digest of the lock file, and puts the environment's programs first."""
    environments.create("core")
    found = tmp_path / "found"
    built = build_environment("core", profile_with("hpcq/core"))
    folder = environments.folder("core")
    assert built.modules == (f"hpcq/core/{version_of(folder)}",)
    spec = synthetic_array(layout, "module", [synthetic_unit(layout, "unit")])
    lines = (f'echo "$HPCQ_MODULE_ENVIRONMENT $VIRTUAL_ENV $(command -v python) $LOADEDMODULES" >{found}',)
    changed = replace(spec.environment, modules=built.modules, module_path=built.module_path, setup=lines)
    SlurmLauncher(layout).submit([replace(spec, environment=changed)])
    assert {job.state.unit_state for job in wait_until_ended(layout).values()} == {UnitState.DONE}
    loaded = f"hpcq/core/{version_of(folder)}"
    environment, prefix, python, modules = found.read_text().split()
    assert (environment, modules) == ("core", loaded)
    assert Path(prefix).resolve() == folder.resolve()  # tests have a cache of their own, with links to the environments
    assert Path(python) == Path(prefix) / "bin" / "python"


def test_a_shell_loads_the_default_version() -> None:
    """`module load hpcq/core` loads the environment that was created last; two of them conflict."""
    if not INIT.is_file():
        pytest.skip("environment modules are not installed: run tests/install-slurm")
    environments.create("core")
    program = (
        f". {INIT}; module use {modules_folder()}; module load hpcq/core; echo $VIRTUAL_ENV; module whatis hpcq/core;"
        " module unload hpcq/core; echo left:$VIRTUAL_ENV"
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert Path(done.stdout.splitlines()[0]).name.startswith("core-")
    assert "left:\n" in done.stdout
    assert "Python environment 'core' of hpcq" in done.stdout + done.stderr
