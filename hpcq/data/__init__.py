"""Files that the program reads at run time: `sbatch/` (shell of a job), `modules/` (lock files), `manifests/`.

Each is a link to its folder, which a wheel replaces with a copy, so that one path is right in a checkout and where hpcq
is installed.
"""

from pathlib import Path

_HERE = Path(__file__).resolve().parent

SBATCH = (_HERE / "sbatch").resolve()
"""Shell scripts that run on the nodes."""

MODULES = (_HERE / "modules").resolve()
"""Lock files of the Python environments."""

MANIFESTS = (_HERE / "manifests").resolve()
"""Manifests and cluster profiles to start from."""


def find_manifest(path: Path) -> Path:
    """Return `path`, or the shipped manifest of that name where the working directory has no such file.

    Examples in the documentation (`manifests/quickstart.toml`) then work where hpcq is installed without its checkout.
    """
    shipped = MANIFESTS.parent / path
    is_shipped = not path.exists() and path.parts[:1] == (MANIFESTS.name,) and shipped.is_file()
    return shipped if is_shipped else path
