"""Load a manifest from a TOML file and `-O key=value` overrides, and collect every problem in it."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpcq.catalog.models import model_ids
from hpcq.core.errors import ManifestError, SetupError
from hpcq.core.frozen import dataclass
from hpcq.data import find_manifest
from hpcq.manifest.checks import find_problems, unavailable_models
from hpcq.manifest.context import Context, cache_errors, look_up
from hpcq.manifest.error_messages import Problem, to_problems
from hpcq.manifest.pins import Pins
from hpcq.manifest.schema import DEFINED_SCHEMES, Manifest, TasksSection
from hpcq.manifest.task_checks import check_definitions, check_names
from hpcq.manifest.toml_document import key_lines, read_document
from hpcq.manifest.value_origin import KeyPath, Source


def load(path: Path, overrides: Sequence[str] = (), *, find_pins: Callable[[Manifest], Pins] | None = None) -> Context:
    """Return the manifest in the TOML file `path`, with `overrides` applied, and what its names refer to.

    Args:
        path: the TOML file; `manifests/NAME.toml` may also be one that hpcq ships.
        overrides: 'key=value' texts, applied in order.
        find_pins: looks up the commits of the hub repositories of a valid manifest; None: they stay unknown.

    Raises:
        ManifestError: the file or an override has errors; one sentence per problem.
        SetupError: a model on the hub cannot be read: no access, or no network.
    """
    document, source, override_errors = _read(path, overrides)
    context, problems = _validate(document, source)
    if find_pins and not override_errors and not problems:
        with cache_errors(context.manifest):
            pins = find_pins(context.manifest)
            if pins != context.pins:
                context = look_up(context.manifest, pins)
                problems = find_problems(context)
    if override_errors or problems:
        in_order = sorted(problems, key=lambda problem: source.line(problem[0]))
        raise ManifestError([*override_errors, *(source.message(*problem) for problem in in_order)])
    if unavailable := unavailable_models(context):
        raise SetupError("\n".join(unavailable))
    return context


def load_schema(path: Path, overrides: Sequence[str] = ()) -> Manifest:
    """Return the manifest without looking up what its names refer to: its folders are known although inputs are gone.

    Raises:
        ManifestError: the file or an override has errors, or a key is unknown or of the wrong type.
    """
    document, source, override_errors = _read(path, overrides)
    problems = _schema_problems(document, {DEFINED_SCHEMES: _defined_names(document)})
    if override_errors or problems:
        raise ManifestError([*override_errors, *(source.message(*problem) for problem in problems)])
    return Manifest.model_validate(document).with_source(source)


def _read(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], Source, list[str]]:
    """Return the content of the file with the overrides applied, the origin of its values, and invalid overrides."""
    path = find_manifest(path)
    text, document = read_document(path)
    applied: dict[KeyPath, str] = {}
    override_errors = []
    for override_text in overrides:
        try:
            override = apply_override(document, override_text)
            applied[override.key_path] = override.text
        except OverrideError as error:
            override_errors.append(f"-O {override_text}: {error}")
    return document, Source(path=path, lines=key_lines(text), overrides=applied), override_errors


def _validate(document: dict[str, Any], source: Source) -> tuple[Context, list[Problem]]:
    """Return the manifest with what its names refer to, and its problems.

    Tables with schema errors are replaced by valid placeholders, so that the other tables are still checked. An unknown
    scheme name does not invalidate its table: the other names in it are checked too.
    """
    schema_errors = _schema_problems(document)
    invalid = {str(key_path[0]) for key_path, _ in schema_errors}
    unknown = _schema_problems(document, {DEFINED_SCHEMES: _defined_names(document)})
    problems = list(dict.fromkeys([*unknown, *schema_errors]))
    placeholders: dict[str, Any] = {"run": {"name": "unnamed"}, "models": [{"id": model_ids()[0]}]}
    valid = {key: value for key, value in document.items() if key not in invalid}
    valid |= {key: value for key, value in placeholders.items() if key in invalid}
    if "tasks" in invalid:
        valid["tasks"] = _task_names(document)
    context = look_up(Manifest.model_validate(valid).with_source(source))
    reported = {key_path for key_path, _ in problems}
    found = find_problems(context, set(Manifest.model_fields) - invalid)
    if "tasks" in invalid:
        found += [*check_definitions(context), *check_names(context)]
    return context, problems + [problem for problem in found if problem[0] not in reported]


def _task_names(document: dict[str, Any]) -> dict[str, Any]:
    """Return the names in a table [tasks] with errors, to check them too; nothing if they are among the errors."""
    tasks = document["tasks"] if isinstance(document.get("tasks"), dict) else {}
    named = {key: tasks[key] for key in ("suites", "use", "include", "trust_code") if key in tasks}
    try:
        TasksSection.model_validate(named)
    except ValidationError:
        return {}
    return named


def _schema_problems(document: dict[str, Any], context: dict[str, Any] | None = None) -> list[Problem]:
    """Return the schema errors. Scheme names are checked only if `context` contains the defined ones."""
    try:
        Manifest.model_validate(document, context=context)
    except ValidationError as error:
        return to_problems(error, Manifest)
    return []


def _defined_names(document: dict[str, Any]) -> list[str]:
    """Return the scheme names in `schemes.define`; malformed entries are skipped."""
    schemes = document.get("schemes")
    define = schemes.get("define") if isinstance(schemes, dict) else None
    entries = define if isinstance(define, list) else []
    names = [entry.get("name") for entry in entries if isinstance(entry, dict)]
    return [name for name in names if isinstance(name, str)]


@dataclass(frozen=True, kw_only=True)
class Override:
    """One applied `-O` override.

    Attributes:
        text: 'key=value' as given.
        key_path: the key that it sets.
        value: the new value.
    """

    text: str
    key_path: KeyPath
    value: Any


class OverrideError(ValueError):
    """An override cannot be applied; the message is a full sentence."""


def _is_unicode(text: str) -> bool:
    """Return whether `text` can be written as UTF-8. Python decodes other bytes of a command line to surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def apply_override(document: dict[str, Any], text: str) -> Override:
    """Apply the override `text` ('key=value') to `document`. Missing tables are created, missing list elements are not.

    Raises:
        OverrideError: the key or '=' is missing, the value is not valid TOML, or the key path does not exist.
    """
    if not text.isascii() and not _is_unicode(text):
        raise OverrideError("the value is not valid UTF-8.")
    key, equals, raw = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise OverrideError("use key=value, with a dotted key such as evaluate.batch_size.")
    value = _value(raw.strip())
    here: Any = document
    key_path: KeyPath = ()
    for position, part in enumerate(parts):
        step = _step(here, part, key_path)
        key_path = (*key_path, step)
        if position == len(parts) - 1:
            here[step] = value
        else:
            here = here.setdefault(step, {}) if isinstance(here, dict) else here[step]
    return Override(text=text, key_path=key_path, value=value)


def _step(here: Any, part: str, before: Sequence[str | int]) -> str | int:
    """Return `part` as a key of the table `here` or as an index of the list `here`."""
    name = ".".join(str(step) for step in before)
    if isinstance(here, dict):
        return part
    if not isinstance(here, list):
        raise OverrideError(f"{name} is a value and has no key '{part}'.")
    if part not in (str(index) for index in range(len(here))):
        valid = f"valid indices are 0 to {len(here) - 1}" if here else "it is empty"
        raise OverrideError(f"'{part}' is not an element of the list {name}; {valid}.")
    return int(part)


def _value(raw: str) -> Any:
    """Return `raw` as a TOML value, or as a string if it is not TOML and does not begin like a TOML list or string."""
    try:
        parsed = tomllib.loads(f"value = {raw}")
    except tomllib.TOMLDecodeError as error:
        if raw[:1] in ("[", "{", '"', "'"):
            raise OverrideError(f"{raw} is not a TOML value ({error}).") from error
        return raw
    except (ValueError, RecursionError):  # int() raises ValueError, which tomllib does not convert
        raise OverrideError("the value has too many digits or is nested too deeply.") from None
    return parsed["value"] if len(parsed) == 1 else raw
