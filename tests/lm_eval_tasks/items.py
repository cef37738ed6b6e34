"""Invented items in the layouts and with the columns of the repositories that lm-eval's definitions read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.hub.repositories import write_configurations

Row = Mapping[str, Any]
Make = Callable[[int], Row]

ITEMS = 6
"""Items per split."""
LETTERS = ("A", "B", "C", "D", "E")
_WORDS = ("red", "green", "blue", "small", "large", "old", "new", "round")


def _word(n: int) -> str:
    return _WORDS[n % len(_WORDS)]


def _text(n: int) -> str:
    return f"The {_word(n)} box number {n} has {n + 2} pens and {n % 3} cups"


def _options(n: int, count: int) -> list[str]:
    return [f"{_word(n + step)} thing {n + step}" for step in range(count)]


def _lettered(n: int, count: int = 4) -> Row:
    return dict(zip(LETTERS, _options(n, count), strict=False))


def _glue(label: int, *names: str) -> Make:
    return lambda n: {**{name: f"{_text(n)} ({name})." for name in names}, "label": n % label, "idx": n}


def _mmlu(n: int) -> Row:
    return {"question": f"What is {_text(n)}?", "subject": "s", "choices": _options(n, 4), "answer": n % 4}


def _mmlu_pro(n: int) -> Row:
    return {
        "question": f"What is {_text(n)}?",
        "options": _options(n, 5 + n % 3),
        "answer": LETTERS[n % 5],
        "answer_index": n % 5,
        "category": ("math", "law")[n % 2],
        "cot_content": f"A: Let's think step by step. It is {n}. The answer is ({LETTERS[n % 5]}).",
    }


def _arc(n: int) -> Row:
    count = 3 + n % 2
    return {
        "id": str(n),
        "question": f"{_text(n)}?",
        "choices": {"text": _options(n, count), "label": list(LETTERS[:count])},
        "answerKey": LETTERS[n % count],
    }


def _math(n: int) -> Row:
    return {
        "problem": f"What is ${n} + {n}$?",
        "level": "Level 5",
        "type": ("Algebra", "Geometry")[n % 2],
        "solution": f"It is $\\boxed{{{2 * n}}}$.",
    }


def _gsm8k(n: int) -> Row:
    return {"question": f"{_text(n)}. How many?", "answer": f"{n} + 2 = <<{n}+2={n + 2}>>{n + 2}\n#### {n + 2}"}


def _gpqa(n: int) -> Row:
    wrong = {f"Incorrect Answer {step}": f"wrong {step} of {n}" for step in range(1, 4)}
    return {"Question": f"{_text(n)}?", "Correct Answer": f"right {n}", **wrong}


def _musr(n: int) -> Row:
    return {
        "narrative": f"{_text(n)}.\nA second line.",
        "question": "Who is it?",
        "choices": "['first', 'second', 'third']",
        "answer_index": n % 3,
        "answer_choice": ("first", "second", "third")[n % 3],
    }


def _ifeval(n: int) -> Row:
    return {
        "key": 1000 + n,
        "prompt": f"Write {n + 1} sentences.",
        "instruction_id_list": ["length_constraints:number_sentences"],
        "kwargs": [{"relation": "at least", "num_sentences": n + 1}],
    }


def _ceval(n: int) -> Row:
    return {"id": n, "question": f"第{n}题:{_text(n)}?", **_lettered(n), "answer": LETTERS[n % 4]}


def _drop(n: int) -> Row:
    answer = {
        "number": str(n),
        "date": {"day": "", "month": "", "year": ""},
        "spans": [],
        "worker_id": "w",
        "hit_id": "h",
    }
    many = {
        "number": [str(n)],
        "date": [{"day": "", "month": "", "year": ""}],
        "spans": [[]],
        "worker_id": ["w"],
        "hit_id": ["h"],
    }
    return {
        "query_id": str(n),
        "section_id": "s",
        "passage": f"{_text(n)}.",
        "question": "How many?",
        "answer": answer,
        "validated_answers": many,
    }


def _headqa(n: int) -> Row:
    answers = [{"aid": step + 1, "atext": text} for step, text in enumerate(_options(n, 4))]
    return {"qtext": f"{_text(n)}?", "ra": n % 4 + 1, "answers": answers}


def _wsc(n: int) -> Row:
    return {
        "text": f"The cup fits in box {n} because it is small.",
        "span1_index": 1,
        "span2_index": 7,
        "span1_text": "cup",
        "span2_text": "it",
        "label": n % 2,
    }


def _race(n: int) -> Row:
    problems = [
        {"question": f"What is {number}?", "answer": LETTERS[number % 4], "options": _options(number, 4)}
        for number in range(2)
    ]
    return {"article": f"{_text(n)}.", "problems": json.dumps(problems)}


def _asdiv(n: int) -> Row:
    return {"body": f"{_text(n)}.", "question": "How many?", "solution_type": "Sum", "answer": f"{n} (pens)"}


def _storycloze(n: int) -> Row:
    sentences = {f"input_sentence_{step}": f"{_text(n + step)}." for step in range(1, 5)}
    return {
        **sentences,
        "sentence_quiz1": "It ends.",
        "sentence_quiz2": "It goes on.",
        "answer_right_ending": n % 2 + 1,
    }


def _winograd(n: int) -> Row:
    return {
        "sentence": f"{_text(n)} because the _ is tall.",
        "option1": "box",
        "option2": "cup",
        "answer": str(n % 2 + 1),
    }


def _hellaswag(n: int) -> Row:
    return {
        "ind": n,
        "activity_label": "Counting",
        "ctx_a": f"{_text(n)}.",
        "ctx_b": "then they",
        "ctx": f"{_text(n)}. then they",
        "endings": _options(n, 4),
        "label": str(n % 4),
    }


def _truthfulqa(n: int) -> Row:
    return {
        "question": f"Is {n} a number?",
        "mc1_targets": {"choices": ["Yes", "No", "Maybe"], "labels": [1, 0, 0]},
        "mc2_targets": {"choices": ["Yes", "It is", "No"], "labels": [1, 1, 0]},
    }


def _pubmedqa(n: int) -> Row:
    context = {"contexts": [f"{_text(n)}."], "labels": ["A"], "meshes": [], "reasoning_required_pred": ["y"]}
    return {
        "QUESTION": f"{_text(n)}?",
        "CONTEXTS": context["contexts"],
        "final_decision": ("yes", "no", "maybe")[n % 3],
    }


def _logiqa(n: int) -> Row:
    return {"context": f"{_text(n)}.", "question": "Which?", "options": _options(n, 4), "label": "abcd"[n % 4]}


def _coqa(n: int) -> Row:
    questions = {"input_text": ["How many?"], "turn_id": [1]}
    answers = {"input_text": [str(n)], "span_start": [0], "span_end": [1], "span_text": [str(n)], "turn_id": [1]}
    return {"id": str(n), "story": f"{_text(n)}.", "questions": questions, "answers": answers, "additional_answers": {}}


def _splits(make: Make, *names: str, count: int = ITEMS) -> dict[str, list[Row]]:
    """Return different items for each split, and the same columns."""
    return {name: [make(number + 20 * at) for number in range(count)] for at, name in enumerate(names)}


_TRAIN_VALIDATION = ("train", "validation")
_ALL = ("train", "validation", "test")


def _humaneval(n: int) -> Row:
    """A function; every second one is complete, and stays correct with any text after its last line."""
    end = "    return 1  # " if n % 2 else ""
    return {
        "task_id": f"T/{n}",
        "prompt": f'def f{n}():\n    """Return 1."""\n{end}',
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
        "entry_point": f"f{n}",
    }


_BLIMP: Make = lambda n: {"sentence_good": f"{_text(n)}.", "sentence_bad": f"{_text(n)} are."}  # noqa: E731

# Repository: configuration: splits.
REPOSITORIES: dict[str, dict[str, dict[str, list[Row]]]] = {
    "baber/piqa": {
        "default": _splits(
            lambda n: {"goal": f"{_text(n)}:", "sol1": _word(n), "sol2": f"not {_word(n)} at all", "label": n % 2},
            *_TRAIN_VALIDATION,
        )
    },
    "allenai/sciq": {
        "default": _splits(
            lambda n: {
                "question": f"{_text(n)}?",
                "support": f" {_text(n)}.",
                **{f"distractor{step}": text for step, text in enumerate(_options(n, 3), start=1)},
                "correct_answer": _word(n + 5),
            },
            *_ALL,
        )
    },
    "allenai/openbookqa": {
        "main": _splits(
            lambda n: {"question_stem": _text(n), **{k: _arc(n)[k] for k in ("choices", "answerKey")}}, *_ALL
        )
    },
    "allenai/ai2_arc": {"ARC-Challenge": _splits(_arc, *_ALL), "ARC-Easy": _splits(_arc, *_ALL)},
    "aps/super_glue": {
        "boolq": _splits(_glue(2, "passage", "question"), *_TRAIN_VALIDATION),
        "cb": _splits(_glue(3, "premise", "hypothesis"), *_TRAIN_VALIDATION),
        "copa": _splits(
            lambda n: {
                "premise": f"{_text(n)}.",
                "choice1": f"{_text(n + 1)}.",
                "choice2": f"{_text(n + 2)}.",
                "question": ("cause", "effect")[n % 2],
                "label": n % 2,
            },
            *_TRAIN_VALIDATION,
        ),
        "rte": _splits(_glue(2, "premise", "hypothesis"), *_TRAIN_VALIDATION),
        "wic": _splits(
            lambda n: {**_glue(2, "sentence1", "sentence2")(n), "start1": 4, "end1": 8, "word": "box"},
            *_TRAIN_VALIDATION,
        ),
        "wsc.fixed": _splits(_wsc, *_TRAIN_VALIDATION),
    },
    "nyu-mll/glue": {
        "cola": _splits(_glue(2, "sentence"), *_TRAIN_VALIDATION),
        "mnli": _splits(_glue(3, "premise", "hypothesis"), "train", "validation_matched", "validation_mismatched"),
        "mrpc": _splits(_glue(2, "sentence1", "sentence2"), *_TRAIN_VALIDATION),
        "qnli": _splits(_glue(2, "question", "sentence"), *_TRAIN_VALIDATION),
        "qqp": _splits(_glue(2, "question1", "question2"), *_TRAIN_VALIDATION),
        "rte": _splits(_glue(2, "sentence1", "sentence2"), *_TRAIN_VALIDATION),
        "sst2": _splits(_glue(2, "sentence"), *_TRAIN_VALIDATION),
        "wnli": _splits(_glue(2, "sentence1", "sentence2"), *_TRAIN_VALIDATION),
    },
    "tau/commonsense_qa": {
        "default": _splits(
            lambda n: {
                "question": f"{_text(n)}?",
                "choices": {"label": list(LETTERS), "text": _options(n, 5)},
                "answerKey": LETTERS[n % 5],
            },
            *_TRAIN_VALIDATION,
        )
    },
    "EleutherAI/logiqa": {"logiqa": _splits(_logiqa, *_ALL)},
    "lighteval/siqa": {
        "default": _splits(
            lambda n: {
                "context": f"{_text(n)}.",
                "question": "Why?",
                **dict(zip(("answerA", "answerB", "answerC"), _options(n, 3), strict=True)),
                "label": str(n % 3 + 1),
            },
            *_TRAIN_VALIDATION,
        )
    },
    "allenai/swag": {
        "regular": _splits(
            lambda n: {
                "startphrase": _text(n),
                **{f"ending{step}": text for step, text in enumerate(_options(n, 4))},
                "label": n % 4,
            },
            *_TRAIN_VALIDATION,
        )
    },
    "openlifescienceai/medmcqa": {
        "default": _splits(
            lambda n: {
                "question": f"{_text(n)}?",
                **dict(zip(("opa", "opb", "opc", "opd"), _options(n, 4), strict=True)),
                "cop": n % 4,
            },
            *_TRAIN_VALIDATION,
        )
    },
    "bigbio/pubmed_qa": {"pubmed_qa_labeled_fold0_source": _splits(_pubmedqa, *_ALL)},
    "EleutherAI/headqa": {"en": _splits(_headqa, *_ALL)},
    "EleutherAI/lambada_openai": {
        "default": _splits(lambda n: {"text": f"{_text(n)} in the house"}, "test"),
        "de": _splits(lambda n: {"text": f"Die Kiste {n} steht im Haus"}, "test"),
    },
    "cimec/lambada": {"default": _splits(lambda n: {"text": f"{_text(n)} on the table"}, "validation", "test")},
    "EleutherAI/wikitext_document_level": {
        "wikitext-2-raw-v1": _splits(lambda n: {"page": f" = {_word(n)} = \n\n {_text(n)} . \n" * (n + 1)}, *_ALL)
    },
    "NeelNanda/pile-10k": {"default": _splits(lambda n: {"text": f"{_text(n)}. " * (n + 1)}, "train")},
    "allenai/paloma": {
        "c4_100_domains": _splits(lambda n: {"text": f"{_text(n)}. " * (n + 1), "subdomain": "s"}, "val", "test")
    },
    "mandarjoshi/trivia_qa": {
        "rc.nocontext": _splits(
            lambda n: {"question": f"{_text(n)}", "answer": {"aliases": [_word(n), str(n)], "value": _word(n)}},
            *_TRAIN_VALIDATION,
        )
    },
    "google-research-datasets/nq_open": {
        "default": _splits(lambda n: {"question": _text(n), "answer": [_word(n), str(n)]}, *_TRAIN_VALIDATION)
    },
    "stanfordnlp/web_questions": {
        "default": _splits(lambda n: {"question": f"{_text(n)}?", "answers": _options(n, 2)}, "train", "test")
    },
    "EleutherAI/drop": {"default": _splits(_drop, *_TRAIN_VALIDATION)},
    "facebook/anli": {
        "default": _splits(
            _glue(3, "premise", "hypothesis"),
            *(f"{split}_r{number}" for number in range(1, 4) for split in ("train", "dev", "test")),
        )
    },
    "nyu-mll/blimp": {
        name: _splits(_BLIMP, "train")
        for name in ("adjunct_island", "anaphor_gender_agreement", "causative", "passive_1")
    },
    "EleutherAI/asdiv": {"default": _splits(_asdiv, "validation")},
    "EleutherAI/race": {"high": _splits(_race, "test")},
    "EleutherAI/unscramble": {
        name: _splits(lambda n: {"context": f"Unscramble {_word(n)[::-1]}:\n", "completion": _word(n)}, "validation")
        for name in (
            "mid_word_1_anagrams",
            "mid_word_2_anagrams",
            "cycle_letters_in_word",
            "random_insertion_in_word",
            "reversed_words",
        )
    },
    "EleutherAI/hendrycks_ethics": {
        "commonsense": _splits(_glue(2, "input"), "train", "test"),
        "justice": _splits(_glue(2, "scenario"), "train", "test"),
        "virtue": _splits(_glue(2, "scenario", "trait"), "train", "test"),
    },
    "cambridgeltl/xcopa": {
        "et": _splits(
            lambda n: {
                "premise": f"{_text(n)}.",
                "choice1": f"{_text(n + 1)}.",
                "choice2": f"{_text(n + 2)}.",
                "question": ("cause", "effect")[n % 2],
                "label": n % 2,
            },
            "validation",
            "test",
        )
    },
    "facebook/xnli": {"en": _splits(_glue(3, "premise", "hypothesis"), *_TRAIN_VALIDATION)},
    "juletxara/xstory_cloze": {"en": _splits(_storycloze, "train", "eval")},
    "Muennighoff/xwinograd": {"en": _splits(_winograd, "test")},
    "juletxara/mgsm": {
        "en": _splits(
            lambda n: {
                "question": f"Question: {_text(n)}. How many?",
                "answer": f"Step-by-Step Answer: It is {n}. The answer is {n}.",
                "answer_number": n,
                "equation_solution": "",
            },
            "train",
            "test",
        )
    },
    "TIGER-Lab/MMLU-Pro": {"default": _splits(_mmlu_pro, "test", "validation", count=16)},
    "haonan-li/cmmlu": {
        "agronomy": _splits(
            lambda n: {"Question": f"{_text(n)}?", **_lettered(n), "Answer": LETTERS[n % 4]}, "test", "dev"
        )
    },
    "openai/openai_humaneval": {"openai_humaneval": _splits(_humaneval, "test")},
    "Idavidrein/gpqa": {name: _splits(_gpqa, "train") for name in ("gpqa_main", "gpqa_extended", "gpqa_diamond")},
    "TAUR-Lab/MuSR": {"default": _splits(_musr, "murder_mysteries", "object_placements", "team_allocation")},
    "wis-k/instruction-following-eval": {"default": _splits(_ifeval, "train")},
    "google/IFEval": {"default": _splits(_ifeval, "train")},
    "openai/gsm8k": {"main": _splits(_gsm8k, "train", "test")},
    "EleutherAI/hendrycks_math": {name: _splits(_math, "train", "test") for name in ("algebra", "geometry")},
    "DigitalLearningGmbH/MATH-lighteval": {
        name: _splits(_math, "train", "test")
        for name in (
            "algebra",
            "counting_and_probability",
            "geometry",
            "intermediate_algebra",
            "number_theory",
            "prealgebra",
            "precalculus",
        )
    },
    "Rowan/hellaswag": {"default": _splits(_hellaswag, *_TRAIN_VALIDATION)},
    "allenai/winogrande": {"winogrande_xl": _splits(_winograd, *_TRAIN_VALIDATION)},
    "truthfulqa/truthful_qa": {"multiple_choice": _splits(_truthfulqa, "validation")},
    "Muennighoff/babi": {
        "default": _splits(
            lambda n: {"passage": f"{_text(n)}.\n", "question": "How many?", "answer": str(n)}, "train", "valid", "test"
        )
    },
    "CogComp/mc_taco": {
        "default": _splits(
            lambda n: {"sentence": f"{_text(n)}.", "question": "When?", "answer": _word(n), "label": n % 2},
            "validation",
            "test",
        )
    },
    "hails/agieval-aqua-rat": {
        "default": _splits(lambda n: {"query": f"{_text(n)}?", "choices": _options(n, 5), "gold": [n % 5]}, "test")
    },
    "skt/kobest_v1": {"boolq": _splits(_glue(2, "paragraph", "question"), *_ALL)},
    "Maxwell-Jia/AIME_2024": {
        "default": _splits(lambda n: {"ID": str(n), "Problem": f"{_text(n)}. How many?", "Answer": n}, "train")
    },
    "inverse-scaling/hindsight-neglect-10shot": {
        "default": _splits(lambda n: {"prompt": f"{_text(n)}", "classes": [" Y", " N"], "answer_index": n % 2}, "train")
    },
    "pbevan11/EQ-Bench": {
        "default": _splits(
            lambda n: {
                "prompt": f"{_text(n)}.",
                "reference_answer_fullscale": str(
                    {f"emotion{k}": _word(n + k) for k in range(1, 5)} | {f"emotion{k}_score": k for k in range(1, 5)}
                ),
            },
            "validation",
        )
    },
    "ofir408/MedConceptsQA": {
        "icd9cm_easy": _splits(lambda n: {"question": f"{_text(n)}?", "answer_id": LETTERS[n % 4]}, "dev", "test")
    },
    "hazyresearch/based-squad": {
        "default": _splits(lambda n: {"doc_id": str(n), "text": f"{_text(n)} is", "value": _word(n)}, "validation")
    },
}


def write_repositories(root: Path, layout: Mapping[str, Any]) -> None:
    """Write all repositories to `root`/datasets.

    Args:
        root: Folder of a hub or of a mirror.
        layout: Configurations of data sets with many equal ones (`lm_eval_program.layout`).
    """
    for repo, configurations in REPOSITORIES.items():
        _write(root / "datasets" / repo, configurations)
    _write(root / "datasets" / "cais/mmlu", {name: _splits(_mmlu, "test", "dev") for name in layout["cais/mmlu"]})
    names = layout["ceval/ceval-exam"]
    _write(root / "datasets" / "ceval/ceval-exam", {name: _splits(_ceval, "val", "dev") for name in names})
    bbh = {
        name: {"test": [{"input": f"{_text(n)}?", "target": choices[n % len(choices)]} for n in range(ITEMS)]}
        for name, choices in layout["SaylorTwift/bbh"].items()
    }
    _write(root / "datasets" / "SaylorTwift/bbh", bbh)


def _write(folder: Path, configurations: Mapping[str, Mapping[str, list[Row]]]) -> None:
    lines = {
        name: {split: [json.dumps(row, ensure_ascii=False) for row in rows] for split, rows in splits.items()}
        for name, splits in configurations.items()
    }
    write_configurations(folder, lines)
