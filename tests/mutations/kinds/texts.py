"""Mutations of items and of the calibration text."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from tests.mutations.kinds.files import change_lines, edit_rows
from tests.mutations.kinds.registry import Case, Effect, Target, kind


def _items_file(case: Case, random: Random) -> Path:
    return random.choice([case.items / "arc_challenge" / "test.jsonl", case.items / "gsm8k" / "test.jsonl"])


@kind(Target.ITEMS, Effect.OTHER_INPUT)
def change_item(case: Case, random: Random) -> str | None:
    """Change a field of one of the first items."""
    path = _items_file(case, random)

    def change(rows: list[dict[str, Any]]) -> str:
        row = random.randrange(2)
        field = random.choice(list(rows[row]))
        old = rows[row][field]
        value = random.choice(
            [
                None,
                "",
                " ",
                "é😀\u202e",
                5,
                [],
                {},
                "x" * 300,
                "\0",
                "{{ 7 * 7 }}",
                "a\r\nb",
                True,
                1e400,
                [old],
                str(old),
            ]
        )
        rows[row][field] = value
        return f"{path.parent.name}[{row}].{field} = {str(value)[:20]!r}"

    return edit_rows(path, change)


@kind(Target.ITEMS, Effect.MUST_SHOW)
def hide_labels(case: Case, random: Random) -> str | None:
    """Replace the labels of all items, as data sets do in test splits."""
    label = random.choice(["", "-1", "Z"])

    def change(rows: list[dict[str, Any]]) -> str:
        for row in rows:
            row["answerKey"] = label
        return repr(label)

    return edit_rows(case.items / "arc_challenge" / "test.jsonl", change)


@kind(Target.ITEMS, Effect.OTHER_INPUT)
def drop_field(case: Case, random: Random) -> str | None:
    """Remove a field of one or of all items."""
    path = _items_file(case, random)

    def change(rows: list[dict[str, Any]]) -> str:
        field = random.choice(list(rows[0]))
        chosen = random.choice([rows[:1], rows])
        for row in chosen:
            row.pop(field)
        return f"{path.parent.name}: {field} of {len(chosen)}"

    return edit_rows(path, change)


@kind(Target.ITEMS, Effect.OTHER_INPUT)
def change_choices(case: Case, random: Random) -> str | None:
    """Change the choices of one of the first items."""

    def change(rows: list[dict[str, Any]]) -> str:
        row = rows[random.randrange(2)]
        choices, how = row["choices"], random.choice(["fewer", "more", "equal", "labels", "empty", "key", "numbers"])
        if how == "fewer":
            choices["text"], choices["label"] = choices["text"][:1], choices["label"][:1]
        elif how == "more":
            choices["text"].append("fifth")
        elif how == "equal":
            choices["text"] = [choices["text"][0]] * len(choices["text"])
        elif how == "labels":
            choices["label"] = ["1", "2", "3", "4"]
        elif how == "empty":
            choices["text"] = [""] * len(choices["text"])
        elif how == "key":
            row["answerKey"] = random.choice(["E", "", "a", 0, None, "AB"])
        else:
            choices["text"] = list(range(len(choices["text"])))
        return how

    return edit_rows(case.items / "arc_challenge" / "test.jsonl", change)


@kind(Target.ITEMS, Effect.MUST_SHOW)
def very_long_item(case: Case, random: Random) -> str | None:
    """Make one of the first items longer than the model's context."""
    path = _items_file(case, random)

    def change(rows: list[dict[str, Any]]) -> str:
        row = random.randrange(2)
        rows[row]["question"] = "One more word and then another one. " * random.choice([300, 3000])
        return f"{path.parent.name}[{row}]"

    return edit_rows(path, change)


@kind(Target.ITEMS, Effect.OTHER_INPUT)
def change_rows(case: Case, random: Random) -> str | None:
    """Remove, repeat or reorder items."""
    path = _items_file(case, random)

    def change(rows: list[dict[str, Any]]) -> str:
        how = random.choice(["first removed", "one left", "repeated", "reversed", "none left"])
        chosen = {
            "first removed": rows[1:],
            "one left": rows[:1],
            "repeated": rows[:1] * 4,
            "reversed": rows[::-1],
            "none left": [],
        }[how]
        rows[:] = chosen
        return f"{path.parent.name} {how}"

    return edit_rows(path, change)


@kind(Target.ITEMS, Effect.OTHER_INPUT)
def change_items_file(case: Case, random: Random) -> str | None:
    """Change the file of a split as a whole: encoding, line ends, damage."""
    path = random.choice([*case.items.glob("*/*.jsonl")])
    return f"{path.parent.name}/{path.name}: {change_lines(path, random)}"


@kind(Target.CALIBRATION, Effect.OTHER_INPUT)
def change_calibration_file(case: Case, random: Random) -> str | None:
    """Change the calibration file as a whole."""
    return change_lines(case.calibration, random)


CALIBRATION_CHANGES = (
    "too few",
    "other key",
    "number",
    "null",
    "empty texts",
    "repeated",
    "one long",
    "messages",
    "nested",
    "extra keys",
    "symbols",
)


@kind(Target.CALIBRATION, Effect.OTHER_INPUT)
def change_calibration_rows(case: Case, random: Random) -> str | None:
    """Change rows of the calibration file."""

    def change(rows: list[dict[str, Any]]) -> str:
        how = random.choice(CALIBRATION_CHANGES)
        text = rows[0]["text"]
        chosen: list[dict[str, Any]] = {
            "too few": rows[:1],
            "other key": [{"content": row["text"]} for row in rows],
            "number": [{"text": 5}, *rows],
            "null": [{"text": None}, *rows],
            "empty texts": [{"text": ""} for _ in rows],
            "repeated": [rows[0]] * 100,
            "one long": [{"text": " ".join(row["text"] for row in rows)}],
            "messages": [{"messages": [{"role": "user", "content": row["text"]}]} for row in rows],
            "nested": [{"text": {"text": text}}, *rows],
            "extra keys": [{**row, "id": 1} for row in rows],
            "symbols": [{"text": "\0\x07é😀\u202e" + row["text"]} for row in rows],
        }[how]
        rows[:] = chosen
        return how

    return edit_rows(case.calibration, change)
