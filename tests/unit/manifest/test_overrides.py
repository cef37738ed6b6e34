"""Options that replace values of a document."""

from __future__ import annotations

from typing import Any

import pytest

from hpcq.manifest.overrides import OverrideProblem, apply_override


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("run.name=other", {"run": {"name": "other"}, "models": [{"id": "a"}]}),
        ('run.name="o=p"', {"run": {"name": "o=p"}, "models": [{"id": "a"}]}),
        ("run.name=7", {"run": {"name": 7}, "models": [{"id": "a"}]}),
        ("models.0.id=org/b", {"run": {"name": "x"}, "models": [{"id": "org/b"}]}),
        ("schemes.use=['fp8']", {"run": {"name": "x"}, "models": [{"id": "a"}], "schemes": {"use": ["fp8"]}}),
        ("a.b.c = true", {"run": {"name": "x"}, "models": [{"id": "a"}], "a": {"b": {"c": True}}}),
        ("run.name=x\ny = 1", {"run": {"name": "x\ny = 1"}, "models": [{"id": "a"}]}),
    ],
)
def test_an_option_puts_a_toml_value_or_a_bare_word(option: str, expected: dict[str, Any]) -> None:
    """The value is read as TOML, and what is no TOML is text; keys lead into tables, made if need be, and lists."""
    document: dict[str, Any] = {"run": {"name": "x"}, "models": [{"id": "a"}]}
    apply_override(document, option)
    assert document == expected


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("name", "an option is written key=value, with a dotted key such as evaluate.batch_size."),
        ("run..name=x", "an option is written key=value, with a dotted key such as evaluate.batch_size."),
        ("models.1.id=x", "models is a list; its elements are 0 to 0, and '1' is not one of them."),
        ("models.id=x", "models is a list; its elements are 0 to 0, and 'id' is not one of them."),
        ("run.name.first=x", "run.name is a value and has no key 'first'."),
        (
            "models.9" + "9" * 5000 + ".id=x",
            "models is a list; its elements are 0 to 0, and '" + "9" * 5001 + "' is not one of them.",
        ),
        ("tasks.limit=" + "9" * 5000, "the value is a number too long, or a list too deep, to be read."),
        ("tasks.use=" + "[" * 5000, "the value is a number too long, or a list too deep, to be read."),
        ("run.name=[1", "[1 is not a TOML value (Unclosed array (at end of document))."),
    ],
)
def test_an_option_that_leads_nowhere_says_why(option: str, sentence: str) -> None:
    """No '=', an empty key, a list's end, a key below a value, a broken and an endless value: each has its sentence."""
    with pytest.raises(OverrideProblem) as refusal:
        apply_override({"run": {"name": "x"}, "models": [{"id": "a"}]}, option)
    assert str(refusal.value) == sentence
