"""Data sets for a local hub: invented items in the layouts and with the columns of the real repositories."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import yaml

Rows = list[dict[str, Any]]

ARC, HELLASWAG, MMLU, WINOGRANDE = "allenai/ai2_arc", "Rowan/hellaswag", "cais/mmlu", "allenai/winogrande"
GSM8K, TRUTHFULQA, GPQA, MUSR = "openai/gsm8k", "truthfulqa/truthful_qa", "Idavidrein/gpqa", "TAUR-Lab/MuSR"
IFEVAL = "google/IFEval"


def arc_rows(split: str, count: int) -> Rows:
    """Questions with three or four choices."""
    return [
        {
            "id": f"{split}-{number}",
            "question": f"Which number follows {number} in the {split} book?",
            "choices": {
                "text": [f"{number + step}" for step in range(1, 4 + number % 2)],
                "label": ["A", "B", "C", "D"][: 3 + number % 2],
            },
            "answerKey": "A",
        }
        for number in range(count)
    ]


def mmlu_rows(subject: str, split: str, count: int) -> Rows:
    """Questions of a subject; the answer is a number."""
    return [
        {
            "question": f"{subject}, {split}: what is {number} + {number}?",
            "subject": subject,
            "choices": [str(2 * number + step) for step in range(4)],
            "answer": number % 4,
        }
        for number in range(count)
    ]


def hellaswag_rows(split: str, count: int) -> Rows:
    """Unfinished texts; the label is a string."""
    return [
        {
            "ind": number,
            "activity_label": "Counting",
            "ctx_a": f"Someone counts to {number} ({split}).",
            "ctx_b": "then they",
            "ctx": f"Someone counts to {number} ({split}). then they",
            "endings": [f"[title] stop at {number}.", "go on.", "forget.", "sleep  well."],
            "source_id": f"invented~{number}",
            "split": split,
            "split_type": "indomain",
            "label": "" if split == "test" else str(number % 4),
        }
        for number in range(count)
    ]


def winogrande_rows(split: str, count: int) -> Rows:
    """Sentences with a blank."""
    return [
        {
            "sentence": f"The cup is {number} cm higher than the plate ({split}) because the _ is tall.",
            "option1": "cup",
            "option2": "plate",
            "answer": str(1 + number % 2),
        }
        for number in range(count)
    ]


def gsm8k_rows(split: str, count: int) -> Rows:
    """Problems with a worked solution."""
    return [
        {
            "question": f"A {split} box has {number} pens. How many have two boxes?",
            "answer": f"Two boxes have 2*{number}=<<2*{number}={2 * number}>>{2 * number} pens.\n#### {2 * number}",
        }
        for number in range(count)
    ]


def truthfulqa_rows(count: int) -> Rows:
    """Questions with one true answer (mc1) and with several (mc2)."""
    return [
        {
            "question": f"Is {number} a number?",
            "mc1_targets": {"choices": ["Yes", "No", "Maybe"][: 2 + number % 2], "labels": [1, 0, 0][: 2 + number % 2]},
            "mc2_targets": {"choices": ["Yes", "It is", "No"], "labels": [1, 1, 0]},
        }
        for number in range(count)
    ]


def gpqa_rows(count: int) -> Rows:
    """Questions whose choices the definition shuffles."""
    wrong = {f"Incorrect Answer {step}": f"wrong {step}" for step in range(1, 4)}
    return [{"Question": f"Hard {n}?", "Correct Answer": f"right {n}", **wrong} for n in range(count)]


def musr_rows(split: str, count: int) -> Rows:
    """Stories with choices in Python's notation."""
    return [
        {
            "narrative": f"Story {number}, with a comma.\nAnd a second line.",
            "question": f"{split}?",
            "choices": "['first', 'second']",
            "answer_index": number % 2,
            "answer_choice": ["first", "second"][number % 2],
        }
        for number in range(count)
    ]


def ifeval_rows(count: int) -> Rows:
    """Instructions with nested arguments."""
    return [
        {
            "key": 1000 + number,
            "prompt": f"Write {number} sentences.",
            "instruction_id_list": ["length_constraints:number_sentences"],
            "kwargs": [{"relation": "at least", "num_sentences": number}],
        }
        for number in range(count)
    ]


