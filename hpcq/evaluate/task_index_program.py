"""Program for an environment with lm-eval: describe its tasks, or a user's definitions, for a machine without lm-eval.

`python -m hpcq.evaluate.task_index_program` writes the entries of all of lm-eval's tasks, groups and tags as JSON lines
[name, entry] to stdout; with a FOLDER, those of the user's definitions in it. An entry has the fields of
`hpcq.catalog.tasks.TaskInfo`. An error in the user's files is a line [null, sentence].

No function of a definition is called, and no code of the user is imported.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeGuard

import lm_eval.api.metrics
import lm_eval.tasks
from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY, HIGHER_IS_BETTER_REGISTRY, METRIC_REGISTRY
from lm_eval.api.task import ALL_OUTPUT_TYPES
from lm_eval.defaults import DEFAULT_MAX_GEN_TOKS
from lm_eval.tasks._factory import GROUP_FIELD_NAMES
from lm_eval.tasks._index import Entry, Kind

from hpcq.catalog.main_metrics import main_metric, result_name
from hpcq.core.frozen import dataclass
from hpcq.evaluate.definition_index import DEFINITIONS, foreign_members
from hpcq.evaluate.user_definitions import DefinitionError, count_documents, read_definitions

_MULTIPLE_CHOICE, _GENERATE, _ROLLING = "multiple_choice", "generate_until", "loglikelihood_rolling"
_DEFAULT_TYPE = "generate_until"
"""Output type of a definition without `output_type` (lm_eval.config.task, 0.4.13)."""
_NO_FILTER = "none"
_ASSUMED_CHOICES = 4.0
"""Requests per document of a multiple-choice task: its documents, which have the choices, are not read."""

_FILE_FORMATS = ("json", "csv", "parquet", "text", "arrow", "pandas", "xml")
"""Values of `dataset_path` that name a format of files instead of a repository (datasets 5.2)."""

_PYTHON_TASKS = ("squad_completion", "swde", "fda")
"""Python tasks that only read a data set: their classes name it, and download nothing else (read in 0.4.13)."""

_OWN_GENERATORS = ("Random", "SystemRandom")
"""Attributes of the module `random` that make another generator; in a function, they are usually seeded there."""

_CODE_METRIC = 'load("code_eval")'
"""How definitions load the metric that hpcq computes in a sandbox (lm-eval 0.4.13)."""


@dataclass(frozen=True, kw_only=True)
class _Leaf:
    """One task, as a group or a manifest names it."""

    name: str
    config: Mapping[str, Any]
    entry: Entry | None

    @cached_property
    def output_type(self) -> str:
        return str(self.config.get("output_type") or _DEFAULT_TYPE)

    @cached_property
    def metrics(self) -> list[tuple[str, bool]]:
        """The metrics in their order, each with whether a higher value is better."""
        listed = self.config.get("metric_list")
        if listed is None:
            return [(name, _is_higher_better(name)) for name in DEFAULT_METRIC_REGISTRY.get(self.output_type, ())]
        named = ((result_name(_metric_name(one.get("metric")), one), one) for one in listed)
        return [(name, bool(one.get("higher_is_better", _is_higher_better(name)))) for name, one in named]

    @property
    def _examples(self) -> Mapping[str, Any]:
        return {"split": self.config.get("fewshot_split"), **(self.config.get("fewshot_config") or {})}

    @property
    def excludes_item(self) -> bool:
        """Whether lm-eval draws one more example, and removes the evaluated item (`fewshot_context`, 0.4.13)."""
        split = self._examples["split"]
        is_drawn = self._examples.get("sampler") in (None, "default")
        return bool(split == self.config.get("test_split") and (split or is_drawn))

    @property
    def example_split(self) -> str:
        """The split of the few-shot examples; '' if a list or a function has them."""
        named = self._examples["split"]
        if named or self._examples.get("samples"):
            return str(named or "")
        splits = (self.config.get(f"{name}_split") for name in ("training", "validation", "test"))
        return str(next(filter(None, splits), ""))

    @property
    def filter(self) -> str:
        filters = self.config.get("filter_list")
        return str(filters[0]["name"]) if isinstance(filters, list) and filters else _NO_FILTER


@dataclass(kw_only=True)
class _Closure:
    """What a name stands for: leaves, and the files that define them."""

    leaves: list[_Leaf] = field(default_factory=list)
    files: dict[Path, None] = field(default_factory=dict)


def entries(index: Mapping[str, Entry], names: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each name with its entry."""
    for name in names:
        yield name, _described(index[name], index)


