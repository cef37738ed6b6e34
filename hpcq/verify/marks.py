"""Marks: warnings about scores, and reasons why scores are withheld, derived from the facts that workers recorded.

Facts are recorded where they are known: a backend's `describe` (attributes of segments), a quantizer's `hpcq.json`, and
the responses themselves.

To add a mark, add one member to `MarkKind`. All outputs and docs/trust.md follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from enum import Enum
from typing import Any, NamedTuple

from hpcq.core.frozen import dataclass

Fact = str | int | float | bool

MIN_EQUAL_TEXTS = 4
"""Smallest number of equal texts that is counted: fewer can be a coincidence."""


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """Counts of the responses to one task, or of all members of a group of tasks.

    Attributes:
        responses: All stored responses.
        not_finite: Log-likelihoods that are NaN, infinite, or of a probability above one.
        cut_prompts: Prompts from which tokens were removed.
        max_cut_tokens: The most tokens that were removed from a prompt.
        unknown_prompts: Responses without a record of whether their prompts were cut.
        texts: Generated texts.
        empty_texts: Generated texts without a visible character.
        equal_texts: Generated texts of tasks in which all of them, at least `MIN_EQUAL_TEXTS`, are the same.
        undefined_scores: Metrics that are NaN or infinite although all responses are finite.
        items: Items of a task with few-shot examples.
        shown_items: Those whose prompt has the item itself among the examples.
        items_with_choices: Items of a multiple-choice task.
        unlabeled_items: Those whose label is none of their choices.
        compared_items: Items that were compared with the calibration text.
        calibration_items: Those that share 13 consecutive words with it.
    """

    responses: int = 0
    not_finite: int = 0
    cut_prompts: int = 0
    max_cut_tokens: int = 0
    unknown_prompts: int = 0
    texts: int = 0
    empty_texts: int = 0
    equal_texts: int = 0
    undefined_scores: int = 0
    items: int = 0
    shown_items: int = 0
    items_with_choices: int = 0
    unlabeled_items: int = 0
    compared_items: int = 0
    calibration_items: int = 0


@dataclass(frozen=True, kw_only=True)
class VariantFacts:
    """Recorded facts about the computation of a variant's responses.

    Attributes:
        segments: Attributes of each segment, with what its backend's `describe` returned.
        checkpoint: Content of the checkpoint's `hpcq.json`; empty for a checkpoint that hpcq did not create.
        tasks: Counts by task, and by group of tasks.
    """

    segments: Sequence[Mapping[str, Fact]] = ()
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[str, TaskFacts] = field(default_factory=dict)

    def values(self, name: str) -> list[Fact]:
        """Return the distinct values of an attribute of the segments, sorted; segments without it are skipped."""
        return sorted({segment[name] for segment in self.segments if name in segment}, key=str)


class Finding(NamedTuple):
    """One occurrence of a mark.

    Attributes:
        detail: What was found, with numbers and units, as the end of a sentence: '12 of 40 prompts'.
        task: The task, or group of tasks, that it concerns; '' if it concerns all tasks of the variant.
        affected: Number of responses or layers that it concerns; None if it cannot be counted.
        total: Number of all responses or layers; None if it is unknown.
    """

    detail: str
    task: str = ""
    affected: int | None = None
    total: int | None = None


def share_text(count: int, total: int, noun: str) -> str:
    """Return a count with its share: '12 of 40 prompts (30 %)'."""
    share = f" ({100 * count / total:.3g} %)" if total else ""
    return f"{count} of {total} {noun}{share}"


Find = Callable[[VariantFacts], Iterable[Finding]]
Count = Callable[[TaskFacts], int]


def per_task(count: Count, text: str, *, total: Count = lambda task: task.responses) -> Find:
    """Return a function that finds the tasks for which `count` is not zero.

    Args:
        count: Returns the number of affected responses (or metrics) of a task.
        text: The finding. It may contain {count}, {total}, the fields of {task} (`TaskFacts`), and {prompts}: number,
            total and share of the prompts.
        total: Returns the number of all of them.
    """

    def find(facts: VariantFacts) -> Iterator[Finding]:
        for name, task in facts.tasks.items():
            if found := count(task):
                of = total(task)
                prompts = share_text(found, of, "prompts")
                yield Finding(text.format(count=found, total=of, task=task, prompts=prompts), name, found, of)

    return find


def segment_text(name: str) -> Find:
    """Return a function that finds each text, other than '', that segments have in the attribute `name`."""
    return lambda facts: (Finding(str(value)) for value in facts.values(name) if value)


def checkpoint_count(count: Sequence[str], total: Sequence[str], noun: str) -> Find:
    """Return a function that finds a number in `hpcq.json` that is not zero.

    Args:
        count: Path of keys to the number, outermost first.
        total: Path of keys to the total.
        noun: What is counted, in the plural: 'experts'.
    """

    def find(facts: VariantFacts) -> Iterator[Finding]:
        found, of = _nested(facts.checkpoint, count), _nested(facts.checkpoint, total)
        if found:
            yield Finding(f"{found} of {of} {noun}" if of is not None else f"{found} {noun}", "", found, of)

    return find


def _fallbacks(facts: VariantFacts) -> Iterator[Finding]:
    """Find layers that were quantized by a simpler method than the scheme's (hpcq/quantize/fallbacks.py)."""
    nouns = {"gptq": "layers rounded to nearest instead of GPTQ", "awq": "groups of layers not scaled by AWQ"}
    for method, noun in nouns.items():
        yield from checkpoint_count(("fallbacks", method, "layers"), ("fallbacks", method, "of"), noun)(facts)


