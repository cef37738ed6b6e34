"""What scoring costs on the real model: hpcq's transformers back end beside lm-eval's own, on the same items.

SmolLM2-135M in fp32 on one thread. Both back ends hold the same loaded model and take turns, one group of documents
after the other; the ratio of a task is the median of its groups'. Seconds are the processor's, which other work on the
machine changes least. lm-eval is given the batches that suit it best here: of 4 for short prompts, of 1 for long ones
and for text.

No package ships MMLU with its subjects, nor MMLU-Pro: their layouts hold ARC-Challenge's questions here, which are
shorter. Where there are ten choices, they are a question's own and those of the questions after it.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcq.catalog.packages import staged_items, staged_model
from hpcq.environments import create
from hpcq.evaluate.prefix.counts import Counts
from hpcq.evaluate.requests import GENERATE, Request, requests_of
from hpcq.units import EvaluateWork, Model, Scheme, Task, Variant

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
LETTERS = "ABCDEFGHIJ"
OURS, THEIRS = "hpcq", "lm-eval"
MEMORY_OF = "--memory-of"

Group = list[Request]
Item = dict[str, Any]


@dataclass(kw_only=True)
class Case:
    """A task. bar: what its ratio is to reach. groups: requests that are asked at once. batch_size: lm-eval's best.

    counts: tokens, after measuring.
    """

    name: str
    bar: float
    groups: list[Group]
    batch_size: int = 1
    seconds: dict[str, list[float]] = field(default_factory=lambda: {OURS: [], THEIRS: []})
    difference: float = 0.0
    is_equal: bool = True
    counts: Counts = field(default_factory=Counts)

    @property
    def ratio(self) -> float:
        """Of lm-eval's seconds over ours."""
        return statistics.median(
            theirs / ours for theirs, ours in zip(self.seconds[THEIRS], self.seconds[OURS], strict=True)
        )


def real(name: str, *, shots: int, documents: int, tokens: int | None = None) -> list[Group]:
    """The requests of lm-eval's own task, a group a document."""
    from hpcq.evaluate.tasks import build_tasks

    task = Task(name=name, data_path=str(staged_items(name)), limit=documents, num_fewshot=shots, max_gen_toks=tokens)
    [built] = build_tasks([task])
    groups: dict[int, Group] = {}
    for request in built.requests():
        groups.setdefault(request.key.doc_id, []).append(request)
    return list(groups.values())


def laid_out(kind: str, *, choices: int, documents: int) -> list[Group]:
    """One group of questions behind one block of five examples. kind: whether a letter is the answer, or the text."""
    from lm_eval.api.instance import Instance

    with (Path(str(staged_items("arc_challenge"))) / "test.jsonl").open(encoding="utf-8") as lines:
        items: list[Item] = [json.loads(line) for line in lines]
    questions = [_question(items, number, choices) for number in range(5 + documents)]
    answers = [LETTERS[:choices] if kind == "letters" else texts for _, texts, _ in questions]
    head = "The following are multiple choice questions (with answers) about science.\n\n"
    block = head + "".join(f"{questions[number][0]} {answers[number][questions[number][2]]}\n\n" for number in range(5))
    instances = [
        Instance(
            request_type="loglikelihood",
            doc={},
            arguments=(block + questions[number][0], f" {answer}"),
            idx=index,
            metadata=("laid_out", number, 1),
        )
        for number in range(5, 5 + documents)
        for index, answer in enumerate(answers[number])
    ]
    return [list(requests_of(instances, "1"))]