def _described(entry: Entry, index: Mapping[str, Entry]) -> dict[str, Any]:
    closure = _Closure()
    try:
        _collect(entry, {}, index, closure)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        return _row([], {}, problem=f"its definition names something that lm-eval does not have ({error})")
    row = _row(closure.leaves, closure.files, problem=_first_problem(closure.leaves))
    if entry.kind is Kind.TAG:
        row |= {"children": sorted(entry.tags), "is_group": True}
    elif entry.kind is Kind.GROUP:
        config = entry.cfg or {}
        listed = config.get("aggregate_metric_list") or []
        aggregated = [listed] if isinstance(listed, dict) else listed
        row |= {"is_group": True, **_group_metric(aggregated, closure.leaves)}
        if not aggregated:
            row |= _children(config, index)
    return row


def _collect(entry: Entry, overrides: Mapping[str, Any], index: Mapping[str, Entry], closure: _Closure) -> None:
    """Add the leaves of an entry, as `lm_eval.tasks._factory` (0.4.13) would build them."""
    if entry.yaml_path:
        closure.files[entry.yaml_path] = None
    if entry.kind is Kind.TAG:
        for name in sorted(entry.tags):
            _collect(index[name], overrides, index, closure)
    elif entry.kind is Kind.GROUP:
        _collect_members(entry.name, entry.cfg or {}, overrides, index, closure)
    else:
        config = {**(entry.cfg or {}), **overrides}
        closure.leaves.append(_Leaf(name=str(config["task"]), config=config, entry=entry))


def _collect_members(
    group: str,
    config: Mapping[str, Any],
    overrides: Mapping[str, Any],
    index: Mapping[str, Entry],
    closure: _Closure,
) -> None:
    own = {key: value for key, value in config.items() if key not in GROUP_FIELD_NAMES}
    merged = {**own, **overrides}
    members = config.get("task")
    for member in members if isinstance(members, list) else ():
        item = member if isinstance(member, dict) else {}
        if "group" in item:
            if item["group"] in index:
                further = {key: value for key, value in item.items() if key != "group"}
                _collect(index[item["group"]], {**merged, **further}, index, closure)
            else:
                _collect_members(f"{group}::{item['group']}", item, merged, index, closure)
            continue
        name = item["task"] if item else member
        if name not in index:
            inline = {**merged, **item, "task": f"{group}::{name}"}
            closure.leaves.append(_Leaf(name=inline["task"], config=inline, entry=None))
        elif index[name].kind in (Kind.GROUP, Kind.TAG):
            _collect(index[name], {**merged, **item}, index, closure)
        else:
            _collect(index[name], {"task": name, **merged, **item}, index, closure)


def _children(config: Mapping[str, Any], index: Mapping[str, Entry]) -> dict[str, Any]:
    """Return the members that replace a group without a score of its own, or why they cannot."""
    members = config.get("task")
    names = members if isinstance(members, list) else []
    if set(config) - GROUP_FIELD_NAMES - {"tag"} or not all(isinstance(one, str) and one in index for one in names):
        return {"problem": "it has no score of its own, and changes the settings of its members: name the members"}
    return {"children": names}


def _group_metric(aggregated: list[dict[str, Any]], leaves: list[_Leaf]) -> dict[str, Any]:
    if not aggregated:
        return {"metric": ""}
    directions = {name: is_higher for leaf in leaves for name, is_higher in leaf.metrics}
    metric = main_metric([str(one["metric"]) for one in aggregated])
    chosen = next(one for one in aggregated if str(one["metric"]) == metric)
    filters = chosen.get("filter_list") or [leaf.filter for leaf in leaves if metric in dict(leaf.metrics)]
    first = filters if isinstance(filters, str) else (filters or [_NO_FILTER])[0]
    return {"metric": metric, "filter": first, "lower_is_better": not directions.get(metric, True)}


def _row(leaves: list[_Leaf], files: Mapping[Path, None], *, problem: str) -> dict[str, Any]:
    metrics = dict(leaves[0].metrics) if leaves else {}
    metric = main_metric(list(metrics))
    types = {leaf.output_type for leaf in leaves}
    return {
        "datasets": sorted({str(leaf_path) for leaf in leaves if (leaf_path := _repository(leaf))}),
        "metric": metric,
        "lower_is_better": not metrics.get(metric, True),
        "filter": leaves[0].filter if leaves else _NO_FILTER,
        "num_fewshot": max((int(leaf.config.get("num_fewshot") or 0) for leaf in leaves), default=0),
        "requests_per_document": _ASSUMED_CHOICES if types == {_MULTIPLE_CHOICE} else 1.0,
        "output_type": _GENERATE if _GENERATE in types else _ROLLING if types == {_ROLLING} else "loglikelihood",
        "max_gen_toks": max((_max_gen_toks(leaf) for leaf in leaves), default=0),
        "num_subtasks": max(1, len(leaves)),
        "members": [leaf.name for leaf in leaves],
        "definitions": [_relative(path) for path in files],
        "has_code": any(True for leaf in leaves for _ in _functions(leaf.config)),
        "runs_code": any(leaf.config.get("unsafe_code") for leaf in leaves),
        "is_shuffled": any(_draws_numbers(module) for leaf in leaves for module in _modules(leaf.config)),
        "example_splits": [leaf.example_split for leaf in leaves],
        "excludes_item": [leaf.excludes_item for leaf in leaves],
        "missing_packages": sorted(
            {name for leaf in leaves for function in _functions(leaf.config) for name in _missing_packages(function)}
        ),
        "problem": problem,
    }