def write_parquet(folder: Path, splits: Mapping[str, Rows], features: datasets.Features | None = None) -> None:
    """Write `<split>-00000-of-00001.parquet` for each split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        data = datasets.Dataset.from_list(rows, features=features)
        data.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_readme(folder: Path, configs: Mapping[str, Mapping[str, str]], infos: Sequence[Any] = ()) -> None:
    """Write a README.md whose YAML names the files of each configuration and split."""
    files = [
        {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in splits.items()]}
        for name, splits in configs.items()
    ]
    card = {"configs": files} | ({"dataset_info": list(infos)} if infos else {})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card, sort_keys=False)}---\n# Data\n", encoding="utf-8")


def write_parquet_configs(folder: Path, configs: Mapping[str, Mapping[str, Rows]]) -> None:
    """Write `<config>/<split>-00000-of-00001.parquet`, and a README.md that declares them."""
    for name, splits in configs.items():
        write_parquet(folder / name, splits)
    write_readme(folder, {name: {split: f"{name}/{split}-*" for split in rows} for name, rows in configs.items()})


def write_mmlu(folder: Path, subjects: Sequence[str]) -> None:
    """Write MMLU: one configuration per subject, some declared with features; `answer` is a class label."""
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "subject": datasets.Value("string"),
            "choices": datasets.List(datasets.Value("string")),
            "answer": datasets.ClassLabel(names=["A", "B", "C", "D"]),
        }
    )
    sizes = {"test": 3, "validation": 2, "dev": 5}
    for subject in subjects:
        rows = {split: mmlu_rows(subject, split, count) for split, count in sizes.items()}
        write_parquet(folder / subject, rows, features)
    infos = [
        {
            "config_name": subject,
            "features": features._to_yaml_list(),
            "splits": [{"name": s, "num_bytes": 0, "num_examples": n} for s, n in sizes.items()],
        }
        for subject in subjects[:3]
    ]
    write_parquet(folder / "auxiliary_train", {"train": mmlu_rows("train", "train", 50)}, features)
    configs = {s: {split: f"{s}/{split}-*" for split in sizes} for s in subjects}
    write_readme(folder, {"auxiliary_train": {"train": "auxiliary_train/train-*"}, **configs}, infos)


def write_repositories(root: Path, mmlu_subjects: Sequence[str]) -> None:
    """Write all data sets to `root`/datasets, the folder of a hub or of a mirror."""
    datasets.disable_progress_bars()
    data = root / "datasets"
    arc = {split: arc_rows(split, count) for split, count in (("train", 6), ("test", 7), ("validation", 3))}
    write_parquet_configs(data / ARC, {"ARC-Challenge": arc, "ARC-Easy": {s: rows[:2] for s, rows in arc.items()}})
    write_mmlu(data / MMLU, mmlu_subjects)
    # No README.md: the names of the files determine the splits.
    write_parquet(data / HELLASWAG / "data", {s: hellaswag_rows(s, 5) for s in ("train", "validation", "test")})
    winogrande = {split: winogrande_rows(split, 5) for split in ("train", "validation", "test")}
    write_parquet_configs(data / WINOGRANDE, {"winogrande_xs": winogrande, "winogrande_xl": winogrande})
    gsm8k = {split: gsm8k_rows(split, 6) for split in ("train", "test")}
    write_parquet_configs(data / GSM8K, {"main": gsm8k, "socratic": gsm8k})
    write_parquet_configs(
        data / TRUTHFULQA,
        {"generation": {"validation": [{"question": "?"}]}, "multiple_choice": {"validation": truthfulqa_rows(4)}},
    )
    write_gpqa(data / GPQA)
    write_musr(data / MUSR)
    write_json_lines(data / IFEVAL / "ifeval_input_data.jsonl", ifeval_rows(4))


def write_gpqa(folder: Path) -> None:
    """Write GPQA: one CSV file per configuration."""
    names = ("gpqa_extended", "gpqa_main", "gpqa_diamond")
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        datasets.Dataset.from_list(gpqa_rows(4 - number)).to_csv(str(folder / f"{name}.csv"))
    write_readme(folder, {name: {"train": f"{name}.csv"} for name in names})


def write_musr(folder: Path) -> None:
    """Write MuSR: one configuration whose splits are CSV files."""
    names = ("murder_mysteries", "object_placements", "team_allocation")
    folder.mkdir(parents=True)
    for name in names:
        datasets.Dataset.from_list(musr_rows(name, 3)).to_csv(str(folder / f"{name}.csv"))
    write_readme(folder, {"default": {name: f"{name}.csv" for name in names}})
