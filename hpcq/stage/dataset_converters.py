"""Convert packaged benchmark records to the documents that lm-eval 0.4.13's own task definitions read.

Pure functions from a package's records to splits. Field names are those of the data sets on the hub.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Record = dict[str, Any]
Splits = dict[str, list[Record]]

TRAIN_DOCUMENTS = 128
HELLASWAG_TRAIN_STEP = 5


def arc_challenge(records: list[Record]) -> Splits:
    """Convert ARC-Challenge; the last 128 records become training documents."""
    documents = [
        {
            "id": record["task_id"],
            "question": record["question"],
            "choices": {"text": record["choices"], "label": record["labels"]},
            "answerKey": record["answer"],
        }
        for record in records
    ]
    return {"test": documents[:-TRAIN_DOCUMENTS], "train": documents[-TRAIN_DOCUMENTS:]}


def hellaswag(records: list[Record]) -> Splits:
    """Convert HellaSwag; every fifth record becomes a training document, so that both of its sources are included."""
    documents = []
    for record in records:
        ctx_a, ctx_b = split_context(record["ctx"])
        documents.append(
            {
                "ind": int(record["id"].rsplit("-", 1)[1]),
                "activity_label": record["activity_label"],
                "ctx_a": ctx_a,
                "ctx_b": ctx_b,
                "ctx": record["ctx"],
                "endings": record["endings"],
                "label": str(record["expected_index"]),
            }
        )
    train = documents[HELLASWAG_TRAIN_STEP - 1 :: HELLASWAG_TRAIN_STEP]
    return {"validation": [document for document in documents if document not in train], "train": train}


def split_context(context: str) -> tuple[str, str]:
    """Split a HellaSwag context into its complete sentences and the unfinished last one, which may be empty.

    ActivityNet's contexts end with an unfinished sentence in lower case ('… on a roof. he'), WikiHow's with a complete
    one.
    """
    if re.search(r"[.!?]$", context):
        return context, ""
    *_, end = re.finditer(r"[.!?](?= )", context)
    return context[: end.end()], context[end.end() + 1 :]


def winogrande(records: list[Record]) -> Splits:
    """Convert WinoGrande; the last 128 records become training documents."""
    documents = [
        {
            "sentence": record["sentence"],
            "option1": record["choices"][0],
            "option2": record["choices"][1],
            "answer": str(record["labels"].index(record["answer"]) + 1),
        }
        for record in records
    ]
    return {"validation": documents[:-TRAIN_DOCUMENTS], "train": documents[-TRAIN_DOCUMENTS:]}


def truthfulqa_mc1(records: list[Record]) -> Splits:
    """Convert TruthfulQA with one true choice. It is the first, because the task's definition expects choice 0."""
    return {
        "validation": [
            {
                "question": record["question"],
                "mc1_targets": {
                    "choices": record["choices"],
                    "labels": [int(label == record["answer"]) for label in record["labels"]],
                },
            }
            for record in records
        ]
    }


def gsm8k(records: list[Record], solved: list[Record]) -> Splits:
    """Convert GSM8K.

    Args:
        records: Questions with the final number as the answer. They become test documents, except those in `solved`.
            This does not affect scores: the metric removes everything before '#### ' from the target.
        solved: Questions with the reasoning. They become training documents.
    """
    train = {record["prompt"]: record["upstream_answer"] for record in solved}
    return {
        "test": [
            {"question": record["question"], "answer": f"#### {record['answer']}"}
            for record in records
            if record["question"] not in train
        ],
        "train": [{"question": question, "answer": answer} for question, answer in train.items()],
    }


def ifeval(records: list[Record]) -> Splits:
    """Convert IFEval; its only split is 'train'."""
    return {
        "train": [
            {
                "key": int(record["task_id"].rsplit("/", 1)[1]),
                "prompt": record["prompt"],
                "instruction_id_list": record["instruction_id_list"],
                "kwargs": record["kwargs"],
            }
            for record in records
        ]
    }


CONVERTERS: Mapping[str, Callable[..., Splits]] = {
    "arc_challenge": arc_challenge,
    "gsm8k": gsm8k,
    "hellaswag": hellaswag,
    "ifeval": ifeval,
    "truthfulqa_mc1": truthfulqa_mc1,
    "winogrande": winogrande,
}
"""Converter of each data set of packages.toml. Arguments: the records of each of its sources, in order."""
