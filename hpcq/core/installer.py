"""Creation of a Python environment with uv: exact versions with hashes, from the package indexes that pip uses.

Runs before anything is installed, so it needs the standard library alone. uv (0.13) reads no configuration of pip, but
pip's is the one that sites maintain, so index, find-links, certificate and proxy are passed on from it.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from hpcq.core.errors import SetupError

Report = Callable[[str], None]
"""Receives one line of progress."""

_SETTING = re.compile(r"(?P<section>[^.=]+|:env:)\.(?P<key>[\w-]+)=(?P<value>.*)")
_SECTIONS = ("global", "install", ":env:")
"""Sections of `pip config list`, the strongest last."""
_UV_INDEX_VARIABLES = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_NO_INDEX",
)
_FOREIGN_VARIABLES = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "PIP_USER", "PIP_TARGET", "PIP_PREFIX"}
_PROGRESS = ("Downloading", "Downloaded", "Building", "Built", "Prepared", "Installed", "Collecting", "Bytecode")
_TAIL_LINES = 15
_MIN_FREE_BYTES = 64 * 2**20


class Installer:
    """uv, installing into one environment.

    Args:
        python: interpreter that the environment is made with.
        cache: folder for downloads (`uv/`) and for uv itself (`tools/`).
        uv_lock: pins of uv with hashes, used where uv is not on the PATH.
        report: receives lines of progress.
    """

    def __init__(self, *, python: str, cache: Path, uv_lock: Path, report: Report) -> None:
        self._python = python
        self._cache = cache
        self._uv_lock = uv_lock
        self._report = report
        self._uv = self._find_uv()
        self._settings = _pip_settings(python)
        self._variables = self._make_variables()

    def make_venv(self, target: Path) -> None:
        """Create an empty virtual environment at `target`.

        Raises:
            SetupError: uv failed.
        """
        self._run([self._uv, "venv", "--python", self._python, str(target)])

    def install(self, target: Path, locks: Sequence[Path]) -> None:
        """Install exactly what `locks` pin, each file checked against its hash, and byte-compile it.

        Raises:
            SetupError: uv failed: network, disk, a version that the index does not have, or another hash.
        """
        files = [word for lock in locks for word in ("--requirements", str(lock))]
        verified = ["--no-deps", "--require-hashes", "--compile-bytecode"]
        self._run([*self._pip_install(target), *verified, *self._index_options(), *files])

    def install_editable(self, target: Path, project: Path) -> None:
        """Install the checkout `project` without what it requires, built with what the environment holds.

        Raises:
            SetupError: uv failed.
        """
        built_here = ["--no-deps", "--no-build-isolation", "--offline"]
        self._run([*self._pip_install(target), *built_here, "--editable", str(project)])

    def preferred_version(self, requirement: str) -> str | None:
        """Return the version that the site's indexes prefer, local part included; None if they have none."""
        command = [self._uv, "pip", "compile", "--quiet", "--no-deps", "--no-header", "--no-annotate"]
        command += ["--python", self._python, *self._index_options(), "-"]
        done = subprocess.run(
            command,
            input=requirement,
            capture_output=True,
            text=True,
            check=False,
            env=self._variables,
            cwd=self._cache,
        )
        return done.stdout.strip().rpartition("==")[2] or None

    def _pip_install(self, target: Path) -> list[str]:
        return [self._uv, "pip", "install", "--python", str(target / "bin" / "python")]

    def _find_uv(self) -> str:
        """uv on the PATH, else the locked one, fetched once into the cache with pip."""
        found = shutil.which("uv")
        if found:
            return found
        version = self._uv_lock.read_text(encoding="utf-8").partition("uv==")[2].split()[0]
        folder = self._cache / "tools" / f"uv-{version}"
        uv = folder / "bin" / "uv"
        if not uv.is_file():
            self._report(f"Fetching uv {version} into {folder}")
            partial = folder.with_name(f".{folder.name}.{os.getpid()}")
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(partial)
            self._variables = _clean_environment(os.environ)
            self._run([self._python, "-m", "venv", str(partial)])
            pip = [str(partial / "bin" / "python"), "-m", "pip", "install"]
            self._run([*pip, "--no-deps", "--require-hashes", "--requirement", str(self._uv_lock)])
            with contextlib.suppress(OSError):  # another process was faster
                partial.rename(folder)
        return str(uv)

    def _make_variables(self) -> dict[str, str]:
        variables = _clean_environment(os.environ)
        for variable, key in (
            ("SSL_CERT_FILE", "cert"),
            ("HTTPS_PROXY", "proxy"),
            ("UV_HTTP_TIMEOUT", "default-timeout"),
        ):
            value = self._settings.get(key) or (self._settings.get("timeout") if key == "default-timeout" else None)
            if value:
                variables.setdefault(variable, value)
        # On the file system of the environments, so that files are linked and not copied; no downloads of Python.
        variables.setdefault("UV_CACHE_DIR", str(self._cache / "uv"))
        return {**variables, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}

    def _index_options(self) -> list[str]:
        """pip's indexes as options of uv, unless uv has settings of its own."""
        if any(os.environ.get(name) for name in _UV_INDEX_VARIABLES):
            return []
        options = ["--index-strategy", "unsafe-best-match"]  # as pip does; every file is checked against its hash
        named = (("index-url", "--default-index"), ("extra-index-url", "--index"), ("find-links", "--find-links"))
        for key, option in (*named, ("trusted-host", "--allow-insecure-host")):
            options += [word for value in self._settings.get(key, "").split() for word in (option, value)]
        if self._settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
            options.append("--no-index")
        return options

    def _run(self, command: list[str]) -> None:
        """Run one step, report the lines that show progress, and keep the last ones for the error message."""
        tail: deque[str] = deque(maxlen=_TAIL_LINES)
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=self._variables,
            # Outside the checkout: a folder of the working directory must not be taken for a package.
            cwd=self._cache,
        ) as process:
            for line in process.stdout or ():
                tail.append(line.rstrip())
                if line.strip().startswith(_PROGRESS):
                    self._report(f"  {line.strip()[:100]}")
        if process.returncode:
            output = "\n".join(f"  {line}" for line in tail)
            step = " ".join(word for word in command[1:4] if not word.startswith("--"))
            raise SetupError(f"'{step}' failed with exit code {process.returncode}. {self._hint(output)}\n{output}")

    def _hint(self, output: str) -> str:
        """How to fix a failed step, from what it printed."""
        if "ensurepip is not" in output:
            return "This Python has no ensurepip: run 'apt install python3-venv' and repeat the command."
        # ensurepip does not report why it failed, so the free space is checked too.
        if "No space left on device" in output or shutil.disk_usage(self._cache).free < _MIN_FREE_BYTES:
            return "The disk is full: free some space, or set HPCQ_CACHE to a folder on another disk."
        return "Fix what its last lines report (network, package index, versions) and repeat the command."


def _clean_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The user's environment, pip's settings included, without what leads to the packages of another Python."""
    kept = {key: value for key, value in variables.items() if key not in _FOREIGN_VARIABLES}
    return {**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PYTHONUNBUFFERED": "1"}


def _pip_settings(python: str) -> dict[str, str]:
    """pip's settings by key, from its files and its variables; empty where this Python has no pip."""
    command = [python, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_clean_environment(os.environ))
    return dict(_parse_settings(done.stdout)) if done.returncode == 0 else {}


def _parse_settings(listing: str) -> Iterator[tuple[str, str]]:
    """Keys and values of `pip config list`; where a key is in several sections, the strongest comes last."""
    found = [match for line in listing.splitlines() if (match := _SETTING.fullmatch(line.strip()))]
    for section in _SECTIONS:
        for match in found:
            if match["section"] == section:
                yield match["key"], str(ast.literal_eval(match["value"]))
