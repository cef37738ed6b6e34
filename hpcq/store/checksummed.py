"""HDF5 files that prove themselves: built in memory, and closed by one line with the SHA-256 of all bytes before it.

Knows nothing of what is in them. HDF5 readers ignore what follows a file's end, so that h5py and h5ls open such a file
like any other. The proof comes before libhdf5 parses anything: altered metadata can crash it or go unnoticed, since
HDF5's own checksums cover the data alone. A full disk is met by a plain write, not inside HDF5, and HDF5's file locks,
which trouble network file systems, play no part.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py

from hpcq.core.errors import SegmentCorruptError
from hpcq.core.files import storage_faults

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SEAL = b"\nsha256 "
_SEAL_BYTES = len(_SEAL) + 64 + 1
# The oldest layout that HDF5 knows, so that every reader in the field opens it.
_LIBVER = ("earliest", "v108")


def sealed(fill: Callable[[h5py.File], None], *, form: str, schema: int) -> bytes:
    """The bytes of a sealed HDF5 file of the format `form`; `fill` writes what is in it."""
    with h5py.File(form, "w", driver="core", backing_store=False, libver=_LIBVER) as file:
        file.attrs["format"] = form
        file.attrs["schema"] = schema
        fill(file)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image + _seal_of(image)


def digest_in(content: bytes) -> str:
    """The SHA-256 that a sealed file's last line tells."""
    return content[-65:-1].decode("ascii")


@contextlib.contextmanager
def unsealed(path: Path, *, form: str, schema: int) -> Iterator[tuple[h5py.File, str]]:
    """The file at `path`, proved whole and of this format and schema, and its digest.

    Raises:
        SegmentCorruptError: it is cut short, altered, foreign or of another schema, or the block could not read it.
        StorageError: the file system refused to read it.
    """
    content = _bytes_of(path)
    if not content.startswith(_SIGNATURE):
        raise SegmentCorruptError(f"{path}: not an HDF5 file ({len(content)} bytes).")
    if content[-_SEAL_BYTES:] != _seal_of(content[:-_SEAL_BYTES]):
        raise SegmentCorruptError(
            f"{path}: cut short, altered, or not written by hpcq: its {len(content)} bytes do not end in their SHA-256."
        )
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            found = (file.attrs.get("format"), file.attrs.get("schema"))
            if found != (form, schema):
                raise SegmentCorruptError(  # noqa: TRY301 - it gets its path below like every other
                    f"of format {found[0]}, schema {found[1]}, where this hpcq reads {form}, schema {schema}"
                )
            yield file, digest_in(content)
    except SegmentCorruptError as error:
        raise SegmentCorruptError(f"{path}: {error}.") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise SegmentCorruptError(f"{path}: whole, but not laid out as a file of {form} ({error}).") from error


def _seal_of(image: bytes) -> bytes:
    return _SEAL + hashlib.sha256(image).hexdigest().encode("ascii") + b"\n"


def _bytes_of(path: Path) -> bytes:
    try:
        with storage_faults(path):
            return path.read_bytes()
    except FileNotFoundError as error:
        raise SegmentCorruptError(f"{path}: there is no such file any more.") from error
