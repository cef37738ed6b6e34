"""HDF5 files with a SHA-256 at the end, which is verified before libhdf5 reads the file.

HDF5 readers ignore bytes after the end of a file, so h5py and h5ls open such a file like any other. The checksum is
verified before libhdf5 parses anything: altered metadata can crash libhdf5 or remain unnoticed, as HDF5's own checksums
cover only the data. Since files are built in memory, a full disk causes an error in a plain write rather than inside
HDF5, and HDF5's file locks, which cause problems on network file systems, are not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py

from hpcq.core.errors import SegmentCorruptError, SegmentVanishedError
from hpcq.core.files import IrregularFileError, read_regular, storage_errors

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_CHECKSUM_PREFIX = b"\nsha256 "
_CHECKSUM_LINE_BYTES = len(_CHECKSUM_PREFIX) + 64 + 1
# The oldest layout of HDF5, which every reader in use can open.
_LIBVER = ("earliest", "v108")
_FILE_NUMBERS = itertools.count()


def checksummed_bytes(fill: Callable[[h5py.File], None], *, form: str, schema: int) -> bytes:
    """Return the bytes of an HDF5 file with its checksum line.

    Args:
        fill: Writes the content into the open file.
        form: Value of the attribute `format`.
        schema: Value of the attribute `schema`.
    """
    # libhdf5 refuses to create two open files of one name, also in memory: threads write at the same time.
    with h5py.File(f"{form}-{next(_FILE_NUMBERS)}", "w", driver="core", backing_store=False, libver=_LIBVER) as file:
        file.attrs["format"] = form
        file.attrs["schema"] = schema
        fill(file)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image + _checksum_line(image)


def stored_digest(content: bytes) -> str:
    """Return the SHA-256 in the last line of a checksummed file."""
    return content[-65:-1].decode("ascii")


@contextlib.contextmanager
def open_checked(path: Path, *, form: str, schema: int) -> Iterator[tuple[h5py.File, str]]:
    """Yield the open file at `path` and its digest, after verifying checksum, format and schema.

    Raises:
        SegmentCorruptError: The file is truncated, altered, foreign, of another schema, or unreadable in the block.
        SegmentVanishedError: There is no such file.
        StorageError: The file system refused to read it.
    """
    content = _read_bytes(path)
    if not content.startswith(_SIGNATURE):
        raise SegmentCorruptError(f"{path}: not an HDF5 file ({len(content)} bytes).")
    if content[-_CHECKSUM_LINE_BYTES:] != _checksum_line(content[:-_CHECKSUM_LINE_BYTES]):
        raise SegmentCorruptError(
            f"{path}: truncated, altered, or not written by hpcq: its {len(content)} bytes do not end in their SHA-256."
        )
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            found = (file.attrs.get("format"), file.attrs.get("schema"))
            if found != (form, schema):
                raise SegmentCorruptError(  # noqa: TRY301 - the path is added below, as for every other
                    f"format {found[0]}, schema {found[1]}; this version of hpcq reads {form}, schema {schema}"
                )
            yield file, stored_digest(content)
    except SegmentCorruptError as error:
        raise SegmentCorruptError(f"{path}: {error}.") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise SegmentCorruptError(f"{path}: complete, but without the layout of {form} ({error}).") from error


def _checksum_line(image: bytes) -> bytes:
    return _CHECKSUM_PREFIX + hashlib.sha256(image).hexdigest().encode("ascii") + b"\n"


def _read_bytes(path: Path) -> bytes:
    try:
        with storage_errors(path):
            return read_regular(path, sys.maxsize)
    except FileNotFoundError as error:
        raise SegmentVanishedError(f"{path}: the file no longer exists.") from error
    except IrregularFileError as error:
        raise SegmentCorruptError(f"{path}: {error}.") from error
