"""A local hub with a model, benchmarks and a text; a virtual cluster whose nodes have no network; users of both.

One whole run from the hub (`submitted`) and lm-eval's own results on the same hub (`expected`) are made once: other
tests start with copies of their caches.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.command_line import CommandResult, Hpcq
from tests.hub.lm_eval_results import LmEvalResults, lm_eval_results
from tests.hub.manifests import LIMITS, WHOLE
from tests.hub.namespace import isolated_cluster, network_namespace
from tests.hub.repositories import MODEL, write_repositories
from tests.hub.scores import Expected, variants_of
from tests.hub.user import User
from tests.hub_server import OPTIONS, HubServer, running_hub
from tests.slurm.cluster import VirtualCluster

FOLDER = Path(__file__).parent
ENVIRONMENT = {name: os.environ.get(name) for name in ("PATH", "SLURM_CONF")}
"""What `cluster` changes for all tests of this folder."""
HUB_OPTIONS = {"lfs_above": 20_000, "redirect": 1}


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """The run that is made once.

    Attributes:
        user: Its user.
        result: Of `hpcq submit --wait`.
        counts: Requests to the hub.
    """

    user: User
    result: CommandResult
    counts: Mapping[str, int]

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.user.hpcq.folder / "runs" / "hub"

    @property
    def results(self) -> Path:
        """File of the merged results."""
        return self.folder / "results.h5"


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Restore the environment after the last test of this folder: other folders have clusters of their own."""
    if nextitem is None or not nextitem.path.is_relative_to(FOLDER):
        for name, value in ENVIRONMENT.items():
            os.environ.pop(name, None)
            os.environ |= {name: value} if value is not None else {}


@pytest.fixture(scope="session")
def repositories(tmp_path_factory: pytest.TempPathFactory, transformers_python: Path) -> Path:
    """The folder of all repositories."""
    root = tmp_path_factory.mktemp("hub") / "root"
    write_repositories(root, transformers_python)
    return root


@pytest.fixture(scope="session")
def running(repositories: Path) -> Iterator[HubServer]:
    """The server, for `hub`."""
    with running_hub(repositories, **HUB_OPTIONS) as server:
        yield server


@pytest.fixture
def hub(running: HubServer) -> Iterator[HubServer]:
    """The hub, which works well and has counted no request; it works well again after the test."""
    running.counts()
    yield running
    running.set(**{name: default for name, (_, default) in OPTIONS.items()} | HUB_OPTIONS)


@pytest.fixture(scope="session")
def prefix() -> Iterator[tuple[str, ...]]:
    """Command that executes others in a network namespace with only its loopback."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for a network namespace")
    with network_namespace() as command:
        yield command


@pytest.fixture(scope="session")
def cluster(
    prefix: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory, core_python: Path, transformers_python: Path
) -> Iterator[VirtualCluster]:
    """Virtual nodes in that namespace, and their profile."""
    with isolated_cluster(prefix, tmp_path_factory.mktemp("clients")) as virtual:
        virtual.write_profile({"core": str(core_python), "transformers": str(transformers_python)})
        yield virtual


@pytest.fixture(scope="session")
def new_user(running: HubServer, core_python: Path) -> Callable[[Path], User]:
    """Make a user with an empty home and an empty working directory in a folder."""

    def make(folder: Path) -> User:
        (folder / "work").mkdir(parents=True)
        return User(hpcq=Hpcq(python=core_python, folder=folder / "work"), home=folder / "hf-home", url=running.url)

    return make


@pytest.fixture
def user(new_user: Callable[[Path], User], tmp_path: Path) -> User:
    """A user with an empty home and an empty working directory."""
    return new_user(tmp_path / "user")


@pytest.fixture(scope="session")
def submitted(
    running: HubServer,
    cluster: VirtualCluster,
    new_user: Callable[[Path], User],
    tmp_path_factory: pytest.TempPathFactory,
) -> Submitted:
    """A run of the whole manifest on the cluster, which `submit` has staged."""
    user = new_user(tmp_path_factory.mktemp("submitted"))
    running.counts()
    result = user("submit", user.hpcq.write(WHOLE), "-O", f"cluster.profile={cluster.profile}", "--wait")
    return Submitted(user=user, result=result, counts=running.counts())


@pytest.fixture
def staged_user(submitted: Submitted, user: User) -> User:
    """A user whose cache has what `submitted` has staged."""
    shutil.copytree(submitted.user.home, user.home, symlinks=True)
    return user


@pytest.fixture(scope="session")
def lm_eval_home(
    submitted: Submitted, running: HubServer, transformers_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> LmEvalResults:
    """lm-eval's own results: of the model on the hub, and of the checkpoints of the run."""
    (checkpoints,) = (submitted.user.hpcq.folder / "checkpoints").iterdir()
    quantized = {
        scheme: str(folder) for scheme in variants_of(submitted.results) for folder in checkpoints.glob(f"{scheme}-*")
    }
    models = {"bf16": MODEL} | quantized
    return lm_eval_results(transformers_python, running.url, tmp_path_factory.mktemp("lm-eval"), models, LIMITS)


@pytest.fixture(scope="session")
def expected(lm_eval_home: LmEvalResults) -> Mapping[str, Expected]:
    """lm-eval's own results by scheme."""
    return lm_eval_home.by_label
