"""`-O key=value` overrides of a document."""

from __future__ import annotations

from typing import Any

import pytest

from hpcq.manifest.loader import OverrideError, apply_override


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
def test_an_override_sets_a_toml_value_or_a_bare_word(option: str, expected: dict[str, Any]) -> None:
    """The value is TOML, or a string if it is not valid TOML. Missing tables are created."""
    document: dict[str, Any] = {"run": {"name": "x"}, "models": [{"id": "a"}]}
    apply_override(document, option)
    assert document == expected


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("name", "use key=value, with a dotted key such as evaluate.batch_size."),
        ("run.description=\udc80", "the value is not valid UTF-8."),
        ("run..name=x", "use key=value, with a dotted key such as evaluate.batch_size."),
        ("models.1.id=x", "'1' is not an element of the list models; valid indices are 0 to 0."),
        ("models.id=x", "'id' is not an element of the list models; valid indices are 0 to 0."),
        ("run.name.first=x", "run.name is a value and has no key 'first'."),
        (
            "models.9" + "9" * 5000 + ".id=x",
            "'" + "9" * 5001 + "' is not an element of the list models; valid indices are 0 to 0.",
        ),
        ("tasks.limit=" + "9" * 5000, "the value has too many digits or is nested too deeply."),
        ("tasks.use=" + "[" * 5000, "the value has too many digits or is nested too deeply."),
        ("run.name=[1", "[1 is not a TOML value (Unclosed array (at end of document))."),
    ],
)
def test_an_invalid_override_is_explained(option: str, sentence: str) -> None:
    """A missing '=', an empty key, an invalid index, a key below a value, and invalid values each have a message."""
    with pytest.raises(OverrideError) as raised:
        apply_override({"run": {"name": "x"}, "models": [{"id": "a"}]}, option)
    assert str(raised.value) == sentence