def _relative(path: Path) -> str:
    return path.relative_to(DEFINITIONS).as_posix() if path.is_relative_to(DEFINITIONS) else str(path)


def _max_gen_toks(leaf: _Leaf) -> int:
    if leaf.output_type != _GENERATE:
        return 0
    settings = leaf.config.get("generation_kwargs") or {}
    return int(settings.get("max_gen_toks") or settings.get("max_tokens") or DEFAULT_MAX_GEN_TOKS)


def _repository(leaf: _Leaf) -> str | None:
    if "class" in leaf.config and leaf.entry and leaf.entry.name in _PYTHON_TASKS:
        return _class_repository(str(leaf.config["class"]))
    path = leaf.config.get("dataset_path")
    return None if path in _FILE_FORMATS else path


@cache
def _class_repository(function: str) -> str | None:
    """Return DATASET_PATH of a class of lm-eval, without importing its module."""
    module, _, name = function.rpartition(".")
    tree = ast.parse(Path(f"{module}.py").read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    values = {
        target.id: str(node.value.value)
        for node in body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return values.get("DATASET_PATH")


def _first_problem(leaves: list[_Leaf]) -> str:
    for leaf in leaves:
        if problem := _problem(leaf):
            return problem if len(leaves) == 1 else f"{leaf.name}: {problem}"
    return "" if leaves else "it has no members"


def _problem(leaf: _Leaf) -> str:
    """Return why hpcq cannot evaluate a leaf; '': it can, as far as the definition shows."""
    return next((problem for find in (_prompt_problem, _data_problem, _scoring_problem) if (problem := find(leaf))), "")


def _prompt_problem(leaf: _Leaf) -> str:
    if "class" not in leaf.config and leaf.output_type not in ALL_OUTPUT_TYPES:
        return f"its output_type '{leaf.output_type}' is none of {', '.join(sorted(ALL_OUTPUT_TYPES))}"
    if leaf.config.get("unsafe_code") and not _uses_code_eval(leaf):
        return "its definition runs code that the model wrote by its own functions, which hpcq cannot isolate"
    if leaf.config.get("doc_to_image") or leaf.config.get("doc_to_audio"):
        return "its prompts contain images or sounds, and hpcq evaluates text"
    return ""


def _uses_code_eval(leaf: _Leaf) -> bool:
    return any(_CODE_METRIC in path.read_text(encoding="utf-8") for path in _modules(leaf.config))


def _modules(config: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the Python files whose functions a definition names."""
    paths = dict.fromkeys(Path(f"{function.rpartition('.')[0]}.py") for function in _functions(config))
    yield from (path for path in paths if path.is_file())


@cache
def _draws_numbers(module: Path) -> bool:
    """Return whether the functions of a module use Python's global random numbers, or a generator of the module."""
    tree = _parsed(module)
    at_top = {id(node) for one in tree.body if isinstance(one, ast.Assign) for node in ast.walk(one)}
    return any(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "random"
        and (node.attr not in _OWN_GENERATORS or id(node) in at_top)
        for node in ast.walk(tree)
    )


def _parsed(module: Path) -> ast.Module:
    """Return the syntax tree of a module; empty if it cannot be read."""
    try:
        return ast.parse(module.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return ast.Module(body=[], type_ignores=[])


def _data_problem(leaf: _Leaf) -> str:
    config = leaf.config
    arguments = config.get("dataset_kwargs") or {}
    problem = ""
    if "class" in config:
        if not leaf.entry or leaf.entry.name not in _PYTHON_TASKS:
            problem = f"it is defined by the Python class {_last_part(config['class'])}, whose data hpcq cannot pin"
    elif function := config.get("custom_dataset"):
        problem = f"the Python function {_last_part(function)} makes its items, and hpcq cannot pin what it reads"
    elif leaf.entry is None and not config.get("dataset_path"):
        problem = f"its member '{leaf.name.rpartition('::')[2]}' is not a task"
    elif not config.get("dataset_path"):
        problem = "its definition names no data set"
    elif config["dataset_path"] in _FILE_FORMATS and "://" in json.dumps(arguments, default=str):
        problem = "its items are files at a URL, which has no commit that can be pinned"
    elif config["dataset_path"] in _FILE_FORMATS and config["dataset_path"] != "json":
        problem = f"its items are {config['dataset_path']} files; convert them to JSON lines (dataset_path: json)"
    elif revision := arguments.get("revision"):
        problem = f"its definition reads revision {revision} of its data set, and hpcq reads one commit of a branch"
    return problem


def _scoring_problem(leaf: _Leaf) -> str:
    for name, _ in leaf.metrics:
        if name not in METRIC_REGISTRY and not _is_own_metric(leaf.config, name):
            return f"its metric {name} is a program that lm-eval downloads"
    return ""


def _last_part(function: object) -> str:
    return str(function).rsplit("/", 1)[-1]


def _metric_name(metric: object) -> str:
    """Return the name of a metric; that of a function is its last part."""
    text = str(metric)
    return text.rsplit(".", 1)[-1] if "/" in text else text


def _is_own_metric(config: Mapping[str, Any], name: str) -> bool:
    """Return whether a function of the definition computes the metric, or `process_results`, which returns all."""
    listed = (one for one in config.get("metric_list") or () if "/" in str(one.get("metric")))
    own = {result_name(_metric_name(one["metric"]), one) for one in listed}
    return config.get("process_results") is not None or name in own


def _is_higher_better(name: str) -> bool:
    return bool(HIGHER_IS_BETTER_REGISTRY.get(name, True))


def _functions(value: object) -> Iterator[str]:
    """Yield the functions in a definition, each as the absolute path of its module, '.' and its name."""
    if isinstance(value, str):
        if value.startswith("/") and "\n" not in value:
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _functions(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _functions(item)


@cache
def _missing_packages(function: str) -> frozenset[str]:
    module = Path(f"{function.rpartition('.')[0]}.py")
    return _missing_in(module, frozenset()) if module.is_file() else frozenset()


@cache
def _missing_in(module: Path, seen: frozenset[Path]) -> frozenset[str]:
    """Return the packages that are not installed and that a module, or a module of lm-eval's tasks it imports, needs.

    Only statements at the top of a module count, and those in a `try` whose handler raises: others may not be executed.
    """
    tree = _parsed(module)
    missing: set[str] = set()
    required = [node for one in tree.body for node in (one.body if _is_required_try(one) else [one])]
    for node in required:
        for name in _imported(node):
            own = DEFINITIONS.parents[1] / f"{name.replace('.', '/')}.py"
            if name.startswith("lm_eval.tasks.") and own.is_file() and own not in seen:
                missing |= _missing_in(own, seen | {module})
            elif not _exists(name.partition(".")[0]):
                missing.add(name.partition(".")[0])
    return frozenset(missing)


def _is_required_try(node: ast.stmt) -> TypeGuard[ast.Try]:
    return isinstance(node, ast.Try) and any(isinstance(last.body[-1], ast.Raise) for last in node.handlers)


def _imported(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []


@cache
def _exists(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def example_count(own: Mapping[str, Entry], row: Mapping[str, Any], folders: list[Path]) -> int | None:
    """Return how many few-shot examples the prompts of a user's task can have; None: unknown."""
    counts = []
    for leaf, split, is_excluded in zip(row["members"], row["example_splits"], row["excludes_item"], strict=True):
        found = count_documents(own[leaf].cfg or {}, split, folders) if leaf in own else None
        counts += [] if found is None else [found - is_excluded]
    return min(counts, default=None)


def main(folders: list[str]) -> None:
    """Write the entries to stdout.

    Args:
        folders: Folders of the user's definitions; empty: lm-eval's own definitions are described.
    """
    logging.disable(logging.CRITICAL)  # lm-eval warns about duplicate names in its own files
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print; stdout has only entries
    try:
        own = read_definitions([Path(folder) for folder in folders]) if folders else {}
    except DefinitionError as error:
        output.write(json.dumps([None, str(error)]) + "\n")
        output.close()
        return
    defaults = {} if folders and not foreign_members(own) else lm_eval.tasks.TaskManager().task_index
    paths = [Path(folder) for folder in folders]
    for name, row in entries({**defaults, **own}, own or defaults):
        examples = example_count(own, row, paths)
        output.write(json.dumps([name, row | ({} if examples is None else {"examples": examples})], default=str) + "\n")
    output.close()


if __name__ == "__main__":
    main(sys.argv[1:])
