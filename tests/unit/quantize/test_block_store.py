"""Block store of an unfinished checkpoint: a committed block is restored exactly, or not used at all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcq.quantize.block_store import Block, BlockStore
from hpcq.quantize.safetensors_io import RawTensor

NAMES = ("a", "b", "c")


def open_store(folder: Path, address: str = "1" * 64) -> BlockStore:
    """The block store of one checkpoint, as a new attempt opens it."""
    return BlockStore(folder, {"address": address}, lambda _: None)


def block(content: bytes = b"weights") -> Block:
    """A block of two tensors, one of them empty."""
    data, empty = memoryview(content), memoryview(b"")
    return Block(
        tensors={
            "w": RawTensor(dtype="uint8", shape=(len(content),), data=data),
            "none": RawTensor(dtype="float32", shape=(0, 3), data=empty),
        },
        facts={"warnings": ["something"]},
    )


def commit_all(folder: Path, names: Sequence[str] = NAMES, address: str = "1" * 64) -> None:
    """Commit a block under each name, as one attempt does."""
    blocks = open_store(folder, address)
    for name in names:
        assert blocks.restore(name) is None
        blocks.commit(name, block(name.encode()))


def restored(folder: Path, address: str = "1" * 64) -> list[bytes]:
    """Contents of the blocks that a new attempt restores, in order."""
    blocks = open_store(folder, address)
    found = [blocks.restore(name) for name in NAMES]
    return [bytes(one.tensors["w"].data) for one in found if one]


def test_a_committed_block_is_restored_exactly(tmp_path: Path) -> None:
    """Tensors, their dtypes and shapes, and facts are restored unchanged."""
    commit_all(tmp_path, ["a"])
    blocks = open_store(tmp_path)
    assert blocks.restore("a") == block(b"a")
    assert (blocks.restored, blocks.committed) == (1, 0)


def test_no_block_after_a_missing_one_is_used(tmp_path: Path) -> None:
    """A block is not used if one before it is missing."""
    commit_all(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    assert restored(tmp_path) == [b"a"]


def test_blocks_after_one_recomputed_with_the_same_bits_are_used(tmp_path: Path) -> None:
    """If a lost block is recomputed with the same bits, the blocks after it remain valid."""
    commit_all(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    blocks = open_store(tmp_path)
    assert blocks.restore("a")
    assert blocks.restore("b") is None
    blocks.commit("b", block(b"b"))
    assert restored(tmp_path) == [b"a", b"b", b"c"]


def test_blocks_of_two_runs_are_never_mixed(tmp_path: Path) -> None:
    """If a lost block is recomputed with other bits, the blocks after the old one are set aside."""
    commit_all(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    blocks = open_store(tmp_path)
    blocks.restore("a")
    blocks.restore("b")
    blocks.commit("b", block(b"other bits"))
    assert restored(tmp_path) == [b"a", b"other bits"]
    assert (tmp_path / "c.safetensors.set-aside").exists()


def test_blocks_of_another_address_are_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A block of another checkpoint is logged with its path and not used."""
    commit_all(tmp_path, address="2" * 64)
    with caplog.at_level(logging.WARNING):
        assert restored(tmp_path) == []
    assert "a.safetensors: set aside: it belongs to another checkpoint" in caplog.text


def test_blocks_of_another_environment_are_not_used(tmp_path: Path) -> None:
    """Blocks that were computed on another kind of device, or in another dtype, are not used."""
    on_gpu = open_store(tmp_path)
    on_gpu.set_environment(device="cuda")
    on_gpu.commit("a", block())
    on_cpu = open_store(tmp_path)
    on_cpu.set_environment(device="cpu")
    assert on_cpu.restore("a") is None


def test_a_block_under_another_name_is_not_used(tmp_path: Path) -> None:
    """A copied or renamed block is detected."""
    commit_all(tmp_path, ["a"])
    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    assert open_store(tmp_path).restore("b") is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(where=st.integers(min_value=0), bit=st.integers(min_value=0, max_value=7))
def test_any_flipped_bit_is_detected(where: int, bit: int, tmp_path: Path) -> None:
    """A block is not used if any bit of its file has flipped."""
    commit_all(tmp_path, ["a"])
    path = tmp_path / "a.safetensors"
    content = bytearray(path.read_bytes())
    content[where % len(content)] ^= 1 << bit
    path.write_bytes(content)
    assert restored(tmp_path) == []
    path.unlink(missing_ok=True)


def test_any_truncation_is_detected(tmp_path: Path) -> None:
    """A block is not used if its file is truncated at any length."""
    commit_all(tmp_path, ["a"])
    path = tmp_path / "a.safetensors"
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert restored(tmp_path) == []
