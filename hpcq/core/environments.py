"""Python environments of the lock files in `modules/`: location, pinned versions, whether they exist.

Runs before anything is installed and therefore needs only the standard library. `python -m hpcq.core.environments NAME`
creates an environment if it does not exist and prints the path of its interpreter.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import difflib
import fcntl
import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from hpcq.core.errors import SetupError
from hpcq.core.files import storage_errors, write_text
from hpcq.core.installer import Installer
from hpcq.core.modulefiles import PREFIX, modules_folder, version_of, write_modulefile
from hpcq.core.paths import cache_folder
from hpcq.data import MODULES

if TYPE_CHECKING:
    from hpcq.core.work_records import Versions

CHECKOUT = Path(__file__).resolve().parents[2]
IS_CHECKOUT = (CHECKOUT / "setup.cfg").is_file()
"""Whether hpcq runs from its checkout. Installed from a wheel, the core environment is the one that contains it."""
LOCK_SUFFIX = ".lock.txt"

# Only this environment has hpcq installed (editable, for the console script); the launcher adds it to the others' path.
CORE_ENVIRONMENT = "core"

NAME_VARIABLE = "HPCQ_ENVIRONMENT"
"""Environment variable of a job: the name of its Python environment, for the provenance of results."""

PACKAGE_VARIABLE = "HPCQ_PACKAGE_DIGEST"
"""Environment variable of a job: the digest of its code (`hpcq.launch.package_snapshot`), for the same provenance."""

COMMIT_VARIABLE = "HPCQ_GIT_COMMIT"
"""Environment variable of a job: the commit of the checkout from which it was submitted, for the same provenance."""

_MARKER = "hpcq-complete.json"
_PIN = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)(?:\[[\w,.-]+\])?==(?P<version>[\w.!+-]+)")
_HASH = re.compile(r"\s*(?:--hash=\S+|\\$)")
_ENTRY = re.compile(r"^[^\s#].*\n(?:[ \t].*\n)*", re.MULTILINE)
"""A pin with its hashes, over several lines."""


def normalized_name(distribution: str) -> str:
    """Return a distribution's name as package indexes compare it: 'lm_eval' becomes 'lm-eval'."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def names(modules: Path = MODULES) -> tuple[str, ...]:
    """Return the names of all environments that have a lock file, sorted."""
    return tuple(sorted(path.name.removesuffix(LOCK_SUFFIX) for path in modules.glob(f"*{LOCK_SUFFIX}")))


def lock_file(name: str, modules: Path = MODULES) -> Path:
    """Return the lock file of the environment `name`.

    Raises:
        SetupError: There is no such environment.
    """
    known = names(modules)
    if name not in known:
        raise SetupError(f"There is no environment {name!r}: {modules} has locks for {', '.join(known) or 'none'}.")
    return modules / f"{name}{LOCK_SUFFIX}"


def pins(name: str, modules: Path = MODULES) -> dict[str, str]:
    """Return normalized name and exact version of every distribution that the lock file of `name` pins.

    Raises:
        SetupError: There is no such environment, or a line of its lock file is not an exact pin.
    """
    lock = lock_file(name, modules)
    try:
        text = lock.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"{lock}: the lock file cannot be read ({error}).") from error
    return dict(_parse_pins(text, lock))


@lru_cache(maxsize=16)
def _parse_pins(text: str, lock: Path) -> Mapping[str, str]:
    """Parse a lock file. Cached by its text: a plan asks for the same few per unit, and the file may change."""
    found = {}
    for number, line in enumerate(text.splitlines(), start=1):
        requirement = _HASH.sub("", line.partition("#")[0]).strip()
        if not requirement:
            continue
        match = _PIN.fullmatch(requirement)
        if match is None:
            raise SetupError(f"{lock}:{number}: {requirement!r} is not an exact pin. Write 'name==version'.")
        found[normalized_name(match["name"])] = match["version"]
    return found


