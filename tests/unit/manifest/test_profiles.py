"""Cluster profiles: search path, defaults, and error messages."""
# ruff: noqa: E501 (each message is on one line, as the user reads it)

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcq.catalog.gpus import find_gpu, gpu_names
from hpcq.core.errors import ManifestError
from hpcq.manifest.profiles import GpuClass, load_profile, local_profile

SMALL = """\
name = "small"
scheduler = "slurm"
[gpu_classes.h100]
gpu = "H100-80"
gpus_per_node = 8
cpus_per_node = 96
memory_gib = 1000
"""


def test_the_local_profile_is_this_machine() -> None:
    """'local' has the cores that this process may use, for every role, and at least one concurrent unit."""
    profile = load_profile("local", Path())
    assert profile == local_profile()
    assert profile.gpu_classes["cpu"].cpus_per_node == len(os.sched_getaffinity(0))
    assert profile.gpu_classes["cpu"].gpu_spec is None
    assert 1 <= (profile.local.parallel_units or 0) <= len(os.sched_getaffinity(0))


def test_auto_is_local_without_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """'auto' is this machine if there is no sbatch; otherwise a profile is required."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert load_profile("auto", Path()).scheduler == "local"
    (tmp_path / "sbatch").touch(mode=0o755)
    with pytest.raises(ManifestError) as raised:
        load_profile("auto", Path())
    assert str(raised.value) == (
        "'auto' found Slurm's sbatch but no profile. Create one with `hpcq init --from-sinfo` and give its path."
    )


def test_a_profile_is_searched_in_the_manifests_folder_first(tmp_path: Path) -> None:
    """The manifest's folder has priority over the working directory, which has priority over the checkout's profiles."""
    (tmp_path / "near").mkdir()
    for folder in ("near/", ""):
        Path(f"{folder}small.toml").write_text(SMALL.replace("small", f"{folder}small"))
    assert load_profile("small.toml", Path("near")).name == "near/small"
    assert load_profile("small.toml", Path("elsewhere")).name == "small"
    assert load_profile(str(tmp_path / "small.toml"), Path("near")).name == "small"
    assert load_profile("clusters/paper.toml", Path()).name == load_profile("paper.toml", Path()).name == "paper"


def test_the_profile_of_the_study_has_its_gpus() -> None:
    """The four kinds of GPUs and their numbers are those of the study's section 4."""
    classes = load_profile("clusters/paper.toml", Path()).gpu_classes
    assert {name: (row.gpu, row.gpus_per_node) for name, row in classes.items()} == {
        "h100": ("H100-80", 8),
        "a100": ("A100-80", 4),
        "rtx6000ada": ("RTX6000Ada-48", 4),
        "a6000": ("A6000-48", 4),
    }
    assert classes["h100"].gpu_spec == find_gpu("H100-80")


def test_defaults_leave_the_choice_to_slurm() -> None:
    """Keys that a profile omits are not requested from Slurm, and a class has every role."""
    Path("small.toml").write_text(SMALL)
    profile = load_profile("small.toml", Path())
    h100 = profile.gpu_classes["h100"]
    assert (h100.partition, h100.features, h100.throttle, h100.cpus_per_unit) == (None, None, None, None)
    assert h100.roles == ("evaluate", "quantize", "merge")
    assert profile.slurm.time_limit_minutes == 60


def test_options_of_a_class_have_priority_over_those_of_the_cluster() -> None:
    """A class without a value has the cluster's; `extra` is merged by option."""
    Path("mine.toml").write_text(
        SMALL
        + "account = 'gpu'\nmemory_option = 'mem-per-gpu'\nextra = { wckey = 'a', exclusive = true }\n"
        + "[slurm]\naccount = 'cpu'\nqos = 'long'\ncomment = 'c17'\nextra = { wckey = 'b', licenses = 'x' }\n"
    )
    options = load_profile("mine.toml", Path()).options_of("h100")
    assert (options.account, options.qos, options.comment) == ("gpu", "long", "c17")
    assert (options.memory_option, options.gpu_option) == ("mem-per-gpu", "gres")
    assert options.extra == {"wckey": "a", "licenses": "x", "exclusive": True}


