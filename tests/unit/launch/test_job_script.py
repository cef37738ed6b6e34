"""The shell in which a unit's interpreter starts, with the real scripts in sbatch/."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpcq.core.errors import UserInputError
from hpcq.launch.array_spec import Environment
from hpcq.launch.job_script import environment_text, script, write_environment
from hpcq.launch.package_snapshot import Snapshot, make_snapshot
from tests.slurm.synthetic_units import layout_at

SNAPSHOT = Snapshot(path=Path("/p"), digest="0", commit="")
MODULE_COMMAND = Path("/usr/share/modules/init/bash")


def shell(
    tmp_path: Path, environment: Environment, *command: str, **inherited: str
) -> subprocess.CompletedProcess[str]:
    """Run `command` as the local launcher does. The shell inherits only PATH and `inherited`."""
    path = tmp_path / "environment.sh"
    write_environment(path, environment, threads=3, snapshot=make_snapshot(layout_at(tmp_path)))
    return subprocess.run(
        ["bash", str(script("enter.sh")), str(path), *command],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **inherited},
        cwd=tmp_path,
        check=False,
        timeout=30,
    )


def test_values_of_variables_are_quoted(tmp_path: Path) -> None:
    """The shell does not interpret quotes, dollars, backquotes and line breaks in a variable's value."""
    value = f"it's $(touch {tmp_path}/trap) `touch {tmp_path}/trap`\n; touch {tmp_path}/trap \"\\"
    environment = Environment(name="e", python="python", variables=(("ODD", value),))
    done = shell(tmp_path, environment, "printenv", "ODD")
    assert done.stdout == value + "\n"
    assert not (tmp_path / "trap").exists()


def test_a_job_can_import_hpcq_and_nothing_else_of_the_checkout(tmp_path: Path) -> None:
    """The interpreter finds the package hpcq, and no other folder of the checkout or the working directory."""
    (tmp_path / "awq").mkdir()
    probe = (
        "import importlib.util as u, hpcq, sys;"
        "print(hpcq.__file__, [n for n in ('tests', 'awq', 'benchmarks') if u.find_spec(n)])"
    )
    done = shell(
        tmp_path, Environment(name="e", python="python"), sys.executable, "-c", probe, PYTHONPATH=str(tmp_path)
    )
    assert done.stdout.strip() == f"{make_snapshot(layout_at(tmp_path)).path}/hpcq/__init__.py []"


def test_threads_umask_and_python_settings_are_set_for_the_job(tmp_path: Path) -> None:
    """Threads equal the unit's cores, new files are private, and the submitting shell's Python settings are unset."""
    probe = 'echo "$OMP_NUM_THREADS $MKL_NUM_THREADS $(umask) ${PYTHONHOME-unset} $PYTHONNOUSERSITE"'
    done = shell(tmp_path, Environment(name="e", python="python"), "bash", "-c", probe, PYTHONHOME="/odd")
    assert done.stdout.strip() == "3 3 0077 unset 1"


def test_the_profiles_variables_override_ours(tmp_path: Path) -> None:
    """A profile can set a number of threads other than the unit's cores."""
    environment = Environment(name="e", python="python", variables=(("HPCQ_THREADS", "1"),))
    assert shell(tmp_path, environment, "printenv", "OMP_NUM_THREADS").stdout.strip() == "1"


def test_setup_lines_may_return_an_error(tmp_path: Path) -> None:
    """Observed: `grep -q` without a hit, and a test of an unset variable, ended the shell without a word."""
    lines = ("echo $never_set before", "grep -q nothing /dev/null", '[ -n "$PS1" ] && echo interactive', "true")
    done = shell(tmp_path, Environment(name="e", python="python", setup=lines), "echo", "command")
    assert (done.returncode, done.stdout) == (0, "before\ncommand\n")
    assert done.stderr == "hpcq: a line of setup returned an error: grep -q nothing /dev/null\n"


ON_EXIT = "trap 'echo removed $SCRATCH with $?' EXIT"


