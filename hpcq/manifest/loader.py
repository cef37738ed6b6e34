"""From a file and options to a manifest, or to everything that is wrong with it. Reads, never writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpcq.catalog.models import model_ids
from hpcq.core.errors import ManifestError
from hpcq.manifest.checks import find_problems
from hpcq.manifest.error_messages import Problem, problems_of
from hpcq.manifest.overrides import OverrideProblem, apply_override
from hpcq.manifest.schema import DEFINED_SCHEMES, Manifest
from hpcq.manifest.source import KeyPath, Source
from hpcq.manifest.toml_positions import locate
from hpcq.manifest.toml_reader import read_document


def load(path: Path, overrides: Sequence[str] = ()) -> Manifest:
    """The manifest in the TOML file `path`, with `overrides` ('key=value') put in.

    Raises:
        ManifestError: everything that is wrong with the file and the options, one sentence a problem.
    """
    text, document = read_document(path)
    options: dict[KeyPath, str] = {}
    refused = []
    for option in overrides:
        try:
            override = apply_override(document, option)
            options[override.key_path] = override.text
        except OverrideProblem as problem:
            refused.append(f"-O {option}: {problem}")
    source = Source(path=path, lines=locate(text), options=options)
    manifest, problems = _validate(document, source)
    if refused or problems:
        in_order = sorted(problems, key=lambda problem: source.line(problem[0]))
        raise ManifestError([*refused, *(source.problem(*problem) for problem in in_order)])
    return manifest


def _validate(document: dict[str, Any], source: Source) -> tuple[Manifest, list[Problem]]:
    """The manifest, or a stand-in for it and its problems.

    Where tables are broken the others are checked all the same, with something harmless in the broken ones' place. A
    table with unknown names of schemes is not broken by them: its other names are checked too.
    """
    faults = _schema_problems(document)
    broken = {str(key_path[0]) for key_path, _ in faults}
    unknown = _schema_problems(document, {DEFINED_SCHEMES: _defined_names(document)})
    problems = list(dict.fromkeys([*unknown, *faults]))
    stand_ins: dict[str, Any] = {"run": {"name": "unnamed"}, "models": [{"id": model_ids()[0]}]}
    harmless = {key: value for key, value in document.items() if key not in broken}
    harmless |= {key: value for key, value in stand_ins.items() if key in broken}
    manifest = Manifest.model_validate(harmless).read_from(source)
    told = {key_path for key_path, _ in problems}
    found = find_problems(manifest, set(Manifest.model_fields) - broken)
    return manifest, problems + [problem for problem in found if problem[0] not in told]


def _schema_problems(document: dict[str, Any], context: dict[str, Any] | None = None) -> list[Problem]:
    """What the schema finds wrong; names of schemes are looked up only where `context` says which are defined."""
    try:
        Manifest.model_validate(document, context=context)
    except ValidationError as error:
        return problems_of(error, Manifest)
    return []


def _defined_names(document: dict[str, Any]) -> list[str]:
    """The names that `schemes.define` brings, as far as it is well-formed."""
    schemes = document.get("schemes")
    define = schemes.get("define") if isinstance(schemes, dict) else None
    entries = define if isinstance(define, list) else []
    names = [entry.get("name") for entry in entries if isinstance(entry, dict)]
    return [name for name in names if isinstance(name, str)]