CASES: dict[str, tuple[str, str]] = {
    "no classes": ('name = "x"\nscheduler = "slurm"\n', ": gpu_classes: is missing. Node classes, by a name of your choice."),
    "no gpu": (SMALL.replace('gpu = "H100-80"\n', ""), ":3: gpu_classes.h100.gpu: is missing: name the GPU of this class, one of " + ", ".join(gpu_names()) + "."),
    "no count": (SMALL.replace("gpus_per_node = 8\n", ""), ":3: gpu_classes.h100.gpus_per_node: is missing: give the number of GPUs per node."),
    "unknown key": (SMALL + "partitoin = 'x'\n", ":8: gpu_classes.h100.partitoin: unknown key; allowed here are account, comment, cpus_per_node, cpus_per_unit, exclude, export, extra, features, gpu, gpu_option, gpus_per_node, gres_type, max_array_size, max_minutes, memory_gib, memory_gib_per_unit, memory_option, nodes, partition, qos, roles, throttle. Did you mean 'partition'?"),
    "negative": (SMALL + "throttle = -1\n", ":8: gpu_classes.h100.throttle: must be 1 or more, not -1."),
    "role": (SMALL + "roles = ['evaluation']\n", ":8: gpu_classes.h100.roles: must be one of evaluate, quantize, merge, stage, not 'evaluation'. Did you mean 'evaluate'?"),
    "roles": (SMALL + "roles = ['evaluate', 'merge']\n", ":3: gpu_classes: no class has the role 'quantize'; add it to one of them."),
    "too many cpus": (SMALL + "cpus_per_unit = 97\n", ":8: gpu_classes.h100.cpus_per_unit: must not exceed cpus_per_node (96)."),
    "too much memory": (SMALL + "memory_gib_per_unit = 1001\n", ":8: gpu_classes.h100.memory_gib_per_unit: must not exceed memory_gib (1000)."),
    "slurm on local": (SMALL.replace('"slurm"', '"local"') + "[slurm]\nqos = 'x'\n", ":8: slurm: is not allowed with scheduler = 'local'."),
    "local on slurm": (SMALL + "[local]\nparallel_units = 2\n", ":8: local: is not allowed with scheduler = 'slurm'."),
    "extra": (SMALL + "[slurm.extra]\nnice = 1.5\n", ":9: slurm.extra.nice: must be a string, an integer or a boolean, not 1.5."),
    "our option": (SMALL + "[slurm.extra]\nreservation = 'r'\naccount = 'a'\n", ":10: slurm.extra.account: is set by hpcq; use slurm.account."),
    "our option of a class": (SMALL + "[slurm.extra]\nmem = '1G'\n", ":9: slurm.extra.mem: is set by hpcq; use gpu_classes.NAME.memory_gib_per_unit."),
    "our own option": (SMALL + "[slurm.extra]\nrequeue = false\n", ":9: slurm.extra.requeue: is set by hpcq; remove it."),
    "memory per core": (SMALL + "[slurm.extra]\nmem-per-cpu = '1G'\n", ":9: slurm.extra.mem-per-cpu: is set by hpcq; use slurm.memory_option = 'mem-per-cpu' and gpu_classes.NAME.memory_gib_per_unit."),
    "number of GPUs": (SMALL + "[slurm.extra]\ngpus = 1\n", ":9: slurm.extra.gpus: is set by hpcq; use slurm.gpu_option = 'gpus'."),
    "variables of the shell": (SMALL + "[slurm.extra]\nexport = 'NONE'\n", ":9: slurm.extra.export: is set by hpcq; use slurm.export."),
    "held jobs": (SMALL + "[slurm.extra]\nhold = true\n", ":9: slurm.extra.hold: is set by hpcq; remove it."),
    "a command in export": (SMALL + "[slurm]\nexport = 'FOO;id'\n", ":9: slurm.export: 'FOO;id' is not 'NONE', and not a list of variables such as 'HOME,PATH,LANG=C'."),
    "none and a variable": (SMALL + "[slurm]\nexport = 'NONE,FOO'\n", ":9: slurm.export: 'NONE,FOO' is not 'NONE', and not a list of variables such as 'HOME,PATH,LANG=C'."),
    "another cluster": (SMALL + "[slurm.extra]\nclusters = 'b'\n", ":9: slurm.extra.clusters: is set by hpcq; use slurm.cluster."),
    "an abbreviation": (SMALL + "[slurm.extra]\nclus = 'b'\n", ":9: slurm.extra.clus: is set by hpcq; use slurm.cluster."),
    "our option in a class": (SMALL + "extra = { gpus-per-node = 1 }\n", ":8: gpu_classes.h100.extra.gpus-per-node: is set by hpcq; use slurm.gpu_option = 'gpus-per-node'."),
    "two clusters": (SMALL + "[slurm]\ncluster = 'a,b'\n", ":9: slurm.cluster: 'a,b' is not the name of one cluster; jobs of a run depend on each other."),
    "memory per GPU without GPUs": (SMALL + "[slurm]\nmemory_option = 'mem-per-gpu'\ngpu_option = 'none'\n", ":9: slurm.memory_option: 'mem-per-gpu' requires a request for GPUs, and gpu_option is 'none'; use 'mem' or 'none'."),
    "type of GPUs that are not requested": (SMALL + "gpu_option = 'none'\ngres_type = 'h100'\n", ":9: gpu_classes.h100.gres_type: is not used with gpu_option = 'none'; use features."),
    "no option": (SMALL + "[slurm.extra]\n'mail user' = 'me'\n", ":9: slurm.extra.mail user: is not a valid long option of sbatch, such as 'reservation'."),
    "dashes": (SMALL + "[slurm.extra]\n'--reservation' = 'me'\n", ":9: slurm.extra.--reservation: is not a valid long option of sbatch, such as 'reservation'."),
    "line break": (SMALL + '[slurm.extra]\n"x=1\\ny" = 1\n', ":9: slurm.extra.x=1\ny: is not a valid long option of sbatch, such as 'reservation'."),
    "command in a partition": (SMALL + 'partition = "gpu\\n; touch trap"\n', ":8: gpu_classes.h100.partition: must be one line of printable characters, not with '\\n'."),
    "command in an interpreter": (SMALL + '[environments.core]\npython = "python\\n; touch trap"\n', ":9: environments.core.python: must be one line of printable characters, not with '\\n'."),
    "no name": (SMALL + "[slurm.extra]\n'' = 1\n", ":9: slurm.extra.: is not a valid long option of sbatch, such as 'reservation'."),
    "variables": (SMALL + "[environments.core.variables]\nN = 1\n", ":9: environments.core.variables.N: must be a string, not 1."),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES)
