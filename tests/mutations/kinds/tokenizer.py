"""Mutations of the tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from random import Random
from typing import Any

from tests.mutations.checkpoint_edit import edit_json
from tests.mutations.kinds.files import break_file
from tests.mutations.kinds.registry import Case, Effect, Target, kind


def _edit_tokenizer(case: Case, change: Callable[[dict[str, Any]], object]) -> None:
    edit_json(case.model / "tokenizer.json", lambda content: change(content) and None)


@kind(Target.TOKENIZER)
def broken_tokenizer(case: Case, random: Random) -> str | None:
    """Damage the tokenizer as a whole."""
    return break_file(case.model / "tokenizer.json", random)


@kind(Target.TOKENIZER, Effect.MUST_SHOW)
def dropout(case: Case, random: Random) -> str | None:
    """Skip merges at random: the same text has other tokens each time."""
    share = random.choice([0.01, 0.3, 1.0])
    _edit_tokenizer(case, lambda content: content["model"].update(dropout=share))
    return f"{share:g}"


@kind(Target.TOKENIZER)
def tokenizer_of_a_larger_model(case: Case, _random: Random) -> str | None:
    """Take a tokenizer with more tokens than the model has embeddings."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(case.spare / "tokenizer" / name, case.model / name)
    return "49152 tokens"


@kind(Target.TOKENIZER, Effect.OTHER_INPUT)
def tokenizer_of_a_smaller_model(case: Case, random: Random) -> str | None:
    """Take a tokenizer with fewer tokens: every text has other tokens."""
    size = random.choice([300, 1000, 2000])

    def change(content: dict[str, Any]) -> None:
        model = content["model"]
        model["vocab"] = {token: number for token, number in model["vocab"].items() if number < size}
        model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]

    _edit_tokenizer(case, change)
    return f"{size} tokens"


@kind(Target.TOKENIZER, Effect.OTHER_INPUT)
def swap_vocabulary(case: Case, random: Random) -> str | None:
    """Exchange the numbers of pairs of tokens."""

    def change(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        tokens = random.sample(sorted(vocabulary), 400)
        for first, second in zip(tokens[::2], tokens[1::2], strict=True):
            vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]

    _edit_tokenizer(case, change)
    return "200 pairs"


@kind(Target.TOKENIZER, Effect.OTHER_INPUT)
def drop_vocabulary(case: Case, random: Random) -> str | None:
    """Remove tokens, or merges, so that some texts have unknown tokens or others."""
    what = random.choice(["tokens", "merges", "numbers"])

    def change(content: dict[str, Any]) -> None:
        model = content["model"]
        if what == "tokens":
            for token in random.sample(sorted(model["vocab"]), 50):
                del model["vocab"][token]
            model["merges"] = [pair for pair in model["merges"] if {*pair, "".join(pair)} <= model["vocab"].keys()]
        elif what == "merges":
            del model["merges"][random.randrange(len(model["merges"])) :]
        else:
            model["vocab"] = {token: number + 1 for token, number in model["vocab"].items()}

    _edit_tokenizer(case, change)
    return what


@kind(Target.TOKENIZER, Effect.OTHER_INPUT)
def other_text_processing(case: Case, random: Random) -> str | None:
    """Change what the tokenizer does before or after its model."""
    name, value = random.choice(
        [
            ("normalizer", {"type": "Lowercase"}),
            ("normalizer", {"type": "NFKC"}),
            ("pre_tokenizer", {"type": "Whitespace"}),
            ("pre_tokenizer", None),
            ("decoder", None),
            ("truncation", {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}),
            ("padding", {"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                         "pad_type_id": 0, "pad_token": "<|endoftext|>"}),
            ("post_processor", _template("<|im_start|>", 1, before=True)),
            ("post_processor", _template("<|im_end|>", 2, before=False)),
        ]
    )  # fmt: skip
    _edit_tokenizer(case, lambda content: content.update({name: value}))
    return f"{name}: {(value or {}).get('type', value)}"


def _template(token: str, number: int, *, before: bool) -> dict[str, Any]:
    special, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    single = [special, text] if before else [text, special]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
    tokens = {token: {"id": token, "ids": [number], "tokens": [token]}}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}


@kind(Target.TOKENIZER, Effect.OTHER_INPUT)
def other_special_tokens(case: Case, random: Random) -> str | None:
    """Change settings of the tokenizer."""
    key, value = random.choice(
        [
            ("bos_token", "<|im_start|>"), ("bos_token", None), ("eos_token", "<|endoftext|>"), ("eos_token", None),
            ("eos_token", "the"), ("pad_token", None), ("pad_token", "<unknown>"), ("unk_token", None),
            ("add_bos_token", True), ("add_eos_token", True), ("model_max_length", 8), ("model_max_length", 10**30),
            ("tokenizer_class", "LlamaTokenizer"), ("tokenizer_class", "Nonsense"), ("padding_side", "right"),
            ("truncation_side", "right"), ("clean_up_tokenization_spaces", True), ("add_prefix_space", True),
            ("chat_template", "{{ raise_exception('no') }}"), ("chat_template", "{% broken"),
            ("extra_special_tokens", 5),
        ]
    )  # fmt: skip
    edit_json(case.model / "tokenizer_config.json", lambda content: content.update({key: value}))
    return f"{key}: {value!r}"


@kind(Target.TOKENIZER, Effect.OTHER_INPUT)
def extra_tokenizer_files(case: Case, random: Random) -> str | None:
    """Add a file of another tokenizer format, or a chat template."""
    name = random.choice(["tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja", "added_tokens.json",
                          "special_tokens_map.json", "vocab.txt", "spiece.model"])  # fmt: skip
    text = {"special_tokens_map.json": '{"eos_token": "<|endoftext|>"}', "added_tokens.json": '{"the": 9}'}
    (case.model / name).write_text(text.get(name, "{}"))
    return name


@kind(Target.TOKENIZER, Effect.OTHER_INPUT)
def odd_vocabulary(case: Case, random: Random) -> str | None:
    """Change tokenizer.json so that it is still JSON, and perhaps no tokenizer."""
    how = random.choice(["no model", "no type", "other type", "no vocabulary", "empty", "text", "negative", "merge"])

    def change(content: dict[str, Any]) -> None:
        model = content["model"]
        if how == "no model":
            del content["model"]
        elif how == "no type":
            model.pop("type", None)
        elif how == "other type":
            model["type"] = random.choice(["Nonsense", "Unigram", "WordLevel"])
        elif how == "no vocabulary":
            del model["vocab"]
        elif how == "empty":
            model.update(vocab={}, merges=[])
        elif how == "merge":
            model["merges"].append(["qqqq", "zzzz"])
        else:
            model["vocab"]["the"] = {"text": "5", "negative": -5}[how]

    _edit_tokenizer(case, change)
    return how