def _question(items: Sequence[Item], number: int, choices: int) -> tuple[str, list[str], int]:
    """Its text with all choices, the choices, and the place of the right one."""
    item = items[number]
    texts = list(item["choices"]["text"])
    following = number
    while len(texts) < choices:
        following += 1
        texts += items[following]["choices"]["text"]
    texts = texts[:choices]
    listed = "".join(f"\n{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
    return f"{item['question']}{listed}\nAnswer:", texts, item["choices"]["label"].index(item["answerKey"])


def cases() -> list[Case]:
    """All that is measured: few documents each, so that the whole takes minutes."""
    winogrande = [request for group in real("winogrande", shots=5, documents=12) for request in group]
    return [
        Case(name="ARC-Challenge, 25 shots", bar=3.5, groups=real("arc_challenge", shots=25, documents=2)),
        Case(name="HellaSwag, 10 shots", bar=3.5, groups=real("hellaswag", shots=10, documents=3)),
        Case(name="WinoGrande, 5 shots", bar=1.0, groups=[winogrande], batch_size=4),
        Case(name="MMLU's layout, 5 shots", bar=5.0, groups=laid_out("letters", choices=4, documents=20)),
        Case(name="ten choices, letters, 5 shots", bar=5.0, groups=laid_out("letters", choices=10, documents=20)),
        Case(name="ten choices, texts, 5 shots", bar=8.0, groups=laid_out("texts", choices=10, documents=2)),
        Case(name="GSM8K, 5 shots, 32 tokens", bar=0.98, groups=real("gsm8k", shots=5, documents=3, tokens=32)),
    ]


def backend() -> Any:
    """The back end as a work makes it, loaded."""
    from hpcq.evaluate.accelerate import AccelerateBackend

    model = str(staged_model(MODEL_ID))
    scheme = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
    variant = Variant(model=Model(id=MODEL_ID, path=model), scheme=scheme)
    made = AccelerateBackend(
        EvaluateWork(
            variant=variant,
            tasks=(),
            backend="accelerate",
            dtype="float32",
            checkpoint_path=model,
            segments_path="",
            device="cpu",
            options=(("prefix_sharing", True),),
        )
    )
    made.load()
    return made


def theirs(made: Any, group: Group, batch_size: int) -> list[Any]:
    """What lm-eval's own back end answers, with the same loaded model."""
    lm = made._lm  # noqa: SLF001
    lm.batch_size_per_gpu = batch_size
    return getattr(lm, group[0].kind)([request.instance for request in group], disable_tqdm=True)


def ours(made: Any, group: Group) -> list[Any]:
    """What hpcq answers, in lm-eval's form."""
    responses = made.answer(group)
    if group[0].kind == GENERATE:
        return [response.text for response in responses]
    return [(response.loglikelihood, response.is_greedy) for response in responses]


def measure(made: Any, case: Case) -> None:
    """Let the two take turns."""
    scorer = made._scorer  # noqa: SLF001
    scorer.counts = Counts()
    for group in case.groups:
        began = time.process_time()
        mine = ours(made, group)
        turned = time.process_time()
        other = theirs(made, group, case.batch_size)
        case.seconds[OURS].append(turned - began)
        case.seconds[THEIRS].append(time.process_time() - turned)
        if group[0].kind == GENERATE:
            case.is_equal &= mine == other
        else:
            case.difference = max(
                case.difference, *(abs(one[0] - two[0]) for one, two in zip(mine, other, strict=True))
            )
            case.is_equal &= [one[1] for one in mine] == [two[1] for two in other]
    case.counts = scorer.counts


def peak_memory_bytes(name: str) -> int:
    """Of a process that loads the model and answers one document of ARC-Challenge as `name` does."""
    command = [sys.executable, __file__, MEMORY_OF, name]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def memory_of(name: str) -> None:
    """Print the peak in this process."""
    made = backend()
    [group] = real("arc_challenge", shots=25, documents=1)
    _ = ours(made, group) if name == OURS else theirs(made, group, 1)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> None:
    """Measure and print the table."""
    made = backend()
    print(made.describe())
    print("tokens: asked for; computed by lm-eval, which shares choices of one token; computed by hpcq")
    print(
        f"{'task':30}{'asked':>8}{'lm-eval':>8}{'hpcq':>6}{'lm-eval s':>11}{'hpcq s':>8}{'ratio':>7}{'bar':>6}  equal"
    )
    for case in cases():
        measure(made, case)
        counts = case.counts
        tokens = f"{counts.asked:8}{counts.lm_eval:8}{counts.computed:6}" if counts.asked else f"{'':22}"
        seconds = f"{sum(case.seconds[THEIRS]):11.1f}{sum(case.seconds[OURS]):8.1f}"
        agreement = f"{case.is_equal}, |Δ| {case.difference:.1e}"
        print(f"{case.name:30}{tokens}{seconds}{case.ratio:7.2f}{case.bar:6.2f}  {agreement}", flush=True)
    for name in (THEIRS, OURS):
        print(f"peak memory of {name}, one document of ARC-Challenge: {peak_memory_bytes(name) / 2**30:.2f} GiB")


if __name__ == "__main__":
    python = create("transformers")
    if Path(sys.executable) != python:
        checkout = str(Path(__file__).resolve().parents[1])
        surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": checkout}
        sys.exit(subprocess.run([str(python), __file__, *sys.argv[1:]], env=surroundings, check=False).returncode)
    if sys.argv[1:2] == [MEMORY_OF]:
        memory_of(sys.argv[2])
    else:
        main()
