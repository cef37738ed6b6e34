"""From a file and options to a manifest, or to everything that is wrong with it. Reads, never writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpcq.catalog.models import model_ids
from hpcq.errors import ManifestError
from hpcq.manifest.checks import find_problems
from hpcq.manifest.documents import read_document
from hpcq.manifest.locate import locate
from hpcq.manifest.messages import Problem, problems_of
from hpcq.manifest.overrides import OverrideProblem, apply_override
from hpcq.manifest.schema import DEFINED_SCHEMES, Manifest
from hpcq.manifest.source import KeyPath, Source


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

    Where tables are broken the others are checked all the same, with something harmless in the broken ones' place.
    """
    try:
        manifest = _manifest(document, source)
    except ValidationError as error:
        problems = problems_of(error, Manifest)
        broken = {str(key_path[0]) for key_path, _ in problems}
        stand_ins: dict[str, Any] = {"run": {"name": "unnamed"}, "models": [{"id": model_ids()[0]}]}
        harmless = {key: value for key, value in document.items() if key not in broken}
        harmless |= {key: value for key, value in stand_ins.items() if key in broken}
        manifest = _manifest(harmless, source, context=document)
        return manifest, problems + find_problems(manifest, set(Manifest.model_fields) - broken)
    return manifest, find_problems(manifest)


def _manifest(document: dict[str, Any], source: Source, context: dict[str, Any] | None = None) -> Manifest:
    names = _defined_names(context or document)
    return Manifest.model_validate(document, context={DEFINED_SCHEMES: names}).read_from(source)


def _defined_names(document: dict[str, Any]) -> list[str]:
    """The names that `schemes.define` brings, as far as it is well-formed."""
    schemes = document.get("schemes")
    define = schemes.get("define") if isinstance(schemes, dict) else None
    entries = define if isinstance(define, list) else []
    names = [entry.get("name") for entry in entries if isinstance(entry, dict)]
    return [name for name in names if isinstance(name, str)]
