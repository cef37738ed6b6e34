"""Facts about the blocks of a checkpoint in the making: what is committed is found again, or not used at all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcq.quantize.block_store import Block, Blocks
from hpcq.quantize.safetensors_io import RawTensor

NAMES = ("a", "b", "c")


def blocks_in(folder: Path, address: str = "1" * 64) -> Blocks:
    """The blocks of one checkpoint, as a new attempt opens them."""
    return Blocks(folder, {"address": address}, lambda _: None)


def block(content: bytes = b"weights") -> Block:
    """A block of two tensors, one of them empty."""
    data, nothing = memoryview(content), memoryview(b"")
    return Block(
        tensors={
            "w": RawTensor(dtype="U8", shape=(len(content),), data=data),
            "none": RawTensor(dtype="F32", shape=(0, 3), data=nothing),
        },
        facts={"told": ["something"]},
    )


def committed(folder: Path, names: Sequence[str] = NAMES, address: str = "1" * 64) -> None:
    """Commit a block under each name, as one attempt does."""
    blocks = blocks_in(folder, address)
    for name in names:
        assert blocks.take(name) is None
        blocks.commit(name, block(name.encode()))


def taken(folder: Path, address: str = "1" * 64) -> list[bytes]:
    """What a new attempt finds, in order."""
    blocks = blocks_in(folder, address)
    found = [blocks.take(name) for name in NAMES]
    return [bytes(one.tensors["w"].data) for one in found if one]


def test_what_is_committed_is_found_again(tmp_path: Path) -> None:
    """Tensors, their types and shapes, and facts come back as they were."""
    committed(tmp_path, ["a"])
    again = blocks_in(tmp_path)
    found = again.take("a")
    assert found == block(b"a")
    assert (again.restored, again.committed) == (1, 0)


def test_nothing_is_used_after_the_first_that_is_missing(tmp_path: Path) -> None:
    """A block that is there is not used where one before it is not."""
    committed(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    assert taken(tmp_path) == [b"a"]


def test_a_block_made_anew_with_the_same_bits_is_as_good_as_the_old_one(tmp_path: Path) -> None:
    """Where a lost block is made again bit by bit, those that were made after it are used."""
    committed(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    blocks = blocks_in(tmp_path)
    assert blocks.take("a")
    assert blocks.take("b") is None
    blocks.commit("b", block(b"b"))
    assert taken(tmp_path) == [b"a", b"b", b"c"]


def test_two_makings_are_never_mixed(tmp_path: Path) -> None:
    """Where a lost block came out otherwise, those that were made after the old one are set aside."""
    committed(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    blocks = blocks_in(tmp_path)
    blocks.take("a")
    blocks.take("b")
    blocks.commit("b", block(b"other bits"))
    assert taken(tmp_path) == [b"a", b"other bits"]
    assert (tmp_path / "c.safetensors.set-aside").exists()


def test_blocks_of_another_address_are_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What belongs to another checkpoint is named in the log and not used."""
    committed(tmp_path, address="2" * 64)
    with caplog.at_level(logging.WARNING):
        assert taken(tmp_path) == []
    assert "a.safetensors: set aside: it belongs to another checkpoint" in caplog.text


def test_what_decides_on_the_bits_parts_the_blocks(tmp_path: Path) -> None:
    """Blocks that were made on another kind of device, or in another dtype, are not used."""
    on_gpu = blocks_in(tmp_path)
    on_gpu.begin(device="cuda")
    on_gpu.commit("a", block())
    on_cpu = blocks_in(tmp_path)
    on_cpu.begin(device="cpu")
    assert on_cpu.take("a") is None


def test_a_block_under_another_name_is_not_used(tmp_path: Path) -> None:
    """A copied or renamed block is found out."""
    committed(tmp_path, ["a"])
    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    assert blocks_in(tmp_path).take("b") is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(where=st.integers(min_value=0), bit=st.integers(min_value=0, max_value=7))
def test_any_flipped_bit_is_found_out(where: int, bit: int, tmp_path: Path) -> None:
    """Wherever a bit of a block's file flips, the block is not used."""
    committed(tmp_path, ["a"])
    path = tmp_path / "a.safetensors"
    content = bytearray(path.read_bytes())
    content[where % len(content)] ^= 1 << bit
    path.write_bytes(content)
    assert taken(tmp_path) == []
    path.unlink(missing_ok=True)


def test_any_cut_is_found_out(tmp_path: Path) -> None:
    """Wherever a block's file is cut, the block is not used."""
    committed(tmp_path, ["a"])
    path = tmp_path / "a.safetensors"
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert taken(tmp_path) == []
