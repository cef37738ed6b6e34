"""A folder instead of the hub: snapshots, and plain files named by split."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.hub.manifests import WHOLE
from tests.hub.repositories import ARC, DATASETS, MMLU, MODEL, WINOGRANDE
from tests.hub.scores import Expected, check_variant, variants_of
from tests.hub.user import User
from tests.hub_server import HubServer

MANIFEST = (
    f'{WHOLE.replace("""["bf16", "gptq-w4a16-g64", "fp8-dynamic"]""", """["bf16"]""")}\n[data]\nmirror = "mirror"\n'
)


def write_mirror(root: Path, folder: Path) -> None:
    """Write a mirror with snapshots, except the items of MMLU and WinoGrande, which are plain files by split."""
    for kind, name in (("models", MODEL), *(("datasets", name) for name in DATASETS)):
        shutil.copytree(root / kind / name, folder / kind / name)
    (folder / "datasets" / MMLU / "README.md").unlink()
    plain = folder / "datasets" / WINOGRANDE
    (plain / "README.md").unlink()
    for path in (plain / "winogrande_xl").iterdir():
        path.rename(plain / path.name)
    (plain / "winogrande_xl").rmdir()


def test_scores_from_a_mirror_equal_those_from_the_hub(
    user: User, hub: HubServer, expected: Mapping[str, Expected]
) -> None:
    """Snapshots and plain files, a group included, give the scores of lm-eval on the hub, without a request to it."""
    hub.counts()
    write_mirror(hub.root, user.hpcq.folder / "mirror")
    user.succeed("submit", user.hpcq.write(MANIFEST))
    results = user.hpcq.folder / "runs" / "hub" / "results.h5"
    check_variant(results, variants_of(results)["bf16"], expected["bf16"])
    assert hub.counts() == {}


def test_a_data_set_that_the_mirror_lacks(user: User, hub: HubServer) -> None:
    """Plan, stage and submit name the folder that is missing; the hub is not asked instead."""
    mirror = user.hpcq.folder / "mirror"
    write_mirror(hub.root, mirror)
    shutil.rmtree(mirror / "datasets" / ARC)
    hub.counts()
    for command in ("plan", "stage", "submit"):
        done = user(command, user.hpcq.write(MANIFEST))
        assert done.code == 2
        assert f"the data set {ARC} is missing: copy it to {mirror}/datasets/{ARC}." in " ".join(done.err.split())
    assert hub.counts() == {}


def test_a_model_that_the_mirror_lacks(user: User, hub: HubServer) -> None:
    """Stage and submit name the folder that is missing; the hub is not asked instead."""
    mirror = user.hpcq.folder / "mirror"
    write_mirror(hub.root, mirror)
    shutil.rmtree(mirror / "models" / MODEL)
    hub.counts()
    for command in ("stage", "submit"):
        done = user(command, user.hpcq.write(MANIFEST))
        assert done.code in (2, 3), done.err
        assert f"{mirror}/models/{MODEL}" in done.err
    assert hub.counts() == {}
