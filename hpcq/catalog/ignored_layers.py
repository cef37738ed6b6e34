"""Layers that the `ignore` list of a scheme names, and why a list is invalid for a model.

A list replaces the default, which is the head. An entry is the name of a linear layer, or "re:" and a regular
expression that matches from the beginning of a name, as in compressed-tensors (0.19).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from hpcq.catalog.model_shape import HEAD, ModelShape
from hpcq.core.work_records import Scheme

_PREFIX = "re:"
_NUMBER = re.compile(r"\.\d+(?=\.|$)")
_MAX_NAMES = 12


def matches(name: str, entries: Iterable[str]) -> bool:
    """Return whether one of `entries` names the module `name`."""
    return any(
        re.match(entry[len(_PREFIX) :], name) is not None if entry.startswith(_PREFIX) else entry == name
        for entry in entries
    )


def entry_problem(entry: str) -> str | None:
    """Return why an entry is invalid for every model, as a sentence; None: it is valid."""
    if not entry.startswith(_PREFIX):
        return None
    try:
        re.compile(entry[len(_PREFIX) :])
    except (re.error, OverflowError, RecursionError) as error:
        hint = " Write '.*' for any characters." if entry.startswith((f"{_PREFIX}*", f"{_PREFIX}?")) else ""
        return f"'{entry}' is not a regular expression: {error}.{hint}"
    return None


def ignore_problem(scheme: Scheme, linears: Iterable[str], *, head: str | None = HEAD) -> str | None:
    """Return why the list of a scheme is invalid for a model, as a sentence; None: it is valid.

    Args:
        scheme: The scheme.
        linears: Names of all linear layers of the model that a scheme may quantize, and of its head.
        head: Name of the head. In the list, 'lm_head' always means the head.
    """
    names = list(linears)
    for entry in scheme.ignore:
        if entry != HEAD and not any(matches(name, (entry,)) for name in names):
            return f"'{entry}' matches no linear layer; the layers are {_listed(names)}.{_hint(entry, names)}"
    if scheme.ignore and head in names and not (HEAD in scheme.ignore or matches(str(head), scheme.ignore)):
        return (
            f"the list replaces the default ['{HEAD}'], so the head would be quantized. Add '{HEAD}' to the list; "
            "an empty list quantizes every layer."
        )
    if all(matches(name, scheme.ignore) or name == head for name in names):
        return "it matches every linear layer, so nothing would be quantized. Use scheme 'bf16', or remove an entry."
    return None


def linear_names(shape: ModelShape) -> Iterator[str]:
    """Yield the names of a model's linear layers that a scheme may quantize, and of its head."""
    for index, block in enumerate(shape.blocks):
        for count, linears in block.groups:
            for linear in linears:
                if linear.is_quantizable:
                    full = f"{shape.prefix}.{index}.{linear.name}"
                    yield from (full.replace("*", str(expert)) for expert in range(count if "*" in full else 1))
    yield from (linear.name for linear in shape.linears)
    if shape.tied_embeddings:
        yield HEAD


def head_name(shape: ModelShape) -> str:
    """Return the name of a model's head."""
    return HEAD if shape.tied_embeddings or not shape.linears else shape.linears[-1].name


def _listed(names: list[str]) -> str:
    patterns = list(dict.fromkeys(_NUMBER.sub(".*", name) for name in names))
    return ", ".join(patterns[:_MAX_NAMES]) + (", …" if len(patterns) > _MAX_NAMES else "")


def _hint(entry: str, names: list[str]) -> str:
    """Return a hint for an entry that is a part of a name, or has '*' for any characters; '' if there is none."""
    part = entry.removeprefix(_PREFIX)
    if "*" in part and not entry.startswith(_PREFIX):
        part = part.strip("*.")
    if part and any(part in name for name in names):
        return f" Did you mean 're:.*{re.escape(part)}.*'?"
    return ""
