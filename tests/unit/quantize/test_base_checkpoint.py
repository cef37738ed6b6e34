"""Checks of a base checkpoint: only the planned model, complete, is quantized."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcq.core.attempts import Attempt
from hpcq.core.digests import digest_of_model
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.hub_cache import HubCache, RepoKind
from hpcq.core.work_records import Model, QuantizeWork, Variant
from hpcq.quantize.base_checkpoint import check_base
from hpcq.quantize.worker import quantize
from tests.checkpoint_files import TOKENIZER, write_safetensors
from tests.unit.quantize.conftest import FP8_DYNAMIC

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_model(folder: Path, **config: object) -> Path:
    """Write the small files of a checkpoint, and a weight file without weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}), encoding="utf-8")
    (folder / "tokenizer.json").write_text(TOKENIZER, encoding="utf-8")
    write_safetensors(folder / "model.safetensors", weight=(1,))
    return folder


def check(folder: Path | None, *, revision: str | None = None, digest: str | None = None) -> None:
    """Check the base checkpoint of FP8 in `folder`."""
    model = Model(id="org/model", path=None if folder is None else str(folder), revision=revision, digest=digest)
    check_base(Variant(model=model, scheme=FP8_DYNAMIC))


def staged(root: Path, commit: str = COMMIT) -> tuple[Path, Path]:
    """A staged snapshot in the cache below `root`, and its completion marker."""
    cache = HubCache(hub=root / "hub", prepared=root / "hpcq")
    folder = write_model(cache.snapshot(RepoKind.MODEL, "org/model", commit))
    marker = cache.marker(RepoKind.MODEL, "org/model", commit)
    marker.parent.mkdir(parents=True)
    files = [{"path": path.name, "size": path.stat().st_size, "sha256": ""} for path in folder.iterdir()]
    marker.write_text(json.dumps({"files": files, "digest": "", "compared_with": "hub"}), encoding="utf-8")
    return folder, marker


@pytest.mark.parametrize("path", [None, ""])
def test_a_model_without_folder_is_never_searched_in_the_working_directory(
    path: str | None, tmp_path: Path, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unstaged model is refused with its name and the command, even if the working directory has a checkpoint."""
    monkeypatch.chdir(write_model(tmp_path / "another-model"))
    variant = Variant(model=Model(id="org/model", path=path), scheme=FP8_DYNAMIC)
    work = QuantizeWork(variant=variant, checkpoint_path=str(tmp_path / "checkpoints" / "x"))
    with pytest.raises(SetupError, match=r"^org/model has no folder.*: run 'hpcq stage MANIFEST'\.$"):
        quantize(work, attempt)
    assert not (tmp_path / "checkpoints").exists()


def test_a_complete_snapshot_passes(tmp_path: Path) -> None:
    """A snapshot of the planned commit whose files have the sizes of the completion marker is accepted."""
    check(staged(tmp_path)[0], revision=COMMIT)


def test_a_snapshot_of_another_commit_is_refused(tmp_path: Path) -> None:
    """The message has both commits."""
    folder, _ = staged(tmp_path, commit="f" * 40)
    with pytest.raises(
        SetupError, match=r"commit ffffffffffff of org/model, but the run was planned with 0123456789ab"
    ):
        check(folder, revision=COMMIT)


def test_a_snapshot_without_marker_is_refused(tmp_path: Path) -> None:
    """Files that exist are no evidence that staging has finished."""
    folder, marker = staged(tmp_path)
    marker.unlink()
    with pytest.raises(SetupError, match=r"org/model is not completely staged .*run 'hpcq stage MANIFEST' again\.$"):
        check(folder, revision=COMMIT)


@pytest.mark.parametrize("content", ["", "[]", '{"files": 3}', '{"files": [{"path": "config.json"}]}'])
def test_a_damaged_marker_is_refused(content: str, tmp_path: Path) -> None:
    """A marker that cannot be read counts as none."""
    folder, marker = staged(tmp_path)
    marker.write_text(content, encoding="utf-8")
    with pytest.raises(SetupError, match=r"the completion marker of org/model is damaged"):
        check(folder, revision=COMMIT)


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    """The message has the file and both sizes."""
    folder, _ = staged(tmp_path)
    size = (folder / "model.safetensors").stat().st_size
    (folder / "model.safetensors").write_bytes(b"weight")
    with pytest.raises(SetupError, match=rf"model.safetensors: it has 6 bytes, but was staged with {size}"):
        check(folder, revision=COMMIT)


def test_a_missing_file_of_a_snapshot_is_refused(tmp_path: Path) -> None:
    """A staged file that was deleted is named."""
    folder, _ = staged(tmp_path)
    size = (folder / "model.safetensors").stat().st_size
    (folder / "model.safetensors").unlink()
    with pytest.raises(SetupError, match=rf"model.safetensors: it is missing, but was staged with {size}"):
        check(folder, revision=COMMIT)


def test_a_checkpoint_that_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    """A local checkpoint whose digest was computed here is compared with the planned digest."""
    folder = write_model(tmp_path / "model")
    planned = digest_of_model(folder)
    check(folder, digest=planned)
    write_safetensors(folder / "model.safetensors", weight=(2,))
    with pytest.raises(SetupError, match=r"the files of org/model have changed since the run was planned"):
        check(folder, digest=planned)


def test_a_checkpoint_that_was_never_hashed_here_is_not_hashed(tmp_path: Path) -> None:
    """Hashing a large model takes minutes: a node with another cache does not do it."""
    check(write_model(tmp_path / "model"), digest="0" * 64)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    """Weight files that the index names must exist."""
    folder = write_model(tmp_path / "model")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    write_safetensors(folder / "model-00001-of-00002.safetensors", a=(1,))
    with pytest.raises(SetupError, match=r"model-00002-of-00002.safetensors, which .*index.json names, is missing"):
        check(folder)


def test_a_family_that_cannot_be_quantized_is_refused(tmp_path: Path) -> None:
    """GPT-2 is refused from its config.json alone.

    Observed: fp8-dynamic quantized nothing in it (its layers are Conv1D), and was shown as 65.0 (0.0).
    """
    folder = write_model(tmp_path / "model", model_type="gpt2")
    with pytest.raises(
        UserInputError, match=r"^'fp8-dynamic' cannot quantize org/model: its layers are Conv1D modules"
    ):
        check(folder)
