"""How packaged benchmark items become the documents that lm-eval 0.4.13's own task definitions read.

Pure functions from a package's records to splits; knows no files. Field names are those of the data sets on the hub.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Record = dict[str, Any]
Splits = dict[str, list[Record]]

HELD_OUT = 128
HELLASWAG_STEP = 5


def arc_challenge(records: list[Record]) -> Splits:
    """ARC-Challenge: the last 128 are training documents."""
    documents = [
        {
            "id": record["task_id"],
            "question": record["question"],
            "choices": {"text": record["choices"], "label": record["labels"]},
            "answerKey": record["answer"],
        }
        for record in records
    ]
    return {"test": documents[:-HELD_OUT], "train": documents[-HELD_OUT:]}


def hellaswag(records: list[Record]) -> Splits:
    """HellaSwag: every fifth is a training document, so that both of its sources are among them."""
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
    train = documents[HELLASWAG_STEP - 1 :: HELLASWAG_STEP]
    return {"validation": [document for document in documents if document not in train], "train": train}


def split_context(context: str) -> tuple[str, str]:
    """A HellaSwag context as its whole sentences and the beginning of the unfinished one, if any.

    ActivityNet's contexts end in a beginning in lower case ('… on a roof. he'), WikiHow's with a whole sentence.
    """
    if re.search(r"[.!?]$", context):
        return context, ""
    *_, end = re.finditer(r"[.!?](?= )", context)
    return context[: end.end()], context[end.end() + 1 :]


def winogrande(records: list[Record]) -> Splits:
    """WinoGrande: the last 128 are training documents."""
    documents = [
        {
            "sentence": record["sentence"],
            "option1": record["choices"][0],
            "option2": record["choices"][1],
            "answer": str(record["labels"].index(record["answer"]) + 1),
        }
        for record in records
    ]
    return {"validation": documents[:-HELD_OUT], "train": documents[-HELD_OUT:]}


def truthfulqa_mc1(records: list[Record]) -> Splits:
    """TruthfulQA with one true choice, which stands first: the task's definition says that its answer is choice 0."""
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
    """GSM8K: those `solved` with their reasoning are training documents; the others have the final number alone.

    Scores do not suffer: the metric drops everything before '#### ' from the target.
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
    """IFEval: its only split is called 'train'."""
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


LAYOUTS: Mapping[str, Callable[..., Splits]] = {
    "arc_challenge": arc_challenge,
    "gsm8k": gsm8k,
    "hellaswag": hellaswag,
    "ifeval": ifeval,
    "truthfulqa_mc1": truthfulqa_mc1,
    "winogrande": winogrande,
}
"""By the data set's name in packages.toml; each takes the records of its sources, in order."""