def test_an_invalid_profile_is_reported_exactly(text: str, expected: str) -> None:
    """Each mistake is reported with the profile's line, and nothing else is reported."""
    Path("mine.toml").write_text(text)
    with pytest.raises(ManifestError) as raised:
        load_profile("mine.toml", Path())
    assert raised.value.problems == ("mine.toml" + expected,)


def test_a_class_without_gpus_has_no_gpu_spec() -> None:
    """A class may have CPUs only."""
    assert GpuClass(cpus_per_node=4, memory_gib=8).gpu_spec is None


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "WANDB_API_KEY", "hf_token", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "MY_CREDENTIALS", "TOKEN_2"],
)
def test_a_secret_in_a_profile_is_rejected_everywhere(tmp_path: Path, name: str) -> None:
    """Each occurrence is reported with line, key and fix; the value is not shown."""
    path = tmp_path / "profile.toml"
    path.write_text(
        SMALL.replace(
            '"slurm"\n',
            f'"slurm"\n[slurm]\nsetup = ["export {name}=s3cr3t"]\nexport = "ALL,{name}=s3cr3t"\n'
            f'extra = {{ mail-user = "{name}=s3cr3t" }}\n',
        )
        + f'[environments.core]\nsetup = ["{name}=\'s3cr3t\' run"]\nvariables = {{ {name} = "s3cr3t" }}\n'
    )
    with pytest.raises(ManifestError) as raised:
        load_profile(str(path), Path())
    message = (
        f"'{name}' looks like a secret and would be written to lock files and job scripts. Export it in the shell "
        "that submits (Slurm passes it to the jobs), or source a file that only you can read in setup."
    )
    assert raised.value.problems == (
        f"{path}:5: slurm.export: {message}",
        f"{path}:6: slurm.extra.mail-user: {message}",
        f"{path}:4: slurm.setup: {message}",
        f"{path}:13: environments.core.setup: {message}",
        f"{path}:14: environments.core.variables.{name}: {message}",
    )
    assert "s3cr3t" not in str(raised.value)


def test_names_that_resemble_a_secret_are_allowed(tmp_path: Path) -> None:
    """Allowed are longer words, paths of secrets, and values that are read at run time."""
    path = tmp_path / "profile.toml"
    path.write_text(
        SMALL
        + """
[environments.core]
setup = ['export HF_TOKEN=$(cat ~/.token)', 'export HF_TOKEN="$MINE"', 'unset HF_TOKEN; HF_TOKEN= run', '. ~/secrets']
variables = { MONKEY = "1", TOKENIZERS_PARALLELISM = "false", MAX_TOKENS = "8", HF_TOKEN_PATH = "/home/me/token" }
"""
    )
    assert len(load_profile(str(path), Path()).environments["core"].setup) == 4


def test_what_users_set_in_their_shell_fills_what_the_profile_leaves_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Account, partition, QOS and reservation of sbatch's variables; the profile's values have priority."""
    path = tmp_path / "small.toml"
    path.write_text(SMALL + '[slurm]\nqos = "long"\n')
    for name in ("ACCOUNT", "PARTITION", "QOS", "RESERVATION"):
        monkeypatch.setenv(f"SBATCH_{name}", name.lower())
    profile = load_profile(str(path), tmp_path)
    slurm = profile.slurm
    assert (slurm.account, slurm.qos, slurm.extra) == ("account", "long", {"reservation": "reservation"})
    assert profile.gpu_classes["h100"].partition == "partition"
    assert [str(setting) for setting in profile.from_shell] == [
        "slurm.account = 'account' is from SBATCH_ACCOUNT, because the profile has none.",
        "gpu_classes.h100.partition = 'partition' is from SBATCH_PARTITION, because the profile has none.",
        "slurm.extra.reservation = 'reservation' is from SBATCH_RESERVATION, because the profile has none.",
    ]
    monkeypatch.setenv("SBATCH_ACCOUNT", "two\nlines")
    with pytest.raises(ManifestError, match=r"SBATCH_ACCOUNT = 'two\\nlines' contains unprintable characters"):
        load_profile(str(path), tmp_path)
