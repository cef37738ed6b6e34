"""Safetensors files from raw bytes: exact, readable by the library, and with an error for each damaged file."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from safetensors import safe_open

from hpcq.quantize.safetensors_io import RawTensor, read_tensors, write_tensors

TENSORS = {
    "z": RawTensor(dtype="bfloat16", shape=(2, 3), data=memoryview(bytes(range(12)))),
    "a": RawTensor(dtype="float8_e4m3fn", shape=(5,), data=memoryview(bytearray(b"\x00\x01\x7f\x80\xff"))),
    "scalar": RawTensor(dtype="float32", shape=(), data=memoryview(b"\x00\x00\x80\x3f")),
    "empty": RawTensor(dtype="int64", shape=(0, 4), data=memoryview(b"")),
    "model.layers.0.weight_packed": RawTensor(dtype="int32", shape=(1, 1), data=memoryview(b"abcd")),
}
METADATA = {"hpcq": '{"name": "bläck"}'}


def test_tensors_and_metadata_are_read_back_exactly(tmp_path: Path) -> None:
    """Bytes, shapes and dtypes survive, including those that numpy does not have, and the bytes are writable."""
    write_tensors(tmp_path / "t", TENSORS, METADATA)
    metadata, tensors = read_tensors(tmp_path / "t")
    assert (metadata, tensors) == (METADATA, TENSORS)
    assert not any(tensor.data.readonly for tensor in tensors.values())


def test_the_library_opens_the_file(tmp_path: Path) -> None:
    """`safe_open` finds the same names, shapes and metadata."""
    write_tensors(tmp_path / "t", TENSORS, METADATA)
    with safe_open(tmp_path / "t", framework="numpy") as file:
        assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == {  # noqa: SIM118  no mapping
            name: tensor.shape for name, tensor in TENSORS.items()
        }
        assert file.metadata() == METADATA
        assert file.get_tensor("scalar") == 1.0


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    """The order in which tensors are given makes no difference."""
    write_tensors(tmp_path / "1", TENSORS, METADATA)
    write_tensors(tmp_path / "2", dict(reversed(TENSORS.items())), METADATA)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_file_without_tensors_and_metadata_is_valid(tmp_path: Path) -> None:
    """Nothing in, nothing out."""
    write_tensors(tmp_path / "t", {}, {})
    assert read_tensors(tmp_path / "t") == ({}, {})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08\x00\x00",
        b"\xff" * 8,
        b"\x02\x00\x00\x00\x00\x00\x00\x00[]",
        b"\x04\x00\x00\x00\x00\x00\x00\x00null",
        b"\x05\x00\x00\x00\x00\x00\x00\x00{\xff\xff\xff}",
    ],
)
def test_a_file_in_another_format_is_an_error_with_its_path(content: bytes, tmp_path: Path) -> None:
    """ValueError, whose message begins with the path."""
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(ValueError, match=str(tmp_path / "t")):
        read_tensors(tmp_path / "t")


def test_every_truncation_and_every_extra_byte_is_an_error(tmp_path: Path) -> None:
    """A file is valid at its full length only."""
    path = tmp_path / "t"
    write_tensors(path, TENSORS, METADATA)
    content = path.read_bytes()
    for damaged in [*(content[:length] for length in range(len(content))), content + b"\x00"]:
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=str(path)):
            read_tensors(path)


def test_errors_of_the_file_system_have_their_number(tmp_path: Path) -> None:
    """errno is what tells a full disk from a missing permission."""
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "missing")
    with pytest.raises(OSError, match="space") as full:
        write_tensors(Path("/dev/full"), TENSORS, METADATA)
    assert full.value.errno == errno.ENOSPC
