"""Plans of manifests that name the tools of plugins: environments, versions, memory, and the package of a job."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

from hpcq.catalog.models import find_model_shape
from hpcq.catalog.plugins import Group, installed_plugins
from hpcq.catalog.schemes import find_scheme
from hpcq.catalog.tools import backends, load_tool
from hpcq.cli import main
from hpcq.core import environments
from hpcq.core.errors import ManifestError, SetupError
from hpcq.core.work_records import EvaluateWork, QuantizeWork, Variant
from hpcq.launch.build_array_spec import build_array_spec
from hpcq.launch.package_snapshot import make_snapshot
from hpcq.manifest import load, lock_text, resolve
from hpcq.manifest.profiles import GpuClass, Profile
from hpcq.plan.arrays import make_arrays
from hpcq.plan.memory.gpu_memory import MemoryDemand
from hpcq.plan.memory.quantization import quantization_memory
from hpcq.plan.placement.candidates import evaluation_placements
from hpcq.plan.placement.requirements import EvaluationRequirements
from hpcq.plan.planner import make_plan
from hpcq.plan.units import Plan, PlannedUnit
from tests.plugins.conftest import DECLARATION, Install
from tests.slurm.synthetic_units import layout_at

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
MANIFEST = f"""\
[run]
name = "theirs"
[cluster]
profile = "here.toml"
[[models]]
id = "{MODEL}"
[schemes]
use = ["bf16", "theirs-w8a16", "own"]
[[schemes.define]]
name = "own"
tool = "theirs"
method = "rtn"
weights = "int8"
activations = "bf16"
[tasks]
use = ["arc_challenge"]
[evaluate]
backend = "scorer"
"""
PROFILE = """\
name = "here"
scheduler = "local"
[gpu_classes.cpu]
cpus_per_node = 4
memory_gib = 64
"""
LOCK = "numpy==2.0.1\nlm-eval==0.4.1\n"


@pytest.fixture(autouse=True)
def _separate_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in a folder with the manifest and the profile."""
    monkeypatch.chdir(tmp_path)
    Path("m.toml").write_text(MANIFEST)
    Path("here.toml").write_text(PROFILE)


def plan(*overrides: str) -> Plan:
    """Return the plan of the manifest."""
    return make_plan(resolve(load(Path("m.toml"), overrides)))


def quantization(found: Plan, scheme: str = "theirs-w8a16") -> tuple[PlannedUnit, Variant]:
    """Return the unit that quantizes with a scheme, and its variant."""
    for unit in found.units:
        if isinstance(unit.work, QuantizeWork) and unit.work.variant.scheme.name == scheme:
            return unit, unit.work.variant
    raise AssertionError(scheme)


def evaluation(found: Plan) -> tuple[PlannedUnit, EvaluateWork]:
    """Return the unit that evaluates the unquantized model, and its work."""
    works = ((unit, unit.work) for unit in found.units if isinstance(unit.work, EvaluateWork))
    return next((unit, work) for unit, work in works if work.variant.scheme.name == "bf16")


def test_a_plan_uses_what_the_plug_in_declares(install: Install) -> None:
    """Units run in the declared environments, with versions of the declared distributions and of the plugin."""
    install()
    found = plan()
    (quantize, variant), (evaluate, work) = quantization(found), evaluation(found)
    numpy, lm_eval = environments.pins("core")["numpy"], environments.pins("transformers")["lm-eval"]
    assert (quantize.environment, variant.versions) == ("core", (("numpy", numpy), ("their-plugin", "1.5")))
    assert (evaluate.environment, work.versions) == ("transformers", (("lm-eval", lm_eval), ("their-plugin", "1.5")))
    assert (work.backend, evaluate.kernel, evaluate.shape.gpus) == ("scorer", "scoring", 0)
    assert variant.calibration
    assert quantization(found, "own")[1].calibration is None


def test_unknown_names_list_those_of_plug_ins(install: Install) -> None:
    """A message about an unknown backend, tool, method or scheme lists the installed ones, with a suggestion."""
    install()
    overrides = ("evaluate.backend=scorr", "schemes.define.0.tool=their", "schemes.define.0.method=cleve")
    with pytest.raises(ManifestError) as raised:
        load(Path("m.toml"), [*overrides])
    problems = "\n".join(raised.value.problems)
    assert "must be one of accelerate, vllm, synthetic, scorer, not 'scorr'. Did you mean 'scorer'?" in problems
    assert "autoawq, theirs, not 'their'. Did you mean 'theirs'?" in problems
    assert "llm-int8, clever, not 'cleve'. Did you mean 'clever'?" in problems
    with pytest.raises(ManifestError, match=r"unknown scheme 'theirs-w8a61'.* Did you mean 'theirs-w8a16'\?"):
        load(Path("m.toml"), ["schemes.use=['theirs-w8a61']"])


