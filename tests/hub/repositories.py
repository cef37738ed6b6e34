"""Repositories of a local hub: a small model, items of three benchmarks (MMLU is a group of 57), a calibration text.

The same folders serve as a mirror: `models/<org>/<name>/` and `datasets/<org>/<name>/`.
"""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.staged import staged_calibration, staged_dataset

MODEL = "acme/tiny-llama"
ARC, WINOGRANDE, MMLU, PASSAGES = "allenai/ai2_arc", "allenai/winogrande", "cais/mmlu", "acme/passages"
DATASETS = (ARC, WINOGRANDE, MMLU, PASSAGES)
ITEMS = 8
"""Items per split of the benchmarks that packages contain."""

Splits = Mapping[str, list[str]]


def write_repositories(root: Path, transformers_python: Path) -> None:
    """Write all repositories to `root`."""
    write_model(root / "models" / MODEL, transformers_python)
    write_datasets(root / "datasets", mmlu_subjects(transformers_python))


def write_model(folder: Path, transformers_python: Path, *, seed: int = 0) -> None:
    """Write a Llama with random weights in two files."""
    code = "import sys, pathlib; from tests.tiny_llama import write_base; "
    code += f"write_base(pathlib.Path(sys.argv[1]), seed={seed}, max_shard_size='500KB')"
    subprocess.run([transformers_python, "-c", code, folder], check=True, capture_output=True)


def write_datasets(folder: Path, subjects: Iterable[str]) -> None:
    """Write the data sets: real items of ARC and WinoGrande, invented ones of MMLU, real passages."""
    arc = packaged_lines(staged_dataset("arc_challenge"))
    write_configurations(folder / ARC, {"ARC-Easy": arc, "ARC-Challenge": arc})
    write_configurations(folder / WINOGRANDE, {"winogrande_xl": packaged_lines(staged_dataset("winogrande"))})
    write_configurations(folder / MMLU, {subject: mmlu_splits(subject) for subject in subjects})
    write_configurations(
        folder / PASSAGES, {"default": {"train": first_lines(staged_calibration("boolq-passages"), 200)}}
    )


def mmlu_subjects(transformers_python: Path) -> list[str]:
    """Return the configurations that MMLU's definitions in lm-eval read."""
    (folder,) = transformers_python.parents[1].glob("lib/python3*/site-packages/lm_eval/tasks/mmlu/default")
    return sorted(path.stem.removeprefix("mmlu_") for path in folder.glob("mmlu_*.yaml"))


def mmlu_splits(subject: str) -> Splits:
    """Return invented items of a subject."""
    return {
        "test": list(map(json.dumps, _mmlu_items(subject, 2))),
        "dev": list(map(json.dumps, _mmlu_items(subject, 1))),
    }


def _mmlu_items(subject: str, count: int) -> list[dict[str, Any]]:
    number = sum(map(ord, subject))
    return [
        {
            "question": f"In {subject}, what is {number} + {item}?",
            "subject": subject,
            "choices": [str(number + item + step) for step in range(4)],
            "answer": (number + item) % 4,
        }
        for item in range(count)
    ]


def packaged_lines(folder: Path) -> Splits:
    """Return the first items of each split that a package contains."""
    return {path.stem: first_lines(path, ITEMS) for path in sorted(folder.glob("*.jsonl"))}


def first_lines(path: Path, count: int) -> list[str]:
    """Return the first lines of a file."""
    with path.open(encoding="utf-8") as file:
        return [line.rstrip("\n") for line in itertools.islice(file, count)]


def write_configurations(folder: Path, configurations: Mapping[str, Splits]) -> None:
    """Write `<configuration>/<split>.jsonl`, and a README.md that declares them."""
    lines = ["---", "configs:"]
    for name, splits in configurations.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        for split, items in splits.items():
            lines += [f"  - split: {split}", f"    path: {name}/{split}.jsonl"]
            path = folder / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(items) + "\n", encoding="utf-8")
    (folder / "README.md").write_text("\n".join([*lines, "---", "# Items", ""]), encoding="utf-8")