def locked_versions(name: str, distributions: Iterable[str], modules: Path = MODULES) -> Versions:
    """Return the versions of `distributions` in the environment `name`, sorted by normalized name.

    Raises:
        SetupError: The environment is unknown, or its lock file does not pin one of the distributions.
    """
    pinned = pins(name, modules)
    wanted = sorted({normalized_name(distribution) for distribution in distributions})
    for distribution in wanted:
        if distribution not in pinned:
            close = difflib.get_close_matches(distribution, pinned, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "add it to the file to use it."
            raise SetupError(f"{lock_file(name, modules)} does not pin {distribution!r}: {hint}")
    return tuple((distribution, pinned[distribution]) for distribution in wanted)


def folder(name: str, modules: Path = MODULES) -> Path:
    """Return the folder of the environment `name`, which need not exist yet. It depends on the pins and on Python.

    Comments in a lock file and the patch release of Python do not count. An editable install belongs to one checkout.
    """
    parts = [f"{key}=={version}" for key, version in sorted(pins(name, modules).items())]
    parts.append(f"python {sys.version_info.major}.{sys.version_info.minor}")
    if name == CORE_ENVIRONMENT:
        parts.append(str(CHECKOUT))
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return cache_folder() / "environments" / f"{name}-{digest[:12]}"


def interpreter(name: str, modules: Path = MODULES) -> Path:
    """Return the path of the environment's python, which need not exist yet."""
    if name == CORE_ENVIRONMENT and not IS_CHECKOUT:
        return _installed_python()
    return folder(name, modules) / "bin" / "python"


def _installed_python() -> Path:
    """Return the python of the environment that this package is installed in, which need not be the running one.

    CHECKOUT is `lib/python3.x/site-packages` here, and in a job the snapshot of the package that it runs. A user
    installation has no python of its own.
    """
    own = CHECKOUT.parents[2] / "bin" / "python"
    return own if CHECKOUT.name == "site-packages" and own.is_file() else Path(sys.executable)


def exists(name: str, modules: Path = MODULES) -> bool:
    """Return whether the environment exists and is complete.

    Raises:
        SetupError: There is no such environment, or the cache cannot be read.
    """
    if name == CORE_ENVIRONMENT and not IS_CHECKOUT:
        return True
    target = folder(name, modules)
    with storage_errors(target):
        return (target / _MARKER).is_file() and interpreter(name, modules).is_file()


def create(name: str, modules: Path = MODULES) -> Path:
    """Create the environment unless it exists and is complete, and return its python. Progress goes to stderr.

    Raises:
        SetupError: venv or pip failed, or the cache cannot be written.
    """
    target = folder(name, modules)
    if not exists(name, modules):
        with storage_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with _creation_lock(target.with_name(f".{target.name}.lock")):
                if not exists(name, modules):
                    _build(name, target, modules)
    if target.is_dir() and not (modules_folder() / PREFIX / name / version_of(target)).is_file():
        with storage_errors(target):
            write_modulefile(name, target)
    return interpreter(name, modules)


def _build(name: str, target: Path, modules: Path) -> None:
    """Create the environment from scratch. The marker is written last, so an interrupted installation is recognized."""
    _print_progress(f"Creating the environment '{name}' in {target}")
    start = time.monotonic()
    if target.exists():
        shutil.rmtree(target)
    pinned = pins(name, modules)
    try:
        installer = make_installer()
        installer.make_venv(target)
        installer.install(target, locks_to_install(name, target, modules, installer))
        if name == CORE_ENVIRONMENT:
            installer.install_editable(target, CHECKOUT)
            # uv compiles what it installs; commands and jobs may run where Python must not write bytecode.
            compileall.compile_dir(CHECKOUT / "hpcq", quiet=2)
        if not (target / "bin" / "python").is_file():
            raise SetupError("uv reported success, but there is no interpreter.")  # noqa: TRY301 (same report as uv's)
    except SetupError as error:
        raise SetupError(f"The environment {name!r} could not be created: {error}") from error
    seconds = round(time.monotonic() - start)
    facts = {"schema": 1, "name": name, "python": sys.version.split()[0], "pins": pinned, "seconds": seconds}
    write_text(target / _MARKER, json.dumps(facts, indent=1) + "\n")
    _print_progress(f"The environment '{name}' is ready after {seconds} s")


def make_installer() -> Installer:
    """Return an installer for the running Python, which fetches uv into the cache if it is not on the PATH.

    Raises:
        SetupError: uv cannot be fetched.
    """
    uv_lock = MODULES / "tools" / "uv.lock.txt"
    return Installer(python=sys.executable, cache=cache_folder(), uv_lock=uv_lock, report=_print_progress)


def locks_to_install(name: str, target: Path, modules: Path, installer: Installer) -> list[Path]:
    """Return the lock files to install: the environment's, with the build of torch that the site's indexes prefer.

    PyPI has the CUDA build. The CPU build has its own version (2.13.0+cpu), comes from another index or folder, and is
    installed where the site offers it. CUDA's libraries have their own lock, unless the environment's contains them.
    """
    lock, pinned = lock_file(name, modules), pins(name, modules)
    if "torch" not in pinned:
        return [lock]
    builds = MODULES / "torch"
    cpu_build = builds / "cpu.lock.txt"
    if installer.preferred_version(f"torch=={pinned['torch']}") not in _parse_versions(cpu_build, "torch"):
        has_cuda_libraries = "nvidia-cublas" in pinned
        return [lock] if has_cuda_libraries else [lock, builds / "cuda.lock.txt"]
    without_torch = target / "lock.txt"
    entries = _ENTRY.findall(lock.read_text(encoding="utf-8"))
    write_text(without_torch, "".join(entry for entry in entries if not entry.startswith("torch==")))
    return [without_torch, cpu_build]


def _parse_versions(lock: Path, distribution: str) -> set[str]:
    """Return every version of `distribution` that the file pins."""
    return set(re.findall(rf"^{distribution}==(\S+)", lock.read_text(encoding="utf-8"), flags=re.MULTILINE))


@contextlib.contextmanager
def _creation_lock(path: Path) -> Iterator[None]:
    """Hold the lock at `path`: of two concurrent creations one waits. The kernel frees it when its owner exits."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _print_progress(
                f"Waiting for another process that is creating {path.name.removesuffix('.lock').removeprefix('.')}"
            )
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _print_progress(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main(arguments: list[str] | None = None) -> int:
    """Create one environment if it does not exist, and print only the path of its interpreter to stdout."""
    parser = argparse.ArgumentParser(prog="python -m hpcq.core.environments", description=main.__doc__)
    parser.add_argument("name", help=f"one of: {', '.join(names())}; with --locks, of that folder")
    parser.add_argument("--locks", type=Path, default=MODULES, help="folder of the lock file, such as a plugin's")
    try:
        options = parser.parse_args(arguments)
        python = create(options.name, options.locks.resolve())
    except SetupError as error:
        _print_progress(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _print_progress("Interrupted; repeat the command to continue.")
        return 130
    sys.stdout.write(f"{python}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
