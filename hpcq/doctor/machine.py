"""Checks of this machine and its Python environments, without a cluster."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from hpcq import __version__
from hpcq.catalog.plugins import lock_folder
from hpcq.core import environments
from hpcq.core.environments import CORE_ENVIRONMENT
from hpcq.core.paths import cache_folder
from hpcq.data import MODULES
from hpcq.doctor.finding import Finding, fail, ok, warning
from hpcq.manifest.profiles import EnvironmentSettings

MACHINE, ENVIRONMENTS = "machine", "environments"
_TIMEOUT_S = 120.0
_MISLEADING = ("PYTHONPATH", "PYTHONHOME", "LD_PRELOAD")


def machine_findings() -> Iterator[Finding]:
    """Check Python, and variables of the shell that change what it imports."""
    yield ok(MACHINE, f"hpcq {__version__}, Python {platform.python_version()} on {platform.node()}.")
    for name in _MISLEADING:
        if os.environ.get(name):
            yield warning(
                MACHINE,
                f"{name} is set to {os.environ[name]!r}: Python may import other modules than its environment's.",
                f"Unset {name}.",
            )


def environment_findings(names: Iterable[str], profile: dict[str, EnvironmentSettings]) -> Iterator[Finding]:
    """Check that each environment exists and that its interpreter runs.

    Args:
        names: Names of environments.
        profile: Those that the cluster profile describes.
    """
    for name in dict.fromkeys((CORE_ENVIRONMENT, *names)):
        settings = profile.get(name) or EnvironmentSettings()
        yield from _module_findings(name, settings)
        if settings.python is None and not environments.exists(name, locks := lock_folder(name)):
            command = f"python3 -m hpcq.core.environments {name}"
            yield fail(
                ENVIRONMENTS,
                f"{name}: it does not exist in {cache_folder() / 'environments'}.",
                f"Run `{command}`" + ("." if locks == MODULES else f" with `--locks {locks}`."),
            )
            continue
        python = settings.python or str(environments.interpreter(name, lock_folder(name)))
        if settings.modules or settings.setup:
            yield ok(ENVIRONMENTS, f"{name}: {python}, after modules and setup lines; checked on a node.")
        else:
            yield _interpreter_finding(name, python)


def _module_findings(name: str, settings: EnvironmentSettings) -> Iterator[Finding]:
    for module in settings.modules:
        # A login shell defines the function `module`; the name is passed as an argument, not as text of the script.
        script = 'command -v module >/dev/null || exit 3; module load "$1"'
        done = _run(["bash", "-lc", script, "bash", module])
        key = f"environments.{name}.modules"
        if done is None or done.returncode == 3:  # noqa: PLR2004 (the script's own code)
            yield warning(
                ENVIRONMENTS,
                f"{name}: this machine has no command `module`, so '{module}' cannot be checked here.",
                "Check it on a node: `srun bash -lc 'module load …'`.",
            )
        elif done.returncode or "Unable to locate" in done.stderr or "unknown" in done.stderr:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            yield fail(ENVIRONMENTS, f"{name}: `module load {module}` fails: {last[0]}", f"Correct {key}.")
        else:
            yield ok(ENVIRONMENTS, f"{name}: module {module} can be loaded.")


def _interpreter_finding(name: str, python: str) -> Finding:
    done = _run([python, "-c", "import sys, h5py, numpy; print(sys.version.split()[0])"])
    if done is None:
        return fail(ENVIRONMENTS, f"{name}: {python} does not exist or does not run.", f"Correct environments.{name}.")
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return fail(
            ENVIRONMENTS,
            f"{name}: {python} cannot import what every job needs ({last[0]}).",
            f"Remove {Path(python).parents[1]}, and run `python3 -m hpcq.core.environments {name}`.",
        )
    return ok(ENVIRONMENTS, f"{name}: Python {done.stdout.strip()}, {python}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    """Run a command; None: it cannot be started, or does not end."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