@pytest.mark.parametrize(("command", "code"), [("true", 0), ("exit 3", 3), ("kill -TERM $$", 143)])
def test_an_exit_trap_of_setup_lines_runs_after_the_command(tmp_path: Path, command: str, code: int) -> None:
    """Also where no epilogue is sourced: the shell waits for the command, and passes its exit status on."""
    environment = Environment(name="e", python="python", setup=("SCRATCH=/s", ON_EXIT))
    done = shell(tmp_path, environment, "bash", "-c", f"echo command; {command}")
    assert (done.stdout, done.returncode) == (f"command\nremoved /s with {code}\n", code), done.stderr


def test_a_signal_to_the_shell_reaches_the_command_if_setup_lines_have_an_exit_trap(tmp_path: Path) -> None:
    """The local launcher signals the process that it has started."""
    environment = Environment(name="e", python="python", setup=(ON_EXIT,))
    command = "trap 'echo ended; exit 4' TERM; kill -TERM $PPID; for i in $(seq 600); do sleep 0.1; done"
    done = shell(tmp_path, environment, "bash", "-c", command)
    assert (done.stdout, done.returncode) == ("ended\nremoved with 4\n", 4), done.stderr


@pytest.mark.parametrize("name", ["gcc; touch trap", "$(id)", "a b", "", "-f"])
def test_an_invalid_module_name_is_refused(name: str) -> None:
    """Names of modules are checked because they are the only values that a script uses unquoted."""
    with pytest.raises(UserInputError, match="is not a valid module name"):
        environment_text(Environment(name="e", python="p", modules=(name,)), threads=1, snapshot=SNAPSHOT)


@pytest.mark.parametrize("name", ["1A", "A B", "A=B", ""])
def test_an_invalid_variable_name_is_refused(name: str) -> None:
    """A variable's name cannot contain a command either."""
    with pytest.raises(UserInputError, match="is not a valid variable name"):
        environment_text(Environment(name="e", python="p", variables=((name, "v"),)), threads=1, snapshot=SNAPSHOT)


@pytest.mark.skipif(not MODULE_COMMAND.exists(), reason="environment-modules is not on this machine")
def test_modules_are_loaded_in_a_shell_without_the_module_command(tmp_path: Path) -> None:
    """The prologue finds the module command, and a module can extend the path that the prologue set."""
    (tmp_path / "modulefiles" / "cuda").mkdir(parents=True)
    (tmp_path / "modulefiles" / "cuda" / "12.4").write_text("#%Module\nsetenv CUDA_ROOT /opt/cuda-12.4\n")
    (tmp_path / "modulefiles" / "tools").write_text("#%Module\nappend-path PYTHONPATH /opt/tools\n")
    variables = (("MODULEPATH", str(tmp_path / "modulefiles")),)
    environment = Environment(name="e", python="python", modules=("cuda/12.4", "tools"), variables=variables)
    done = shell(tmp_path, environment, "bash", "-c", 'echo "$CUDA_ROOT $PYTHONPATH"')
    assert done.stdout.strip() == f"/opt/cuda-12.4 {make_snapshot(layout_at(tmp_path)).path}:/opt/tools"


@pytest.mark.skipif(not MODULE_COMMAND.exists(), reason="environment-modules is not on this machine")
def test_a_missing_module_ends_the_job_with_a_message(tmp_path: Path) -> None:
    """The message names the module, and the command does not run."""
    done = shell(tmp_path, Environment(name="e", python="python", modules=("no-such/1",)), "echo", "command")
    assert done.returncode != 0
    assert done.stdout == ""
    assert "'module load no-such/1' failed" in done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not on this machine")
def test_the_scripts_pass_shellcheck() -> None:
    """shellcheck reports nothing for sbatch/."""
    scripts = sorted(script("enter.sh").parent.glob("*.sh"))
    assert subprocess.run(["shellcheck", *scripts], check=False).returncode == 0