def _rounding(facts: VariantFacts) -> Iterator[Finding]:
    """Find the largest difference between equivalent computations of a log-likelihood that exceeds usual rounding."""
    found = [
        largest
        for segment in facts.segments
        if "prefix_sharing_tolerance" in segment
        and not (largest := max(float(segment["prefix_sharing_difference"]), float(segment["batch_difference"])))
        <= float(segment["prefix_sharing_tolerance"])
    ]
    if found:
        yield Finding(f"by up to {max(found):.2g} nats")


def _batches(facts: VariantFacts) -> Iterator[Finding]:
    """Find tasks whose texts were generated in batches of several sizes."""
    sizes = sorted({int(value) for value in facts.values("generation_batch")})
    if len(sizes) > 1:
        detail = f"batches of {', '.join(map(str, sizes))} prompts"
        yield from (Finding(detail, task) for task, of_task in facts.tasks.items() if of_task.texts)


def _ignored_generation_settings(facts: VariantFacts) -> Iterator[Finding]:
    """Find the ignored generation settings, for each task with generated text."""
    for value in facts.values("ignored_generation_settings"):
        if value:
            yield from (Finding(str(value), task) for task, of_task in facts.tasks.items() if of_task.texts)


def _nested(document: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    value: Any = document
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, int) else None


@dataclass(frozen=True, kw_only=True)
class MarkRule:
    """Meaning of a kind of mark, and the function that finds it.

    Attributes:
        symbol: A capital letter or '?', shown after a score or a variant in tables.
        label: A few words, the beginning of a note: 'prompts cut'.
        meaning: Sentences for docs/trust.md: what the mark means for the score, and what to do.
        find: Finds it in the facts of a variant.
        withholds_score: Whether a task with it has no score, or not all scores.
    """

    symbol: str
    label: str
    meaning: str
    find: Find = lambda _: ()
    withholds_score: bool = False


