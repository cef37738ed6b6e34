"""A local hub with the data sets of several benchmarks, and a cache with what was staged from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lm_eval.tasks
import pytest

from hpcq.core.hub_cache import HubCache
from tests.hub_datasets import write_repositories
from tests.hub_server import HubServer, running_hub

ONLINE = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}


def mmlu_subjects() -> list[str]:
    """Return the configurations that MMLU's definitions read."""
    folder = Path(lm_eval.tasks.__file__).parent / "mmlu" / "default"
    return sorted(path.stem.removeprefix("mmlu_") for path in folder.glob("mmlu_*.yaml"))


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A hub with all repositories of tests/hub_datasets.py. Do not change them."""
    root = tmp_path_factory.mktemp("hub")
    write_repositories(root, mmlu_subjects())
    with running_hub(root) as running:
        yield running


@pytest.fixture(scope="session")
def session_online(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """The hub, for programs that tests start; the tests' own process stays offline."""
    patch = pytest.MonkeyPatch()
    home = tmp_path_factory.mktemp("hf-home")
    for name, value in {**ONLINE, "HF_ENDPOINT": hub.url, "HF_HOME": str(home)}.items():
        patch.setenv(name, value)
    yield hub
    patch.undo()


@pytest.fixture
def online(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The hub, for programs that the test starts; the test's own process stays offline."""
    for name, value in {**ONLINE, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf-home")}.items():
        monkeypatch.setenv(name, value)
    hub.counts()
    return hub


@pytest.fixture
def cache(tmp_path: Path) -> HubCache:
    """An empty cache."""
    return HubCache(hub=tmp_path / "cache" / "hub", prepared=tmp_path / "cache" / "hpcq")