def test_a_method_of_another_tool_is_refused(install: Install) -> None:
    """A scheme may use only a method that its tool offers; the message lists these."""
    install()
    with pytest.raises(
        ManifestError, match=r"'gptq' cannot be combined with tool 'theirs'\. Its methods are rtn, clever"
    ):
        load(Path("m.toml"), ["schemes.define.0.method=gptq"])


def test_a_back_end_must_declare_that_it_reads_a_fidelity_panel(install: Install) -> None:
    """Without the declaration the manifest is refused, before a job fails; with it the panel is planned."""
    install()
    with pytest.raises(ManifestError, match=r": fidelity: the backend 'scorer' cannot read a fidelity panel: its"):
        plan("fidelity.tokens=1024")
    declared = DECLARATION.replace("[backends.scorer]", "[backends.scorer]\nreads_fidelity_panel = true")
    install(declared, version="1.6", package="newer_package")
    _, work = evaluation(plan("fidelity.tokens=1024"))
    assert [task.name for task in work.tasks] == ["arc_challenge", "fidelity_panel"]


def test_without_the_plug_in_its_names_are_unknown() -> None:
    """The same manifest is refused where the plugin is not installed."""
    with pytest.raises(ManifestError, match="must be one of accelerate, vllm, synthetic, not 'scorer'"):
        load(Path("m.toml"))


def test_another_version_of_the_plug_in_gives_other_addresses(install: Install) -> None:
    """The plugin's version is part of the addresses of its checkpoints and responses."""
    install()
    first = plan()
    install(version="1.6")
    second = plan()
    assert dict(quantization(second)[1].versions)["their-plugin"] == "1.6"
    assert quantization(first)[1].address != quantization(second)[1].address
    assert evaluation(first)[1].variant.address == evaluation(second)[1].variant.address
    assert evaluation(first)[1].address != evaluation(second)[1].address


def test_a_lock_file_keeps_the_plug_ins_version(install: Install) -> None:
    """A lock file of a run plans the versions that it recorded, even if others are installed later."""
    install()
    resolved = resolve(load(Path("m.toml")))
    found = make_plan(resolved)
    versions = {unit.environment: unit.work.versions for unit in found.units if isinstance(unit.work, EvaluateWork)}
    Path("m.lock.toml").write_text(lock_text(resolved, {**versions, "core": quantization(found)[1].versions}))
    install(version="1.6", package="newer_package")
    again = make_plan(resolve(load(Path("m.lock.toml"))))
    assert again.address == found.address