class MarkKind(Enum):
    """All kinds of marks. Results and JSON documents have the name in lower case."""

    NOT_FINITE = MarkRule(
        symbol="N",
        label="NaN or infinite log-likelihoods",
        meaning="The task has no score. The model's activations overflowed (usually in float16: use bfloat16), or its"
        " weights are damaged. Only responses of earlier versions have this mark, because in this version the unit"
        " fails.",
        find=per_task(lambda task: task.not_finite, "{count} of {total} responses"),
        withholds_score=True,
    )
    UNDEFINED_SCORE = MarkRule(
        symbol="V",
        label="metric without a value",
        meaning="The value that lm-eval's metric returns for these responses is NaN or infinite, so the metric has no"
        " score.",
        find=per_task(lambda task: task.undefined_scores, "{count} metrics", total=lambda task: task.undefined_scores),
        withholds_score=True,
    )
    PROMPTS_CUT = MarkRule(
        symbol="C",
        label="prompts cut from the left",
        meaning="Prompt and answer did not fit the model's maximum length, so the model has not read the beginning of"
        " the prompt, such as instructions and few-shot examples. The mark states the share. One cut prompt is enough"
        " for it: no share is known to be harmless, because a task can lose all its instructions with few tokens."
        " `hpcq report --verbose` lists the items. Increase evaluate.max_length if the model permits it, or use fewer"
        " few-shot examples.",
        find=per_task(lambda task: task.cut_prompts, "{prompts}, by up to {task.max_cut_tokens} tokens"),
    )
    CUT_UNKNOWN = MarkRule(
        symbol="U",
        label="unknown whether prompts were cut",
        meaning="The backend does not count the prompts that it cuts, or an earlier version of hpcq stored the"
        " responses.",
        find=per_task(lambda task: task.unknown_prompts, "{count} of {total} prompts"),
    )
    EMPTY_TEXTS = MarkRule(
        symbol="E",
        label="empty answers",
        meaning="More than half of the generated texts are empty. Often the reason is a chat template, a stop sequence"
        " or a tokenizer that does not fit the model.",
        find=per_task(
            lambda task: task.empty_texts if 2 * task.empty_texts > task.texts else 0,
            "{count} of {total} generated texts",
            total=lambda task: task.texts,
        ),
    )
    EQUAL_TEXTS = MarkRule(
        symbol="S",
        label="the same answer to every prompt",
        meaning="All generated texts are the same. A model whose answers do not depend on the prompt is usually"
        " damaged.",
        find=per_task(
            lambda task: task.equal_texts, "{count} of {total} generated texts", total=lambda task: task.texts
        ),
    )
    APPENDED_TOKENS = MarkRule(
        symbol="T",
        label="the tokenizer appends tokens to every text",
        meaning="The model has read these tokens, usually an end token, between each prompt and its answer, and the"
        " first token of the answer was not scored. lm-eval does the same. Log-likelihoods are lower by many nats. Set"
        " evaluate.add_eos = false, unless the model was trained so.",
        find=segment_text("appended_tokens"),
    )
    REPEATED_ITEMS = MarkRule(
        symbol="I",
        label="few-shot examples that contain the item itself",
        meaning="The examples in the prompt show the question, with its answer, that the model is asked. The data set"
        " has the item twice, or the task takes its examples from the evaluated items.",
        find=per_task(lambda task: task.shown_items, "{count} of {total} items", total=lambda task: task.items),
    )
    NO_LABELS = MarkRule(
        symbol="H",
        label="no item has a label",
        meaning="The task has no score. The label of every item is none of its choices, because the data set hides the"
        " labels of this split. lm-eval would count every answer as wrong. Use a split with labels.",
        find=per_task(
            lambda task: task.unlabeled_items if task.unlabeled_items == task.items_with_choices else 0,
            "{count} of {total} items",
            total=lambda task: task.items_with_choices,
        ),
        withholds_score=True,
    )
    WRONG_LABELS = MarkRule(
        symbol="W",
        label="items whose label is none of their choices",
        meaning="As by lm-eval, every answer to these items counts as wrong, so the score is too low. Correct the"
        " items, or leave them out.",
        find=per_task(
            lambda task: task.unlabeled_items if task.unlabeled_items < task.items_with_choices else 0,
            "{count} of {total} items",
            total=lambda task: task.items_with_choices,
        ),
    )
    FALLBACKS = MarkRule(
        symbol="F",
        label="layers not quantized by the scheme's method",
        meaning="The quantizer could not use the scheme's method for some layers and used a simpler one, so the score"
        " is partly that of another scheme. Use more calibration text or a larger damping. By default a unit fails"
        " above 1 % of the layers (quantize.max_fallback_share).",
        find=_fallbacks,
    )
    CALIBRATION_OVERLAP = MarkRule(
        symbol="K",
        label="items that share text with the calibration set",
        meaning="13 consecutive words of these items (arXiv 2005.14165, appendix C) are in the text with which the"
        " checkpoint was calibrated, so its score may be too high. Use another calibration text, or compare without"
        " these items.",
        find=per_task(
            lambda task: task.calibration_items,
            "{count} of {total} items",
            total=lambda task: task.compared_items,
        ),
    )
    EXPERTS_WITHOUT_TOKENS = MarkRule(
        symbol="X",
        label="experts without calibration tokens",
        meaning="The router sent none of the calibration text to these experts, so they were calibrated with the"
        " tokens of other experts. Use more calibration text, or a text that is similar to the tasks.",
        find=checkpoint_count(("experts", "experts_without_tokens"), ("experts", "experts"), "experts"),
    )
    UNROUNDED_ACTIVATIONS = MarkRule(
        symbol="R",
        label="activations not quantized as the scheme declares",
        meaning="The accelerate backend computes experts with quantized weights, but without quantized activations, so"
        " the score does not include the error of quantizing them. vLLM quantizes both.",
        find=segment_text("unrounded_activations"),
    )
    GENERATION_SETTINGS_IGNORED = MarkRule(
        symbol="G",
        label="generation settings of the checkpoint are ignored",
        meaning="The checkpoint's generation_config.json has settings that would change greedy answers, such as a"
        " repetition penalty. Every backend generates text as the task's definition says, so that models and backends"
        " are comparable. lm-eval's own transformers backend applies these settings, so its scores can differ.",
        find=_ignored_generation_settings,
    )
    ROUNDING = MarkRule(
        symbol="D",
        label="equivalent computations of a log-likelihood differ",
        meaning="A few requests were computed from shared prefixes, alone, and in a batch. The results differ by more"
        " than the rounding of the data type. Usually the reason is quantized activations. A small difference can move"
        " an activation to another quantization level, and the difference grows from layer to layer. Every"
        " implementation has this uncertainty. Do not interpret differences between scores that depend on a few items.",
        find=_rounding,
    )
    BATCHES = MarkRule(
        symbol="B",
        label="texts generated in batches of several sizes",
        meaning="In 16 bits, rounding depends on the size of the batch, and some greedy answers change with it. Some"
        " answers were generated with another evaluate.batch_size, or in smaller batches after an attempt had run out"
        " of memory.",
        find=_batches,
    )
    FIXED_ROPE = MarkRule(
        symbol="L",
        label="one rotary embedding for texts of all lengths",
        meaning="A longrope or dynamic rotary embedding depends on the length of each text. vLLM uses the same"
        " frequencies for all texts, so log-likelihoods of short texts differ from those of the accelerate backend. If"
        " all prompts fit, set evaluate.max_length to at most the model's original length: then the backends agree.",
        find=segment_text("fixed_rope"),
    )
    ATTENTION_DIFFERENCE = MarkRule(
        symbol="A",
        label="attention differs between the backends by design",
        meaning="vLLM and transformers compute the attention of this family in two ways. Compare its scores only with"
        " scores of the same backend.",
        find=segment_text("attention_difference"),
    )
    OTHER = MarkRule(
        symbol="?",
        label="mark of another version of hpcq",
        meaning="The results were merged by another version of hpcq, which has more kinds of marks. The sentence of"
        " that version is shown unchanged.",
    )

    @property
    def symbol(self) -> str:
        """A capital letter or '?'."""
        return self.value.symbol

    @property
    def label(self) -> str:
        """A few words, the beginning of a note."""
        return self.value.label

    @property
    def withholds_score(self) -> bool:
        """Whether a task with this mark has no score, or not all scores."""
        return self.value.withholds_score


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A mark on the scores of a variant.

    Attributes:
        kind: Kind of the mark.
        detail: What was found, with numbers and units.
        task: The task, or group of tasks, that it concerns; '' if it concerns all tasks of the variant.
        affected: Number of responses or layers that it concerns; None if it cannot be counted.
        total: Number of all responses or layers; None if it is unknown.
    """

    kind: MarkKind
    detail: str
    task: str = ""
    affected: int | None = None
    total: int | None = None

    @property
    def sentence(self) -> str:
        """The mark in words, without variant and task: 'prompts cut from the left: 12 of 40 prompts'."""
        return f"{self.kind.label}: {self.detail}"

    def as_json(self) -> dict[str, Any]:
        """Return the mark as plain JSON types."""
        return {
            "kind": self.kind.name.lower(),
            "task": self.task or None,
            "sentence": self.sentence,
            "detail": self.detail,
            "affected": self.affected,
            "total": self.total,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Mark:
        """Return the mark in `document`; an unknown kind of another version becomes OTHER, with its own sentence."""
        kind = MarkKind.__members__.get(str(document["kind"]).upper(), MarkKind.OTHER)
        return cls(
            kind=kind,
            detail=str(document["sentence"] if kind is MarkKind.OTHER else document["detail"]),
            task=document["task"] or "",
            affected=document["affected"],
            total=document["total"],
        )


def derive_marks(facts: VariantFacts) -> tuple[Mark, ...]:
    """Return all marks that follow from the facts of a variant, in the order of `MarkKind`."""
    return tuple(
        Mark(kind=kind, detail=found.detail, task=found.task, affected=found.affected, total=found.total)
        for kind in MarkKind
        for found in kind.value.find(facts)
    )


def marks_of_task(marks: Iterable[Mark], task: str) -> tuple[Mark, ...]:
    """Return the marks that concern `task`: its own, and those of all tasks of the variant."""
    return tuple(mark for mark in marks if mark.task in ("", task))


def mark_table() -> str:
    """Return all kinds of marks as a Markdown table, for docs/trust.md."""
    rows = (f"| `^{kind.symbol}` | `{kind.name.lower()}` | {kind.label} | {kind.value.meaning} |" for kind in MarkKind)
    return "\n".join(("| symbol | `kind` in JSON | note | meaning |", "|---|---|---|---|", *rows)) + "\n"
