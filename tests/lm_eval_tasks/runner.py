"""Run tasks with hpcq and with lm-eval itself, both from a local hub, and compare them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcq.catalog.packages import nltk_data_folder
from tests.command_line import Hpcq
from tests.hub.repositories import write_model
from tests.hub.user import ONLINE, User
from tests.hub_server import HubServer
from tests.lm_eval_tasks.cases import LIMIT, MAX_GEN_TOKS, OPTIONS, Options
from tests.lm_eval_tasks.comparison import Comparison, compare
from tests.lm_eval_tasks.items import write_repositories

PROGRAM = Path(__file__).with_name("lm_eval_program.py")
MODEL = "acme/tiny-llama"
NO_HUB = "http://127.0.0.1:9"
TAGS = ("anli", "unscramble")
"""Names that stand for their members, and so have no options."""
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)

MANIFEST = """[run]
name = "{run}"
[[models]]
id = "acme/tiny-llama"
[schemes]
use = ["bf16"]
[evaluate]
dtype = "float32"
device = "cpu"
batch_size = 1
prefix_sharing = false
[tasks]
"""
"""Requests are computed one by one, as lm-eval does."""

OWN_TASK = """task: my_colors
dataset_path: json
dataset_kwargs:
  data_files:
    test: colors.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: !function utils.prompt
doc_to_target: label
doc_to_choice: "{{[a, b]}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""
OWN_GROUP = """group: my_group
task: [my_colors, arc_easy]
aggregate_metric_list:
  - metric: acc
    weight_by_size: true
metadata: {version: 1.0}
"""
OWN_FUNCTION = """def prompt(doc):
    return f"Color of {doc['thing']}:"
"""


@dataclass(frozen=True, kw_only=True)
class Runner:
    """A local hub and its user.

    Attributes:
        hub: The hub.
        folder: An empty folder.
        core: Interpreter of the core environment.
        transformers: Interpreter of the environment with lm-eval.
    """

    hub: HubServer
    folder: Path
    core: Path
    transformers: Path

    @property
    def user(self) -> User:
        """The user."""
        return User(hpcq=Hpcq(python=self.core, folder=self.folder), home=self.folder / "home", url=self.hub.url)

    def compare(self, names: Sequence[str], *, own: Path | None = None) -> Comparison:
        """Compare hpcq's results with lm-eval's, for tasks that have no member in common.

        Args:
            names: Names of the tasks.
            own: Folder with definitions of the user.
        """
        return self.compare_twice(names, (), own=own)

    def compare_twice(self, names: Sequence[str], mirrored: Sequence[str], *, own: Path | None = None) -> Comparison:
        """Compare results from the hub, and those of some tasks from a mirror with HF_HUB_OFFLINE=1.

        lm-eval reads the hub both times. It runs at the same time as hpcq.

        Args:
            names: Names of the tasks.
            mirrored: Those that are also evaluated from the mirror.
            own: Folder with definitions of the user.
        """
        with self._lm_eval(names, own) as reference, contextlib.ExitStack() as stack:
            stack.callback(reference.kill)  # if hpcq fails
            self.user.succeed("stage", self._manifest("tasks", names, own))
            self._submit("tasks", names, own, self.user.environment())
            if mirrored:
                offline = {"HF_HOME": str(self.folder / "offline"), "HF_ENDPOINT": NO_HUB, "HF_HUB_OFFLINE": "1"}
                self._submit("mirror", mirrored, own, offline, mirror=self.hub.root)
            reference.wait()
        assert reference.returncode == 0, (self.folder / "lm_eval.log").read_text(encoding="utf-8")
        expected = dict(map(json.loads, self._output.read_text(encoding="utf-8").splitlines()))
        found = compare(self._results("tasks"), expected)
        if mirrored:
            found.add(compare(self._results("mirror"), {name: expected[name] for name in mirrored}))
        return found

    def _results(self, run: str) -> Path:
        return self.folder / "runs" / run / "results.h5"

    @property
    def _output(self) -> Path:
        return self.folder / "lm_eval.jsonl"

    def _submit(
        self, run: str, names: Sequence[str], own: Path | None, env: dict[str, str], *, mirror: Path | None = None
    ) -> None:
        manifest = self._manifest(run, names, own, mirror=mirror)
        done = self.user.hpcq("submit", manifest, timeout_s=7200, env=env)
        assert done.code == 0, done.err + done.out

    def _manifest(self, run: str, names: Sequence[str], own: Path | None, *, mirror: Path | None = None) -> Path:
        lines = [f"use = {json.dumps(names)}", f"limit = {LIMIT}", "allow_code_execution = true"]
        lines += [f'include = ["{own}"]', "trust_code = true"] if own else []
        for name in names:
            if name not in TAGS:
                lines += [f'[tasks.options."{name}"]', f"max_gen_toks = {MAX_GEN_TOKS}"]
                lines += _toml(OPTIONS.get(name, Options()).of_hpcq())
        lines += ["[data]", f'mirror = "{mirror}"'] if mirror else []
        return self.user.hpcq.write(MANIFEST.format(run=run) + "\n".join(lines) + "\n", f"{run}.toml")

    def _lm_eval(self, names: Sequence[str], own: Path | None) -> subprocess.Popen[bytes]:
        document = {
            "model": str(self.hub.root / "models" / MODEL),
            "tasks": {name: _lm_eval_settings(name) for name in names},
            "include": str(own) if own else None,
        }
        (self.folder / "lm_eval_input.json").write_text(json.dumps(document), encoding="utf-8")
        hub = {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.folder / "lm-eval-home")}
        # A pipe would fill while hpcq runs.
        log = self.folder / "lm_eval.log"
        with (self.folder / "lm_eval_input.json").open(encoding="utf-8") as given, log.open("w") as errors:
            return subprocess.Popen(
                [self.transformers, PROGRAM, self._output],
                cwd=own,  # to which lm-eval resolves `data_files`
                stdin=given,
                env={**os.environ, **ONLINE, **hub, "NLTK_DATA": str(nltk_data_folder())},  # for IFEval; hpcq stages it
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )


def _lm_eval_settings(name: str) -> dict[str, Any]:
    generated = {} if name in TAGS else {"max_gen_toks": MAX_GEN_TOKS}
    return {"limit": LIMIT, **generated, **OPTIONS.get(name, Options()).of_lm_eval()}


def _toml(table: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table; an inner one has values of simple types."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield f"{key} = {{ {', '.join(f'{name} = {json.dumps(one)}' for name, one in value.items())} }}"
        elif value is not None:
            yield f"{key} = {json.dumps(value)}"


def write_data(root: Path, transformers: Path) -> None:
    """Write the data sets of all tasks."""
    done = subprocess.run([transformers, PROGRAM, "layout"], capture_output=True, text=True, check=True)
    write_repositories(root, json.loads(done.stdout))


def write_hub(root: Path, transformers: Path) -> None:
    """Write the repositories of all tasks, and a Llama with random weights and a chat template."""
    write_data(root, transformers)
    write_model(root / "models" / MODEL, transformers)
    (root / "models" / MODEL / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def write_own_tasks(folder: Path) -> Path:
    """Write definitions of a user."""
    folder.mkdir()
    rows = [{"thing": f"box {n}", "a": "red", "b": "dark green", "label": n % 2} for n in range(6)]
    (folder / "colors.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "colors.yaml").write_text(OWN_TASK)
    (folder / "group.yaml").write_text(OWN_GROUP)
    (folder / "utils.py").write_text(OWN_FUNCTION)
    return folder