def test_an_environment_of_the_plug_in_has_its_lock_file(
    install: Install, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock file beside a declaration is an environment: its versions are planned; `submit` says how to create it."""
    monkeypatch.setenv("HPCQ_CACHE", str(Path("cache").resolve()))
    package = install(DECLARATION.replace('environment = "core"', 'environment = "their-env"'))
    (package / "their-env.lock.txt").write_text(LOCK)
    unit, variant = quantization(plan())
    assert (unit.environment, variant.versions) == ("their-env", (("numpy", "2.0.1"), ("their-plugin", "1.5")))
    profile = resolve(load(Path("m.toml"))).profile
    (array,) = (array for array in make_arrays([unit], profile) if array.environment == "their-env")
    python = environments.interpreter("their-env", package)
    assert build_array_spec("theirs", array, profile).environment.python == str(python)
    assert main(["submit", "m.toml", "-O", "evaluate.backend=accelerate"]) == 3
    command = f"run `python3 -m hpcq.core.environments their-env --locks {package}`."
    assert f"The environment 'their-env' does not exist: {command}" in capsys.readouterr().err


def test_an_environments_lock_file_may_list_the_plug_in(install: Install) -> None:
    """If the environment contains the plugin, that version is planned, and jobs do not get it on their path."""
    package = install(DECLARATION.replace('environment = "core"', 'environment = "their-env"'))
    (package / "their-env.lock.txt").write_text(LOCK + "their_plugin==1.4\n")
    found, profile = plan(), resolve(load(Path("m.toml"))).profile
    assert dict(quantization(found)[1].versions)["their-plugin"] == "1.4"
    plugins = {array.kind: build_array_spec("x", array, profile).plugins for array in make_arrays(found.units, profile)}
    assert {str(kind): len(found) for kind, found in plugins.items()} == {"quantize": 0, "evaluate": 1, "merge": 0}


def test_a_lock_file_with_the_name_of_hpcqs_environment_is_refused(install: Install) -> None:
    """A plugin cannot replace an environment of hpcq."""
    (install() / "transformers.lock.txt").write_text(LOCK)
    with pytest.raises(SetupError, match=r"their-plugin 1\.5: .*/transformers\.lock\.txt: hpcq itself has"):
        plan()


def test_the_profile_may_give_the_interpreter(install: Install) -> None:
    """For an environment that only the profile knows, the versions are those that its interpreter reports."""
    install(DECLARATION.replace('environment = "core"', 'environment = "site-env"'))
    with pytest.raises(SetupError, match=r"'theirs' \(their-plugin 1\.5\) runs in .*add \[environments\.site-env\]"):
        plan()
    Path("here.toml").write_text(PROFILE + f"[environments.site-env]\npython = {json.dumps(sys.executable)}\n")
    unit, variant = quantization(plan())
    numpy = importlib.metadata.version("numpy")
    assert (unit.environment, variant.versions) == ("site-env", (("numpy", numpy), ("their-plugin", "1.5")))
    Path("here.toml").write_text(PROFILE + '[environments.site-env]\npython = "/nowhere/python"\n')
    with pytest.raises(SetupError, match="/nowhere/python: this interpreter cannot be started here"):
        plan()


def test_memory_is_what_the_quantizer_declares(install: Install) -> None:
    """A quantizer with bytes per parameter needs these and 1 GiB for its process."""
    install()
    shape, scheme = find_model_shape(MODEL), find_scheme("theirs-w8a16")
    assert shape
    assert scheme
    memory = quantization_memory(shape, scheme, None, on_gpu=True)
    assert (memory.host_bytes, memory.gpu_bytes) == (3 * shape.parameters + 2**30, 2**30)


@pytest.mark.parametrize(
    ("splitting", "shapes"),
    [
        ("", {(1, 1)}),
        ('splitting = "layers"', {(1, 1)}),
        ('splitting = "tensor"', {(1, 1), (1, 3)}),
    ],
)
def test_gpus_are_planned_as_the_back_end_splits_a_model(
    splitting: str, shapes: set[tuple[int, int]], install: Install
) -> None:
    """Only a backend with tensor parallelism may get more GPUs than memory requires; 2 do not divide 9 heads."""
    gpu = 'min_capability = [8, 0]\nsource = "theirs"'
    declared = DECLARATION.replace('source = "theirs"', gpu).replace('["lm-eval"]', f'["lm-eval"]\n{splitting}')
    install(declared)
    shape, scheme = find_model_shape(MODEL), find_scheme("bf16")
    assert scheme
    offer = GpuClass(gpu="A100-80", gpus_per_node=3, nodes=4, cpus_per_node=8, memory_gib=500)
    requirements = EvaluationRequirements(model=shape, scheme=scheme, backend="scorer", demand=MemoryDemand())
    found = evaluation_placements(Profile(name="p", scheduler="slurm", gpu_classes={"a100": offer}), requirements)
    assert {(one.shape.nodes, one.shape.gpus_per_node) for one in found} == shapes


def test_a_back_end_with_kernels_for_cpus_takes_no_gpu(install: Install) -> None:
    """A backend without kernels for GPUs runs on the cores of nodes that have some."""
    install()
    Path("here.toml").write_text(PROFILE + 'gpu = "A100-80"\ngpus_per_node = 4\n')
    unit, _ = evaluation(plan())
    assert (unit.shape.gpu_class, unit.shape.gpus, unit.kernel) == ("cpu", 0, "scoring")


def test_a_job_finds_the_plug_in_by_its_entry_points(install: Install, tmp_path: Path) -> None:
    """The snapshot for a run has hpcq and the plugin, with the version that is installed now."""
    for version in ("1.5", "1.6"):
        package = install(version=version)
        (package / "__init__.py").write_text("")
        (package / "tool.py").write_text("class Scorer:\n    pass\nclass Theirs:\n    pass\n")
        path = make_snapshot(layout_at(tmp_path), installed_plugins()).path
    names = sorted(item.name for item in path.iterdir())
    assert names == ["hpcq", "their_package", "their_plugin-1.6.dist-info"]
    code = (
        "from hpcq.catalog.tools import load_tool; from hpcq.catalog.plugins import Group;"
        "import importlib.metadata as m; print(load_tool(Group.BACKENDS, 'scorer').__name__, m.version('their-plugin'))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env={"PYTHONPATH": str(path)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["Scorer", "1.6"]


def test_a_back_end_that_cannot_be_imported_is_named(install: Install) -> None:
    """In a job, a missing library of a plugin is reported with the distribution and the fix."""
    package = install()
    (package / "__init__.py").write_text("import a_missing_library\n")
    with pytest.raises(SetupError, match=r"Plugin Their_Plugin: 'their_package\.tool:Scorer' cannot be imported here"):
        load_tool(Group.BACKENDS, "scorer")


def test_hpcqs_own_back_ends_are_unchanged_by_a_plug_in(install: Install) -> None:
    """Installing a plugin does not change the plan of a manifest without it."""
    Path("m.toml").write_text(
        MANIFEST.replace('"theirs-w8a16", "own"', '"fp8-dynamic"').partition("[[schemes")[0]
        + '[tasks]\nuse = ["arc_challenge"]\n'
    )
    before = plan()
    install()
    assert plan() == before
    assert list(backends())[:3] == ["accelerate", "vllm", "synthetic"]
