"""Modulefiles of hpcq's Python environments, in Tcl, which Environment Modules (4, 5) and Lmod (8) read.

They are in `<cache>/modulefiles/hpcq/<environment>/<digest>`, next to the environments. A cluster profile selects one
with `modules = ["hpcq/legacy"]`; a job then loads the one of the locked environment, with its digest. In a shell:
`module use <cache>/modulefiles`, `module load hpcq/legacy`.

Needs only the standard library, like `environments`, which writes them.
"""

from __future__ import annotations

from pathlib import Path

from hpcq.core.files import write_text
from hpcq.core.paths import cache_folder

PREFIX = "hpcq/"
"""Beginning of the names of hpcq's modules."""

_TEMPLATE = """\
#%Module1.0
## Python environment '{name}' of hpcq. Written when the environment was created.
proc ModulesHelp {{ }} {{
    puts stderr "Python environment '{name}' of hpcq: {folder}"
}}
module-whatis "Python environment '{name}' of hpcq"
conflict hpcq
setenv HPCQ_MODULE_ENVIRONMENT {{{name}}}
setenv VIRTUAL_ENV {{{folder}}}
prepend-path PATH {{{folder}/bin}}
"""
_VERSION = """\
#%Module1.0
set ModulesVersion "{version}"
"""


def modules_folder() -> Path:
    """Return the folder for `module use`."""
    return cache_folder() / "modulefiles"


def write_modulefile(name: str, folder: Path) -> Path:
    """Write the modulefile of an environment, make it the default of its name, and return its path.

    Args:
        name: Name of the environment.
        folder: Its folder, `<name>-<digest>`.
    """
    path = modules_folder() / PREFIX / name / version_of(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, _TEMPLATE.format(name=name, folder=folder))
    write_text(path.with_name(".version"), _VERSION.format(version=path.name))
    return path


def version_of(folder: Path) -> str:
    """Return the digest in the name of an environment's folder."""
    return folder.name.rpartition("-")[2]
